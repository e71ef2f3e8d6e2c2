# SPDX-License-Identifier: Apache-2.0
"""What a traceback is by its kind, where no row of the table knows its message. Pure.

The kind is the exception's type, the innermost library among its frames, the functions on the way there, and its
words. Rules are tried in order, for the exception that left the traceback first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..common.failure import FailureClass
from ..vllm.log import Error
from . import explain_image, explain_kernels, explain_model, explain_node, explain_options
from .case import Case, Context, Run
from .phrases import Explain, Words

#: Libraries by the paths of their files. Frames of others (Python's own, PyTorch's operators) do not decide.
_LIBRARIES: tuple[tuple[str, str], ...] = (
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
_FRAME = re.compile(r'File "(?P<path>[^"]+)", line \d+(?:, in (?P<function>\S+))?')

#: The compiler's own exception before the one that it met.
_COMPILER = re.compile(r"\A[\w.]*(?:InductorError|BackendCompilerFailed|LoweringException): (?=[\w.]+: )")

#: Where a kind stands among the ranks of rows: after what they know to be a cause or a complaint, before consequences.
GUESS, CONSEQUENCE = 1.2, 2.1

#: Functions that put a checkpoint's tensors into a model's parameters.
_LOADING = (
    r"load_weights?|weight_loader|load_\w*weights?|_load_\w+|load_(?:column|row|merged|qkv)\w*|get_expert_weight\w*"
)


@dataclass(frozen=True)
class Kind:
    """What is known of an exception: type without its module, library, functions from the outermost in, words."""

    type: str
    library: str
    functions: tuple[str, ...]
    paths: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Found:
    """A class by its kind. ``words`` explains it, ``frames`` prove it; ``weight`` is a row's rank."""

    class_: FailureClass
    words: Callable[[], Words]
    weight: float
    frames: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Rule:
    class_: FailureClass
    explain: Explain
    types: str = ""
    libraries: tuple[str, ...] = ()
    functions: str = ""
    words: str = ""
    sure: bool = False
    importing: bool = False

    def fits(self, kind: Kind) -> bool:
        return (
            (not self.types or re.fullmatch(self.types, kind.type) is not None)
            and (not self.libraries or kind.library in self.libraries)
            and (not self.functions or any(re.fullmatch(self.functions, name) for name in kind.functions[-8:]))
            and (not self.words or re.search(self.words, kind.text) is not None)
            and (not self.importing or (len(kind.functions) > 1 and kind.functions[-1] == "<module>"))
        )


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

