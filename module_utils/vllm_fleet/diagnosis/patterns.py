# SPDX-License-Identifier: Apache-2.0
"""The table of known failures: one row a class, the patterns that match it, the words for cause and remedy. Pure.

Fragments are vLLM 0.32.0's (the file is named at the pattern), and PyTorch's, huggingface_hub's, transformers' and
Docker's. How a log is searched, and what may count as a root cause, is in diagnose.py; the words are in
explain_*.py, by what the failure is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..common.failure import FailureClass
from . import explain_ends, explain_gpu_memory, explain_gpus, explain_model, explain_node, explain_options
from .phrases import Explain

#: A Hub id within a URL such as https://huggingface.co/api/models/meta-llama/Llama-3.1-8B/revision/main
_URL = r"https?://[^/\s]+/(?:api/models/)?(?P<repo>[\w.-]+/[\w.-]*\w)"


class Rule(NamedTuple):
    """Patterns, searched in order with ``^`` and ``$`` at each line, and the function that explains a match."""

    explain: Explain
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One failure class, ``meaning`` in one line.

    ``rank`` orders matches of different errors in one log: 0 names a cause, 1 is a general complaint with perhaps a
    cause behind it, 2 is a consequence. With ``serving`` the row also holds after the server was ready. A class without
    rules is found by how the start ended.
    """

    class_: FailureClass
    meaning: str
    rules: tuple[Rule, ...] = ()
    rank: int = 0
    serving: bool = False


# The table -------------------------------------------------------------------------------------------------------


def _on(explain: Explain, *patterns: str) -> Rule:
    return Rule(explain, patterns)


