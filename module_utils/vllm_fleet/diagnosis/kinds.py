# SPDX-License-Identifier: Apache-2.0
"""The table of kinds: what a traceback is where no row knows its message. Data; families.py reads it. Pure.

A kind has one class and one explanation, and signs by which it is known. The order counts: the first sign that fits
decides. Sure kinds come first, and what is special comes before what is general.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..common.failure import FailureClass
from . import explain_image, explain_kernels, explain_model, explain_node, explain_options
from .phrases import Explain

#: Libraries by the paths of their files. Frames of others (Python's own, PyTorch's operators) do not decide.
LIBRARIES: tuple[tuple[str, str], ...] = (
    ("aiter", r"/aiter(?:_meta)?/|/vllm/_aiter_ops\.py"),
    ("triton", r"/triton(?:_kernels)?/"),
    ("inductor", r"/torch/_inductor/|/vllm/compilation/"),
    ("dynamo", r"/torch/_(?:dynamo|functorch|export)/|/torch/fx/"),
    ("c10d", r"/torch/distributed/|/vllm/distributed/(?!kv_transfer/)"),
    ("hub", r"/huggingface_hub/|/hf_xet|/requests/|/httpx/|/httpcore/|/urllib3/|/aiohttp/|/modelscope/"),
    ("transformers", r"/transformers/|/tokenizers/|/transformers_modules/|/mistral_common/|/sentencepiece/"),
    ("safetensors", r"/safetensors/|/runai_model_streamer/|/fastsafetensors/"),
    ("ray", r"/ray/"),
    ("lora", r"/vllm/lora/(?!ops/|layers|punica)"),
    (
        "kernels",
        r"/vllm/(?:_custom_ops\.py|_rocm_ops|(?:v1/)?attention/|model_executor/layers/(?:fused_moe|quantization|mamba|fla"
        r"|attention|activation|layernorm)|kernels/)|/flash_attn|/flydsl/|/tilelang/|/quark/|/flashinfer/|/mori/|/deep_ep/",
    ),
    ("loader", r"/vllm/model_executor/(?:model_loader/|parameter\.py|layers/(?:linear|vocab_parallel_embedding))"),
    ("model", r"/vllm/(?:model_executor/models|models)/"),
    (
        "config",
        r"/vllm/(?:config/|config\.py|distributed/kv_transfer/|engine/arg_utils|platforms/|entrypoints/|transformers_utils/|tokenizers/|multimodal/"
        r"|renderers/|reasoning/|tool_parsers/)",
    ),
)

#: Where a kind stands among the ranks of rows: before all of them; after what they know to be a cause or a complaint;
#: after consequences too.
SURE, GUESS, LAST = 0.0, 1.2, 2.1
#: The name of a module's own code where an import runs it; elsewhere Python writes <module>.
IMPORTED = "<import>"


@dataclass(frozen=True)
class Sign:
    """What an exception must have; an empty field asks for nothing.

    ``library``: one of these, the innermost of its frames. ``type`` and ``function`` are patterns of the whole
    name, the function any of the last eight; ``words`` is searched.
    """

    library: str = ""
    type: str = ""
    function: str = ""
    words: str = ""


@dataclass(frozen=True)
class Kind:
    """One class and its explanation, with the signs that show it; ``weight`` is a row's rank."""

    class_: FailureClass
    explain: Explain
    signs: tuple[Sign, ...]
    weight: float = GUESS