_RULES: tuple[_Rule, ...] = (
    _Rule(
        FailureClass.COMPILE_CACHE,
        explain_image.compile_cache,
        libraries=("inductor", "triton"),
        types=r"UnpicklingError|EOFError|JSONDecodeError|BadZipFile|UnicodeDecodeError|ModuleNotFoundError|FileNotFoundError",
        words=r"(?!.*No module named '(?:triton|torch|vllm)\b)(?!.*(?:hipcc|clang|ld\.lld|gcc|cc1))",
        functions=r"(?i).*(?:load|read|get|deserial|unpickl|lookup|candidates|decompress|cache|parse|hash|optimized_call).*",
        sure=True,
    ),
    _Rule(
        FailureClass.COMPILE_CACHE,
        explain_image.compile_cache,
        libraries=("inductor", "aiter", "triton"),
        words=r"file too short|invalid ELF header|pickle data was truncated|Ran out of input|invalid load key"
        r"|bad marshal data",
        sure=True,
    ),
    _Rule(
        # AITER's tables and locks in /tmp: its processes write them at the same time
        FailureClass.COMPILE_CACHE,
        explain_image.compile_cache,
        libraries=("aiter",),
        types=r"EmptyDataError|ParserError|JSONDecodeError|FileExistsError|FileNotFoundError|EOFError",
        sure=True,
    ),
    _Rule(FailureClass.FILE_PERMISSION, explain_node.file_permission, types="PermissionError"),
    _Rule(
        FailureClass.FILE_PERMISSION,
        explain_node.file_permission,
        words=r"\[Errno (?:1|13|30)\]|Permission denied|Read-only file system|\bPermissionError at\b",
    ),
    _Rule(
        FailureClass.HOST_LIMITS,
        explain_node.host_limits,
        words=r"can't start new thread|\[Errno (?:11|23|24)\]|Too many open files|Resource temporarily unavailable"
        r"|pthread_create|uv_thread_create|RLIMIT_\w+|ulimit",
    ),
    _Rule(
        FailureClass.BROKEN_IMAGE,
        explain_image.broken,
        types=r"ImportError|ModuleNotFoundError|InductorError|BackendCompilerFailed|RuntimeError|OSError|ValueError|Exception"
        r"|AssertionError",
        words=_BROKEN_IMPORT,
    ),
    _Rule(FailureClass.BROKEN_IMAGE, explain_image.broken, types=r"ImportError|ModuleNotFoundError|LibraryNotFound\w*"),
    _Rule(
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        explain_model.newer_files,
        types="AttributeError",
        words=r"'\w*(?:Config|Tokenizer\w*|Processor)' object has no attribute|has no attribute '(?:all_special|rope_)",
    ),
    _Rule(FailureClass.UNSUPPORTED_ARCHITECTURE, explain_model.newer_files, types=r"StrictDataclass\w*"),
    _Rule(
        # the processor or tokenizer of these files is not the one that vLLM's code for the model takes
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        explain_model.newer_files,
        libraries=("config", "transformers"),
        types=r"TypeError|AttributeError|KeyError",
        functions=r"\w*(?:processor|tokenizer)\w*",
    ),
    _Rule(
        # a package that cannot be imported, whatever it says
        FailureClass.BROKEN_IMAGE,
        explain_image.broken,
        types=r"TypeError|AttributeError|NameError|SyntaxError",
        importing=True,
    ),
    _Rule(FailureClass.BROKEN_IMAGE, explain_image.broken, words=_MISSING_OP),
    _Rule(
        FailureClass.WEIGHTS_CORRUPT,
        explain_node.unreadable,
        types=r"OSError|RuntimeError|SafetensorError",
        words=r"\[Errno (?:5|107|116)\]|\(os error (?:5|107|116)\)|Input/output error|Stale file handle"
        r"|Transport endpoint is not connected",
    ),
    _Rule(
        FailureClass.BAD_ARGUMENT,
        explain_options.certificate,
        types=r"FileNotFoundError|OSError|SSLError",
        functions=r"create_ssl_context|load_cert_chain|load_verify_locations",
    ),
    _Rule(
        FailureClass.BAD_ARGUMENT,
        explain_options.certificate,
        words=r"(?:TLS CA certificate bundle|TLS certificate file|TLS key file), invalid path",
    ),
    _Rule(
        FailureClass.DOWNLOAD_FAILED,
        explain_model.download_failed,
        libraries=("hub", "loader", "transformers", "safetensors"),
        words=_NETWORK,
    ),
    _Rule(
        FailureClass.DOWNLOAD_FAILED,
        explain_model.download_failed,
        libraries=("hub",),
        types=r"\w*(?:HTTP|Connection|Timeout|Protocol|Network|Read|Xet|Hub|Request)\w*|RuntimeError|OSError",
    ),
    _Rule(
        FailureClass.COMPILE_CACHE,
        explain_image.compile_cache,
        libraries=("inductor",),
        functions=r"load\w*|deserialize\w*|optimized_call|copy_misaligned_inputs|\w*from_cache\w*",
        types=r"AssertionError|KeyError|TypeError|AttributeError|RuntimeError|IndexError|ValueError",
        words=r"(?s)\A(?!.*(?:HIP|out of memory|out of resource))",
    ),
    _Rule(
        FailureClass.KERNEL_UNSUPPORTED,
        explain_kernels.unsupported,
        libraries=("aiter", "triton"),
        types=_KERNEL_TYPES,
        functions=r"process_weights_after_loading|create_weights|apply|forward\w*|\w*kernel\w*",
    ),
    _Rule(
        FailureClass.KERNEL_UNSUPPORTED,
        explain_kernels.unsupported,
        libraries=("kernels",),
        types=r"AssertionError|NotImplementedError",
        functions=r"process_weights_after_loading|create_weights|apply|forward\w*|\w*kernel\w*|select\w*|__init__",
    ),
    _Rule(
        FailureClass.WEIGHTS_MISMATCH,
        explain_model.weights_mismatch,
        libraries=("loader", "model", "kernels", "safetensors"),
        types=r"KeyError|AssertionError|ValueError|RuntimeError|AttributeError|IndexError|TypeError",
        functions=_LOADING,
    ),
    _Rule(
        FailureClass.WEIGHTS_MISMATCH,
        explain_model.weights_mismatch,
        words=r"There is no module or parameter named|not initialized from checkpoint"
        r"|size mismatch for|Attempted to load weight .* into parameter"
        r"|Tried to load weights of size|loaded_weight",
    ),
    _Rule(
        FailureClass.KERNEL_UNSUPPORTED,
        explain_kernels.unsupported,
        libraries=("aiter", "triton"),
        types=_KERNEL_TYPES,
    ),
    _Rule(
        FailureClass.KERNEL_UNSUPPORTED,
        explain_kernels.unsupported,
        libraries=("kernels",),
        types=_KERNEL_TYPES,
        words=_NO_KERNEL,
    ),
    _Rule(
        FailureClass.KERNEL_UNSUPPORTED,
        explain_kernels.not_compiled,
        libraries=("inductor", "dynamo"),
    ),
    _Rule(
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        explain_model.newer_files,
        libraries=("transformers",),
        types=r"ValueError|KeyError|AttributeError|TypeError|ImportError|StrictDataclass\w*|OSError|Exception",
    ),
    _Rule(
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        explain_model.newer_files,
        libraries=("model",),
        types=r"KeyError|AttributeError|TypeError|NotImplementedError",
    ),
    _Rule(
        # the model's code knows other versions or variants of it
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        explain_model.newer_files,
        libraries=("model",),
        types="ValueError",
        words=r"(?i)\bonly supports?\b|\bunsupported\b|\bnot (?:yet |currently )?supported\b",
    ),
    _Rule(
        # hipBLAS, rocBLAS and MIOpen: PyTorch's own operators call them
        FailureClass.KERNEL_UNSUPPORTED,
        explain_kernels.unsupported,
        words=r"HIPBLAS_STATUS_(?!ALLOC)\w+|rocblas_status\w*|miopenStatus\w+|hipErrorNotSupported",
    ),
    _Rule(
        FailureClass.COLLECTIVE_INIT,
        explain_node.collective,
        libraries=("ray",),
        types=r"ConnectionError|RuntimeError|RaySystemError",
        words=r"\bRay (?:instance|cluster)\b|\bGCS\b",
    ),
    _Rule(
        FailureClass.BAD_ARGUMENT,
        explain_options.other_address,
        types=r"OSError|gaierror|ZMQError|RuntimeError|DistNetworkError",
        words=r"[Cc]annot assign requested address|Name or service not known|nodename nor servname",
    ),
    _Rule(
        FailureClass.COLLECTIVE_INIT,
        explain_node.collective,
        libraries=("c10d",),
        types=r"RuntimeError|Dist\w+|ValueError|TimeoutError|ConnectionError|ZMQError",
    ),
    _Rule(
        FailureClass.BAD_ARGUMENT,
        explain_options.chat_template,
        types=r"Template\w*Error|UndefinedError",
    ),
    _Rule(
        FailureClass.BAD_ARGUMENT,
        explain_options.adapter,
        libraries=("lora",),
        types=r"ValueError|KeyError|FileNotFoundError|HFValidationError|RuntimeError",
        functions=r"\w*load\w*|validate_\w+|from_\w+",
    ),
    _Rule(
        FailureClass.BAD_ARGUMENT,
        explain_options.refused_by_code,
        libraries=("config",),
        types=r"ValueError|AssertionError|NotImplementedError|ValidationError|TypeError",
        words=r"\w+: \S",
    ),
    _Rule(
        FailureClass.BAD_ARGUMENT,
        explain_options.not_by_model,
        types=r"ValueError|RuntimeError|NotImplementedError|AssertionError",
        words=r"(?i)\bmodel (?:does not|doesn't) support\b|\bnot supported (?:by|for) (?:this|the) model",
    ),
    _Rule(
        # vLLM's own advice with the name of an argument
        FailureClass.BAD_ARGUMENT,
        explain_options.refused_by_code,
        types=r"ValueError|AssertionError|RuntimeError|NotImplementedError",
        words=r"(?i)(?:(?:please|try|consider)\b[^\n]{0,80}\b(?:reduc|increas|decreas|lower|set|enabl|disabl|us)\w*"
        r"|[.!;:] (?:reduce|increase|decrease|lower|raise|set|enable|disable|use))\b[^\n]{0,80}\b[a-z]+_[a-z]+",
    ),
)


