# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of known failures: GPU memory, the number and rights of GPUs, and their kernels. Pure.

Fragments are vLLM 0.32.0's unless said otherwise; the file is named at the pattern.
"""

from __future__ import annotations

from ..common.failure import FailureClass
from . import explain_gpu_memory, explain_gpus, explain_kernels
from .row import Row, on

ROWS: tuple[Row, ...] = (
    Row(
        FailureClass.GPU_MEMORY_TAKEN,
        "Other processes hold GPU memory that the server needs.",
        (
            on(
                explain_gpu_memory.memory_taken,
                # v1/worker/utils.py request_memory; v1/worker/cpu_worker.py, where the flag means CPU memory
                r"(?:Free memory on device|Available memory on node) ?(?P<device>[\w:]*) ?\((?P<free>[\d.]+)/"
                r"(?P<total>[\d.]+) GiB\) on startup is less than desired (?P<kind>GPU|CPU) memory utilization "
                r"\((?P<want>[\d.]+), (?P<need>[\d.]+) GiB\)",
                r"Free memory on device ?(?P<device>[\w:]*) ?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is "
                r"less than the engine's budget[^(]*\((?P<want>[\d.]+), (?P<need>[\d.]+) GiB\)",
            ),
            on(
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
            on(
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
            on(
                explain_gpu_memory.cache_below_context,
                # v1/core/kv_cache_utils.py _check_enough_kv_cache_memory
                r"max seq len \((?P<wanted>\d+)\), \((?P<need>[\d.]+) GiB KV cache is needed, which is larger than the "
                r"available KV cache memory \((?P<have>-?[\d.]+) GiB\)\."
                r"(?:[^\n]*?estimated maximum model length is (?P<longest>\d+))?",
                # releases to v0.8
                r"max seq len \((?P<wanted>\d+)\) is larger than the maximum number of tokens that can be stored in KV "
                r"cache \((?P<longest>\d+)\)",
            ),
            on(
                explain_gpu_memory.no_cache,
                r"No available memory for the cache blocks",
                r"Cannot auto-fit max_model_len: not enough GPU memory",
            ),
            on(
                explain_gpu_memory.cpu_cache,  # v1/worker/cpu_worker.py
                r"Available memory on node \S+ \((?P<free>[\d.]+)/[\d.]+ GiB\) on kv cache allocation is less than "
                r"requested memory for kv \((?P<need>[\d.]+)",
            ),
        ),
    ),
    Row(
        FailureClass.MODEL_TOO_LARGE,
        "The weights, or the working memory next to them, do not fit into GPU memory.",
        (
            on(
                explain_gpu_memory.out_of_memory,
                # PyTorch
                r"(?:HIP|CUDA) out of memory\. Tried to allocate (?P<asked>[\d.]+ \w+)\. GPU (?P<gpu>\d+) has a total "
                r"capac(?:i)?ty of (?P<total>[\d.]+ \w+) of which (?P<left>[\d.]+ \w+) is free",
                r"Failed to load model - not enough GPU memory",  # v1/worker/gpu_model_runner.py
                r"(?:HIP|CUDA) (?:error: )?out of memory|OutOfMemoryError|(?:hip|cuda)ErrorOutOfMemory",
                r"HSA_STATUS_ERROR_OUT_OF_RESOURCES",
            ),
        ),
    ),
    Row(
        FailureClass.BAD_PARALLELISM,
        "The model cannot be split into that many parts.",
        (
            on(
                explain_gpus.heads,  # config/model.py verify_with_parallel_config
                r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size "
                r"\((?P<size>\d+)\)",
            ),
            on(
                explain_gpus.dimension, r"AssertionError: (?P<number>\d+) is not divisible by (?P<by>\d+)"
            ),  # distributed/utils.py
            on(explain_gpus.no_pipeline, r"Pipeline parallelism is not supported for this model"),
            on(
                explain_gpus.no_ray, r"current platform (?P<platform>\w+) does not support ray"
            ),  # v1/executor/ray_utils.py
            on(
                explain_gpus.quantised_split,  # layers/quantization/
                r"is not divisible by (?:weight quantization )?(?:block_[nk]|group_size|self\.group_size|min_thread)",
                r"not aligned with the quantized weight shape",
            ),
            on(
                explain_gpus.uneven_nodes,  # config/parallel.py
                r"nnodes \(\d+\) must be divisible by [^\n]*|tp_size=\d+ must be divisible by dcp_size=\d+",
            ),
        ),
    ),
    Row(
        FailureClass.NOT_ENOUGH_GPUS,
        "The server needs more GPUs than the container has.",
        (
            on(
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
            on(
                explain_gpus.permission,
                r"/dev/(?:kfd|dri/\S*)\W?(?: read-write)?: Permission denied",  # ROCm runtime
                r"Permission denied: '/dev/(?:kfd|dri)",
                r"AMDSMI_STATUS_(?:FILE_ERROR|NO_PERM)\b",
            ),
            on(explain_gpus.no_group, r"Unable to find group (?P<group>[^\s:]+)"),  # Docker
        ),
    ),
    Row(
        FailureClass.DRIVER_MISSING,
        "The GPU driver is not loaded, so there are no devices to pass.",
        (
            on(
                explain_gpus.driver,
                r'adding custom device "(?P<device>/dev/(?:kfd|dri)[^"]*)": no such file',  # Docker
                r"ROCk module is NOT loaded|AMDSMI_STATUS_DRIVER_NOT_LOADED|AMDSMI_STATUS_DRM_ERROR",
            ),
            on(explain_gpus.old_driver, r"driver version is insufficient|(?:hip|cuda)ErrorInsufficientDriver"),
            on(explain_gpus.no_cdi, r"unresolvable CDI devices (?P<device>\S+)"),
        ),
    ),
    Row(
        FailureClass.NO_GPU,
        "vLLM finds no GPU in the container.",
        (
            on(
                explain_gpus.no_gpu,
                r"Failed to infer device type",  # config/device.py
                r"No (?:HIP|CUDA) GPUs are available|no ROCm-capable device is detected|(?:hip|cuda)ErrorNoDevice",
                r"Unable to open /dev/kfd read-write: No such file",
                r"Could not initialize Tensile host: No devices found",  # rocBLAS aborts the process
                r"Current node has no GPU available",  # v1/executor/ray_utils.py
                r"hsa_init|no supported GPU devices|Found no NVIDIA driver",
            ),
        ),
        rank=1,
    ),
    Row(
        FailureClass.KERNEL_UNSUPPORTED,
        "A GPU kernel cannot compute this model with these settings on this GPU.",
        (
            on(
                explain_kernels.unsupported,
                # AITER's checks in C++: they abort the process
                r"\[AITER\] (?P<what>[^\n]*(?:cannot|not support|unsupport|fail|invalid|not found|rror)[^\n]*)",
                # The same without its frames: ROCm's composable kernels, vLLM's choice of a backend, Triton, LLVM
                r"^(?P<what>[^\n]*(?:does not support this GEMM problem|out of resource: |LLVM ERROR: "
                r"|MoE backend supports|GPU archs? of |requires gfx\d)[^\n]*)",
            ),
        ),
        rank=1.5,
    ),
)