#: Functions that put a checkpoint's tensors into a model's parameters.
_LOADING = (
    r"load_weights?|weight_loader|load_\w*weights?|_load_\w+|load_(?:column|row|merged|qkv)\w*|get_expert_weight\w*"
)
#: Functions that run a kernel.
_RUNNING = r"process_weights_after_loading|create_weights|apply|forward\w*|\w*kernel\w*"
_BROKEN_IMPORT = (
    r"No module named|cannot import name|undefined symbol|cannot open shared object file|DLL load failed|GLIBC(?:XX)?_"
    r"|requires? .*(?:pip install|to be installed)|[Pp]lease (?:pip )?install|pip install |is required to"
    r"|are? not (?:be )?found in your environment|kernels? not (?:found|installed)|\bto install \w+"
)
_MISSING_OP = (
    r"'_OpNamespace' '\w+' object has no attribute|operator \S+::\S+ does not exist|has no attribute '_C'"
    r"|module '[\w.]+' has no attribute|hip runtime failed to load|Could not (?:find|load) (?:(?:the )?library|lib\w+)"
    r"|Failed to (?:import|load) .*(?:\.so|_C\b)|incompatible function arguments|unexpected keyword argument"
    r"|Failed to find C compiler|Python\.h|/(?:gcc|cc|clang|hipcc)\b[^\n]*non-zero exit"
    r"|takes \d+ positional arguments? but|version mismatch|partially initialized module|name '\w+' is not defined"
)
_NO_KERNEL = (
    r"(?i)not support|unsupported|requires? (?:a )?(?:gfx|compute capability|CDNA|MI\d)|invalid or not|out of resource"
    r"|no (?:valid|suitable|supported|available|compatible)|\bno \w[\w ]* backend|cannot get heuristic|not implemented"
    r"|could not (?:find|get)|cannot (?:find|select)|must be|only support|is not available|not divisible|ninja build"
    r"|build \S* ?failed"
)
_NO_ATTENTION = (
    r"(?i)\b(?:unsupported|no common|no (?:valid|suitable|compatible)) [^\n:]*\b(?:attention|block size|kv.cache)"
    r"|\battention\b[^\n:]*\b(?:is|are) not supported"
)
_NETWORK = (
    r"(?i)CAS service|Data processing error|ConnectionError|ReadTimeout|ConnectTimeout|IncompleteRead|ChunkedEncoding"
    r"|Consistency check failed|\b(?:429|5\d\d) (?:Client|Server) Error|Max retries exceeded|RemoteDisconnected"
    r"|Connection (?:reset|aborted|refused|broken)|ProtocolError|SSLError|ProxyError|RemoteProtocolError|NameResolution"
    r"|Temporary failure in name resolution|timed? ?out|Background writer channel closed|Network is unreachable"
)
_KERNEL_TYPES = (
    r"AssertionError|NotImplementedError|RuntimeError|ValueError|CompilationError|OutOfResources|PassManagerError"
    r"|CalledProcessError|TypeError|KeyError|IndexError|AttributeError|Exception|MLIRError|CompileTimeAssertionFailure"
)
_STALE = (
    r"file too short|invalid ELF header|pickle data was truncated|Ran out of input|invalid load key|bad marshal data"
)
_ADVICE = (
    r"(?i)(?:(?:please|try|consider)\b[^\n]{0,80}\b(?:reduc|increas|decreas|lower|set|enabl|disabl|us)\w*"
    r"|[.!;:] (?:reduce|increase|decrease|lower|raise|set|enable|disable|use))\b[^\n]{0,80}\b[a-z]+_[a-z]+"
)