def kind_of(error: Error, number: int, text: str) -> Kind:
    """Return what is known of an exception of a traceback."""
    frames = [match for frame in error.stacks[number] if (match := _FRAME.search(frame))] if error.stacks else []
    paths = tuple(match["path"] for match in frames)
    # An exception may carry another's name: `torch._inductor.exc.InductorError: ImportError: ...`.
    lines = text.split("\n")
    first = lines[1] if lines[0].rstrip().endswith("raised:") and len(lines) > 1 else lines[0]
    head = re.match(r"(?:[\w.]*?)(?P<type>\w+)(?::|$)", _COMPILER.sub("", first))
    library = next((name for path in reversed(paths) if (name := _library(path))), "")
    return Kind(
        head["type"] if head else "",
        library,
        tuple(match["function"] or "" for match in frames),
        paths,
        text,
    )


def _library(path: str) -> str:
    return next((name for name, pattern in _LIBRARIES if re.search(pattern, path)), "")


def of(error: Error, number: int, text: str, run: Run, context: Context) -> Found | None:
    """Return the class of an exception by its kind, or None."""
    kind = kind_of(error, number, text)
    rule = next((rule for rule in _RULES if rule.fits(kind)), None)
    if rule is None:
        return None
    match = re.match("", text)  # no group: the words are read by Case.said
    if match is None:
        return None
    case = Case(match, text, run, context, error, number)
    frame = [error.frames[number]] if error.frames[number] else []
    if not run.ready:
        weight = 0.0 if rule.sure else CONSEQUENCE if rule.class_ == FailureClass.COLLECTIVE_INIT else GUESS
        return Found(rule.class_, lambda: rule.explain(case), weight, frame)
    if rule.class_ != FailureClass.KERNEL_UNSUPPORTED:
        return None
    return Found(FailureClass.ENGINE_DIED, lambda: explain_kernels.died(case), GUESS, frame)