ROWS: tuple[Row, ...] = (
    Row(
        FailureClass.GPU_MEMORY_TAKEN,
        "Other processes hold GPU memory that the server needs.",
        (
            _on(
                explain_gpu_memory.memory_taken,
                # v1/worker/utils.py request_memory; v1/worker/cpu_worker.py, where the flag means CPU memory
                r"(?:Free memory on device|Available memory on node) ?(?P<device>[\w:]*) ?\((?P<free>[\d.]+)/"
                r"(?P<total>[\d.]+) GiB\) on startup is less than desired (?P<kind>GPU|CPU) memory utilization "
                r"\((?P<want>[\d.]+), (?P<need>[\d.]+) GiB\)",
                r"Free memory on device ?(?P<device>[\w:]*) ?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is "
                r"less than the engine's budget[^(]*\((?P<want>[\d.]+), (?P<need>[\d.]+) GiB\)",
            ),
            _on(
                explain_gpu_memory.memory_moved,  # v1/worker/gpu_worker.py
                r"Error in memory profiling\. Initial free memory (?P<before>[\d.]+) GiB, "
                r"current free memory (?P<after>[\d.]+) GiB",
            ),
        ),
    ),
    Row(
        FailureClass.CONTEXT_TOO_LONG,
        "The wanted context is longer than the model supports.",
        (
            _on(
                explain_gpu_memory.context_too_long,  # config/model.py
                r"User-specified max_model_len \((?P<wanted>[\d.]+)\) is greater than the derived max_model_len "
                r"\([\w. ]+=(?P<longest>\d[\d.]*)",
            ),
        ),
    ),
    Row(
        FailureClass.KV_CACHE_TOO_SMALL,
        "The GPU memory left next to the weights is too small for the KV cache.",
        (
            _on(
                explain_gpu_memory.cache_below_context,
                # v1/core/kv_cache_utils.py _check_enough_kv_cache_memory
                r"max seq len \((?P<wanted>\d+)\), \((?P<need>[\d.]+) GiB KV cache is needed, which is larger than the "
                r"available KV cache memory \((?P<have>-?[\d.]+) GiB\)\."
                r"(?:[^\n]*?estimated maximum model length is (?P<longest>\d+))?",
                # releases to v0.8
                r"max seq len \((?P<wanted>\d+)\) is larger than the maximum number of tokens that can be stored in KV "
                r"cache \((?P<longest>\d+)\)",
            ),
            _on(
                explain_gpu_memory.no_cache,
                r"No available memory for the cache blocks",
                r"Cannot auto-fit max_model_len: not enough GPU memory",
            ),
            _on(
                explain_gpu_memory.cpu_cache,  # v1/worker/cpu_worker.py
                r"Available memory on node \S+ \((?P<free>[\d.]+)/[\d.]+ GiB\) on kv cache allocation is less than "
                r"requested memory for kv \((?P<need>[\d.]+)",
            ),
        ),
    ),
    Row(
        FailureClass.GATED_MODEL,
        "The model's owner grants access to each person, and the token has no access.",
        (
            _on(
                explain_model.gated,
                rf"Cannot access gated repo for url {_URL}",  # huggingface_hub utils/_http.py
                rf"trying to access a gated repo[\s\S]*?{_URL}",  # transformers utils/hub.py
                r"Access to model (?P<repo>\S+) is restricted",
                r"Cannot access gated repo|trying to access a gated repo|awaiting a review from the repo authors",
            ),
        ),
    ),
    Row(
        FailureClass.REMOTE_CODE_REFUSED,
        "The model needs Python code from its repository, and this code is not allowed to run.",
        (
            _on(
                explain_model.remote_code,
                r"contains custom code which must be executed",  # transformers dynamic_module_utils.py
                r"requires you to execute the (?:configuration|modeling) file",
                # transformers_utils/config.py, tokenizers/hf.py
                r"Failed to load the (?:model config|tokenizer)\. If the (?:model|tokenizer) is a custom",
                r"(?:pass the argument|consider setting) `trust_remote_code=True`",
            ),
        ),
    ),
    Row(
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        "This vLLM, or this build of it, cannot run this kind of model, weights or GPU.",
        (
            # model_executor/models/registry.py _raise_for_unsupported
            _on(
                explain_model.unknown_model,
                r"Model architectures \['?(?P<arch>[^\]]*?)'?\] are not supported for now",
                r"Model architecture (?P<arch>\S+) is not supported in-tree anymore",
                r"model type `(?P<arch>[^`]+)` but Transformers does not recognize this architecture",
            ),
            _on(explain_model.broken_model, r"Model architectures \['?(?P<arch>[^\]]*?)'?\] failed to be inspected"),
            _on(
                explain_model.dropped_model,
                r"Model architecture (?P<arch>\S+) was supported in vLLM until v(?P<last>[\w.]*\w)",
            ),
            # config/model.py, platforms/interface.py
            _on(
                explain_model.quantisation,
                r"Unknown quantization method: (?P<method>\w+)",
                r"(?P<method>\w+) quantization is currently not supported in",
            ),
            _on(explain_model.other_gpu, r"no kernel image is available for execution|invalid device function"),  # HIP
        ),
    ),
    Row(
        FailureClass.BAD_PARALLELISM,
        "The model cannot be split into that many parts.",
        (
            _on(
                explain_gpus.heads,  # config/model.py verify_with_parallel_config
                r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size "
                r"\((?P<size>\d+)\)",
            ),
            _on(
                explain_gpus.dimension, r"AssertionError: (?P<number>\d+) is not divisible by (?P<by>\d+)"
            ),  # distributed/utils.py
            _on(explain_gpus.no_pipeline, r"Pipeline parallelism is not supported for this model"),
            _on(
                explain_gpus.no_ray, r"current platform (?P<platform>\w+) does not support ray"
            ),  # v1/executor/ray_utils.py
            _on(
                explain_gpus.quantised_split,  # layers/quantization/
                r"is not divisible by (?:weight quantization )?(?:block_[nk]|group_size|self\.group_size|min_thread)",
                r"not aligned with the quantized weight shape",
            ),
            _on(
                explain_gpus.uneven_nodes,  # config/parallel.py
                r"nnodes \(\d+\) must be divisible by [^\n]*|tp_size=\d+ must be divisible by dcp_size=\d+",
            ),
        ),
    ),
    Row(
        FailureClass.NOT_ENOUGH_GPUS,
        "The server needs more GPUs than the container has.",
        (
            _on(
                explain_gpus.few_gpus,
                r"local rank (?P<rank>\d+) is out of bounds for (?P<have>\d+) devices",  # v1/worker/gpu_worker.py
                r"local_world_size \((?P<wants>\d+)\)[^\n]* count \((?P<have>\d+)\)",
                # config/parallel.py, not on ROCm
                r"World size \((?P<wants>\d+)\) is larger than the number of available GPUs \((?P<have>\d+)\)",
                r"local_world_size \((?P<wants>\d+)\)[^\n]*visible devices \((?P<have>\d+)\)",
                r"local_rank (?P<rank>\d+) is out of bounds|invalid device ordinal",
                r"number of required GPUs exceeds the total number of available GPUs",  # v1/executor/ray_utils.py
            ),
        ),
    ),
    Row(
        FailureClass.GPU_PERMISSION,
        "The container's process may not open the GPU devices.",
        (
            _on(explain_gpus.permission, r"/dev/(?:kfd|dri/\S*)\W?(?: read-write)?: Permission denied"),  # ROCm runtime
            _on(explain_gpus.no_group, r"Unable to find group (?P<group>[^\s:]+)"),  # Docker
        ),
    ),
    Row(
        FailureClass.DRIVER_MISSING,
        "The GPU driver is not loaded, so there are no devices to pass.",
        (
            _on(
                explain_gpus.driver,
                r'adding custom device "(?P<device>/dev/(?:kfd|dri)[^"]*)": no such file',  # Docker
                r"ROCk module is NOT loaded",
            ),
            _on(explain_gpus.no_cdi, r"unresolvable CDI devices (?P<device>\S+)"),
        ),
    ),
    Row(
        FailureClass.PORT_TAKEN,
        "Another process listens on the server's port.",
        (
            _on(
                explain_options.port,
                # Docker: `Bind for 0.0.0.0:8000 failed: port is already allocated`, `listen tcp4 0.0.0.0:8000: bind:
                # address already in use`, `failed to bind host port 0.0.0.0:8000/tcp: address already in use`
                r"(?:Bind for|bind host port(?: for)?|listen tcp[46]?) \S*?:(?P<port>\d+)(?!\d|\.)\S*?(?: failed)?:? "
                r"(?:port is already allocated|(?:bind: )?address already in use)",
                r"failed to (?:bind to|listen on)[^\n]*?:(?P<port>\d+) \(errno: 98",  # PyTorch TCPStore
                r"port: (?P<port>\d+)[^\n]*EADDRINUSE",
                r"port is already allocated|\[Errno 98\]|[Aa]ddress already in use|EADDRINUSE",
            ),
        ),
    ),
    Row(
        FailureClass.IMAGE_MISSING,
        "The image is not on the node.",
        (
            _on(
                explain_options.image,
                r"[Nn]o such image: (?P<image>\S+)",
                r"pull access denied for (?P<image>[^,\s]+)",
                r"manifest for (?P<image>\S+) not found",
                r"manifest unknown|repository does not exist",
            ),
        ),
    ),
    Row(
        FailureClass.SHARED_MEMORY,
        "Shared memory (/dev/shm) is too small.",
        (
            _on(
                lambda _: explain_node.shared_memory(),
                r"Error while creating shared memory segment",  # NCCL, RCCL
                r"No space left on device[^\n]*/dev/shm|(?:/dev/shm|shared memory)[^\n]*No space left on device",
                r"unable to (?:write to|allocate|open)[^\n]*(?:</torch_|shared memory)",  # PyTorch
                # vLLM 0.32.0, recorded: a container with Docker's 64 MiB
                r"Insufficient space in /dev/shm|insufficient shared memory|Bus error|SIGBUS",
                # v1/executor/multiproc_executor.py, v1/utils.py, v1/engine/utils.py: killed by signal 7
                r"died unexpectedly \(exit code: -7\)|died with exit code -7\b|Failed core proc[^\n]*': -7\b",
            ),
        ),
        serving=True,
    ),
    Row(
        FailureClass.HOST_MEMORY,
        "The node, or the container's limit, ran out of main memory.",
        (
            _on(
                lambda case: explain_node.host_memory(case.get("process")),
                # killed by signal 9, as above
                r"Worker proc (?P<process>\S+) died unexpectedly \(exit code: -9\)",
                r"Process (?P<process>\S+) \(PID: \d+\) died with exit code -9\b",
                r"Failed core proc\(s\): \{[^}]*'(?P<process>\w+)': -9\b",
                r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|\[Errno 12\]|[Cc]annot allocate memory",
                r"^MemoryError",
            ),
        ),
        serving=True,
    ),
    Row(
        FailureClass.DISK_FULL,
        "The node's disk is full.",
        (
            _on(
                explain_node.disk,
                r"\[Errno 28\][^\n']*'(?P<path>/[^']+)'",
                r"[Nn]o space left on device|[Dd]isk quota exceeded|\[Errno 28\]|\[Errno 122\]",
            ),
        ),
        serving=True,
    ),
    Row(
        FailureClass.MODEL_TOO_LARGE,
        "The weights, or the working memory next to them, do not fit into GPU memory.",
        (
            _on(
                explain_gpu_memory.out_of_memory,
                # PyTorch
                r"(?:HIP|CUDA) out of memory\. Tried to allocate (?P<asked>[\d.]+ \w+)\. GPU (?P<gpu>\d+) has a total "
                r"capacity of (?P<total>[\d.]+ \w+) of which (?P<left>[\d.]+ \w+) is free",
                r"Failed to load model - not enough GPU memory",  # v1/worker/gpu_model_runner.py
                r"(?:HIP|CUDA) out of memory|OutOfMemoryError|(?:hip|cuda)ErrorOutOfMemory",
                r"HSA_STATUS_ERROR_OUT_OF_RESOURCES",
            ),
        ),
    ),
    Row(
        FailureClass.WEIGHTS_CORRUPT,
        "A weight file is there but cannot be read.",
        (
            # safetensors
            _on(explain_model.corrupt("is cut short"), r"incomplete metadata, file not fully covered"),
            _on(
                explain_model.corrupt("is no safetensors file (often a Git LFS pointer or a saved error page)"),
                r"[Hh]eader ?[Tt]oo ?[Ll]arge|[Ii]nvalid ?[Hh]eader",
            ),
            _on(
                explain_model.corrupt("cannot be read"),
                r"SafetensorError|PytorchStreamReader failed|invalid load key|UnpicklingError",
            ),
        ),
    ),
    Row(
        FailureClass.CACHE_INCOMPLETE,
        "Files of the model are missing on the node.",
        (
            _on(
                explain_model.files_missing,
                # huggingface_hub _snapshot_download.py
                r"is incomplete: (?P<count>\d+) file\(s\) are missing \((?P<files>[^)]*)\)",
                # model_executor/model_loader/default_loader.py
                r"Cannot find any model weights with",
                r"Following weights were not initialized from checkpoint: \{(?P<tensors>[^}]*)",
                r"does not appear to have (?:a|any) files? named (?P<file>[\w.-]*\w)",  # transformers utils/hub.py
                r"No such file or directory: '?\"?(?P<file>[^'\"\n]*(?:/snapshots/|/blobs/|\.safetensors)[^'\"\n]*)",
            ),
        ),
    ),
    Row(
        FailureClass.CACHE_MISS_OFFLINE,
        "The model is not on the node and cannot be downloaded.",
        (
            # huggingface_hub _snapshot_download.py, file_download.py, utils/_http.py
            _on(
                explain_model.not_cached,
                r"outgoing traffic has been disabled|offline mode is enabled|OfflineModeIsEnabled",
            ),
            _on(
                explain_model.not_reached,
                r"LocalEntryNotFoundError|Please check your (?:internet )?connection",
                r"We couldn't connect to '[^']+' to load the files",  # transformers utils/hub.py
            ),
        ),
    ),
    Row(
        FailureClass.MODEL_NOT_FOUND,
        "There is no such model, revision or folder.",
        (
            # huggingface_hub utils/_validators.py, utils/_http.py
            _on(
                explain_model.no_folder,
                r"Repo id must be in the form 'repo_name' or 'namespace/repo_name': '(?P<path>[^']+)'",
            ),
            _on(
                explain_model.no_revision,
                rf"Revision Not Found for url: {_URL}",
                r"Revision Not Found|not a valid git identifier",
            ),
            _on(
                explain_model.no_repo,
                rf"Repository Not Found for url: {_URL}",
                r"(?P<repo>[\w./-]+) is not a local folder and is not a valid model identifier",  # transformers
                r"Repository Not Found|is not a valid model identifier",
            ),
            # transformers_utils/config.py
            _on(explain_model.no_config, r"Invalid repository ID or local directory specified: '(?P<path>[^']+)'"),
        ),
        rank=1,
    ),
    Row(
        FailureClass.BAD_ARGUMENT,
        "A flag, its value, or the container's command is wrong.",
        (
            # argparse, exit code 2
            _on(explain_options.unknown_flag, r": error: unrecognized arguments: (?P<unknown>[^\n]+)"),
            _on(explain_options.refused_value, r": error: argument (?P<flag>[^:\s]+): (?P<why>[^\n]+)"),
            _on(explain_options.refused_arguments, r": error: (?P<why>[^\n]+)"),
            _on(
                explain_options.no_program,
                r'exec: "(?P<program>[^"]+)":',  # Docker
                r"^(?:\S*/)?(?:ba|da)?sh: (?:line )?(?:\d+: )?(?P<program>[^:\n]+): (?:command not found|not "
                r"found|No such"
                r"|[^\n]*cannot execute)",
            ),
            _on(explain_options.no_mount, r"bind source path does not exist: (?P<path>\S+)"),
            _on(
                explain_options.two_lists,  # platforms/rocm.py
                r"HIP_VISIBLE_DEVICES='(?P<hip>[^']*)' vs CUDA_VISIBLE_DEVICES='(?P<cuda>[^']*)'",
            ),
            _on(
                explain_options.no_parser,  # entrypoints/launchers/launcher.py
                r"invalid (?P<what>tool call|reasoning) parser: (?P<parser>\S+) \(chose from \{(?P<choices>[^}]*)",
            ),
            _on(
                explain_options.refused_arguments,
                r"(?P<why>Quantization method specified in the model config \(\w+\) does not match[^\n]*)",
                r"(?P<why>The supplied chat template string \([^)]+\) appears path-like, but doesn't exist)",
                r"validation errors? for \w+\n\s*Value error, (?P<why>[^\n]+?)(?: \[type=|$)",  # pydantic
            ),
            _on(explain_options.refused_value, r"validation errors? for \w+\n(?P<flag>[\w.]+)\n\s*(?P<why>[^\n\[]+)"),
        ),
        rank=1,
    ),
    Row(
        FailureClass.NO_GPU,
        "vLLM finds no GPU in the container.",
        (
            _on(
                explain_gpus.no_gpu,
                r"Failed to infer device type",  # config/device.py
                r"No (?:HIP|CUDA) GPUs are available|no ROCm-capable device is detected|(?:hip|cuda)ErrorNoDevice",
                r"Unable to open /dev/kfd read-write: No such file",
            ),
        ),
        rank=1,
    ),
    Row(
        FailureClass.READY_TIMEOUT,
        "The server was not ready in time.",
        (
            _on(
                explain_ends.gave_up,  # v1/engine/core_client.py
                r"Timed out waiting for (?:new )?engine core processes to start(?:[^\n]*?Waited (?P<waited>\d+)s)?",
            ),
        ),
        rank=1,
    ),
    Row(FailureClass.STALLED, "The start made no progress: no log, no download, no computing."),
    Row(FailureClass.WRONG_MODEL_SERVED, "A server answers on the port, but serves another model."),
    Row(
        FailureClass.STOPPED_BY_SIGNAL,
        "The server was stopped from outside; it did not fail.",
        (
            _on(
                lambda case: explain_ends.stopped(ready=case.run.ready),
                r"KeyboardInterrupt: terminated",  # entrypoints/launchers/api_server/entry.py: SIGTERM during a start
            ),
        ),
    ),
    Row(
        FailureClass.COLLECTIVE_INIT,
        "The processes of a server over several GPUs or nodes cannot reach each other.",
        (
            _on(
                explain_node.collective,
                # distributed/device_communicators/pynccl_wrapper.py; RCCL reports as NCCL
                r"NCCL error:? ?(?:in: )?(?P<what>[^\n(]{0,120})",
                # PyTorch
                r"(?P<what>nccl(?:System|UnhandledCuda|Internal|Remote)Error)",
                r"(?P<what>Timed out after \d+ seconds waiting for clients|Timed out initializing process group"
                r"|[Tt]he client socket has (?:failed|timed out)[^\n]{0,100}|wait timeout after \d+ms"
                r"|[Cc]onnectFullMesh failed|Watchdog caught collective operation timeout)",
                r"DistStoreError|DistNetworkError|NCCL WARN (?P<what>[^\n]{0,120})",
            ),
        ),
        rank=2,
        serving=True,
    ),
    Row(
        FailureClass.ENGINE_DIED,
        "The engine's process died.",
        (
            _on(
                explain_ends.last_words,
                # ROCm runtime
                r"(?P<what>Memory access fault by GPU node-\d+[^\n.]{0,120}|HSA_STATUS_ERROR\w+)",
                r"(?P<what>HIP error: [^\n.]{0,80})",
                r"(?P<what>(?:HIP|CUDA) out of memory)",
                r"(?P<what>Segmentation fault|Illegal instruction|Fatal Python error[^\n]{0,80})",
                # v1/executor/multiproc_executor.py, v1/engine/utils.py
                r"(?P<what>Worker proc \S+ died unexpectedly \(exit code: -?\d+\))",
                r"Failed core proc\(s\): \{[^}]*(?P<what>'\w+': -\d+)",
            ),
        ),
        rank=2,
        serving=True,
    ),
    Row(FailureClass.UNKNOWN, "No known failure; the message has the earliest error of the log."),
)

#: The classes of ``failure.class``, each with one row.
CLASSES = tuple(row.class_ for row in ROWS)