KINDS: tuple[Kind, ...] = (
    Kind(
        FailureClass.COMPILE_CACHE,
        explain_image.compile_cache,
        (
            Sign(
                "inductor triton",
                r"UnpicklingError|EOFError|JSONDecodeError|BadZipFile|UnicodeDecodeError|ModuleNotFoundError|FileNotFoundError",
                r"(?i).*(?:load|read|get|deserial|unpickl|lookup|candidates|decompress|cache|parse|hash|optimized_call).*",
                r"(?!.*No module named '(?:triton|torch|vllm)\b)(?!.*(?:hipcc|clang|ld\.lld|gcc|cc1))",
            ),
            Sign("inductor aiter triton", words=_STALE),
            # AITER's tables and locks in /tmp: its processes write them at the same time
            Sign("aiter", r"EmptyDataError|ParserError|JSONDecodeError|FileExistsError|FileNotFoundError|EOFError"),
        ),
        SURE,
    ),
    Kind(
        FailureClass.FILE_PERMISSION,
        explain_node.file_permission,
        (
            Sign(type="PermissionError"),
            Sign(words=r"\[Errno (?:1|13|30)\]|Permission denied|Read-only file system|\bPermissionError at\b"),
        ),
    ),
    Kind(
        FailureClass.HOST_LIMITS,
        explain_node.host_limits,
        (
            Sign(
                words=r"can't start new thread|\[Errno (?:11|23|24)\]|Too many open files"
                r"|Resource temporarily unavailable|pthread_create|uv_thread_create|RLIMIT_\w+|ulimit"
            ),
        ),
    ),
    Kind(
        FailureClass.BROKEN_IMAGE,
        explain_image.broken,
        (
            Sign(
                type=r"ImportError|ModuleNotFoundError|InductorError|BackendCompilerFailed|RuntimeError|OSError|ValueError"
                r"|Exception|AssertionError",
                words=_BROKEN_IMPORT,
            ),
            Sign(type=r"ImportError|ModuleNotFoundError|LibraryNotFound\w*"),
        ),
    ),
    Kind(
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        explain_model.newer_files,
        (
            Sign(
                type="AttributeError",
                words=r"'\w*(?:Config|Tokenizer\w*|Processor)' object has no attribute"
                r"|has no attribute '(?:all_special|rope_)",
            ),
            Sign(type=r"StrictDataclass\w*"),
            # the processor or tokenizer of these files is not the one that vLLM's code for the model takes
            Sign("config transformers", r"TypeError|AttributeError|KeyError", r"\w*(?:processor|tokenizer)\w*"),
        ),
    ),
    Kind(
        FailureClass.BROKEN_IMAGE,
        explain_image.broken,
        (
            # a package that cannot be imported, whatever it says
            Sign(type=r"TypeError|AttributeError|NameError|SyntaxError", function=IMPORTED),
            Sign(words=_MISSING_OP),
        ),
    ),
    Kind(
        FailureClass.WEIGHTS_CORRUPT,
        explain_node.unreadable,
        (
            Sign(
                type=r"OSError|RuntimeError|SafetensorError",
                words=r"\[Errno (?:5|107|116)\]|\(os error (?:5|107|116)\)|Input/output error|Stale file handle"
                r"|Transport endpoint is not connected",
            ),
        ),
    ),
    Kind(
        FailureClass.BAD_ARGUMENT,
        explain_options.certificate,
        (
            Sign(
                type=r"FileNotFoundError|OSError|SSLError",
                function=r"create_ssl_context|load_cert_chain|load_verify_locations",
            ),
            Sign(words=r"(?:TLS CA certificate bundle|TLS certificate file|TLS key file), invalid path"),
        ),
    ),
    Kind(
        FailureClass.DOWNLOAD_FAILED,
        explain_model.download_failed,
        (
            Sign("hub loader transformers safetensors", words=_NETWORK),
            Sign(
                "hub", r"\w*(?:HTTP|Connection|Timeout|Protocol|Network|Read|Xet|Hub|Request)\w*|RuntimeError|OSError"
            ),
        ),
    ),
    Kind(
        FailureClass.COMPILE_CACHE,
        explain_image.compile_cache,
        (
            Sign(
                "inductor",
                r"AssertionError|KeyError|TypeError|AttributeError|RuntimeError|IndexError|ValueError",
                r"load\w*|deserialize\w*|optimized_call|copy_misaligned_inputs|\w*from_cache\w*",
                r"(?s)\A(?!.*(?:HIP|out of memory|out of resource))",
            ),
        ),
    ),
    Kind(
        FailureClass.KERNEL_UNSUPPORTED,
        explain_kernels.unsupported,
        (
            Sign("aiter triton", _KERNEL_TYPES, _RUNNING),
            Sign("kernels", r"AssertionError|NotImplementedError", rf"{_RUNNING}|select\w*|__init__"),
        ),
    ),
    Kind(
        FailureClass.WEIGHTS_MISMATCH,
        explain_model.weights_mismatch,
        (
            Sign(
                "loader model kernels safetensors",
                r"KeyError|AssertionError|ValueError|RuntimeError|AttributeError|IndexError|TypeError",
                _LOADING,
            ),
            Sign(
                words=r"There is no module or parameter named|not initialized from checkpoint|size mismatch for"
                r"|Attempted to load weight .* into parameter|Tried to load weights of size|loaded_weight"
            ),
        ),
    ),
    Kind(
        FailureClass.KERNEL_UNSUPPORTED,
        explain_kernels.unsupported,
        (Sign("aiter triton", _KERNEL_TYPES), Sign("kernels", _KERNEL_TYPES, words=_NO_KERNEL)),
    ),
    Kind(FailureClass.KERNEL_UNSUPPORTED, explain_kernels.not_compiled, (Sign("inductor dynamo"),)),
    Kind(
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        explain_model.newer_files,
        (
            Sign(
                "transformers",
                r"ValueError|KeyError|AttributeError|TypeError|ImportError|StrictDataclass\w*|OSError|Exception",
            ),
            Sign("model", r"KeyError|AttributeError|TypeError|NotImplementedError"),
            # the model's code knows other versions or variants of it
            Sign(
                "model",
                "ValueError",
                words=r"(?i)\bonly supports?\b|\bunsupported\b|\bnot (?:yet |currently )?supported\b",
            ),
        ),
    ),
    Kind(
        FailureClass.KERNEL_UNSUPPORTED,
        explain_kernels.unsupported,
        (
            # hipBLAS, rocBLAS and MIOpen: PyTorch's own operators call them
            Sign(words=r"HIPBLAS_STATUS_(?!ALLOC)\w+|rocblas_status\w*|miopenStatus\w+|hipErrorNotSupported"),
            # the engine itself found two parts of attention that do not go together
            Sign(type=r"ValueError|NotImplementedError|AssertionError|RuntimeError", words=_NO_ATTENTION),
        ),
    ),
    Kind(
        FailureClass.COLLECTIVE_INIT,
        explain_node.collective,
        (Sign("ray", r"ConnectionError|RuntimeError|RaySystemError", words=r"\bRay (?:instance|cluster)\b|\bGCS\b"),),
        LAST,
    ),
    Kind(
        FailureClass.BAD_ARGUMENT,
        explain_options.other_address,
        (
            Sign(
                type=r"OSError|gaierror|ZMQError|RuntimeError|DistNetworkError",
                words=r"[Cc]annot assign requested address|Name or service not known|nodename nor servname",
            ),
        ),
    ),
    Kind(
        FailureClass.COLLECTIVE_INIT,
        explain_node.collective,
        (Sign("c10d", r"RuntimeError|Dist\w+|ValueError|TimeoutError|ConnectionError|ZMQError"),),
        LAST,
    ),
    Kind(
        FailureClass.BAD_ARGUMENT,
        explain_options.chat_template,
        (Sign(type=r"Template\w*Error|UndefinedError"),),
    ),
    Kind(
        FailureClass.BAD_ARGUMENT,
        explain_options.adapter,
        (
            Sign(
                "lora",
                r"ValueError|KeyError|FileNotFoundError|HFValidationError|RuntimeError",
                r"\w*load\w*|validate_\w+|from_\w+",
            ),
        ),
    ),
    Kind(
        FailureClass.BAD_ARGUMENT,
        explain_options.refused_by_code,
        (Sign("config", r"ValueError|AssertionError|NotImplementedError|ValidationError|TypeError", words=r"\w: \S"),),
    ),
    Kind(
        FailureClass.BAD_ARGUMENT,
        explain_options.not_by_model,
        (
            Sign(
                type=r"ValueError|RuntimeError|NotImplementedError|AssertionError",
                words=r"(?i)\bmodel (?:does not|doesn't) support\b|\bnot supported (?:by|for) (?:this|the) model",
            ),
        ),
    ),
    Kind(
        # vLLM's own advice with the name of an argument
        FailureClass.BAD_ARGUMENT,
        explain_options.refused_by_code,
        (Sign(type=r"ValueError|AssertionError|RuntimeError|NotImplementedError", words=_ADVICE),),
    ),
)
