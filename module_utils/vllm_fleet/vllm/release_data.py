# SPDX-License-Identifier: Apache-2.0
"""What moved between the releases of vLLM: flags, variables, defaults. Data alone; `releases.py` answers questions.

Shared by the checks of a command, the diagnosis and the tests of presets. Flags are from the sources of all releases
from 0.8.5 to 0.33.0 (engine/arg_utils.py, the cli_args.py of the entrypoints, entrypoints/cli/serve.py): of 0.8 to 0.11
every one, then the first of each line, so that what came with 0.20.1 is said to be of 0.21. Variables are from envs.py
of a wheel of each line from 0.10 to 0.33; what a line lost or got with a patch is said to be of that line.
`scripts/release_moves` compares two releases with this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: The newest release whose sources were read.
NEWEST = "0.33.0"

#: Flags of NEWEST that no other table here has: nearly all are those that 0.8.5 has and that stayed.
FLAGS_KEPT = """
    additional-config allow-credentials allowed-headers allowed-local-media-path allowed-methods
    allowed-origins api-key block-size chat-template chat-template-content-format code-revision
    collect-detailed-traces compilation-config config config-format cpu-offload-gb data-parallel-size
    device-memory-utilization disable-cascade-attn disable-chunked-mm-input disable-custom-all-reduce
    disable-fastapi-docs disable-log-stats disable-sliding-window disable-uvicorn-access-log
    distributed-executor-backend download-dir dtype enable-auto-tool-choice enable-chunked-prefill
    enable-expert-parallel enable-lora enable-prefix-caching enable-prompt-tokens-details
    enable-request-id-headers enable-server-load-tracking enable-sleep-mode enable-ssl-refresh enforce-eager
    fully-sharded-loras generation-config gpu-memory-utilization hf-config-path hf-overrides hf-token host
    ignore-patterns kv-cache-dtype kv-transfer-config limit-mm-per-prompt load-format
    long-prefill-token-threshold lora-dtype lora-modules max-cpu-loras max-log-len max-logprobs max-lora-rank
    max-loras max-model-len max-num-batched-tokens max-num-seqs max-parallel-loading-workers middleware
    mm-processor-kwargs model model-impl model-loader-extra-config num-gpu-blocks-override
    otlp-traces-endpoint override-generation-config pipeline-parallel-size port prefix-caching-hash-algo
    quantization ray-workers-use-nsight reasoning-parser response-role return-tokens-as-token-ids revision
    root-path scheduler-cls scheduling-policy seed served-model-name show-hidden-metrics-for-version
    skip-tokenizer-init speculative-config ssl-ca-certs ssl-cert-reqs ssl-certfile ssl-keyfile
    tensor-parallel-size tokenizer tokenizer-mode tokenizer-revision tool-call-parser tool-parser-plugin
    trust-remote-code use-tqdm-on-load uvicorn-log-level worker-cls worker-extension-cls
"""

#: Flags of 0.8.5 for others than AMD's GPUs that went since, it is not known when.
FLAGS_OF_OTHERS = "override-neuron-config qlora-adapter-name-or-path"

#: First release with a flag, of those that 0.8.5 has not.
FLAGS_ADDED: Mapping[str, str] = {
    "0.9": """
        cuda-graph-sizes data-parallel-address data-parallel-rpc-port data-parallel-size-local data-parallel-start-rank
        enable-prompt-embeds guided-decoding-disable-additional-properties guided-decoding-disable-any-whitespace
        guided-decoding-disable-fallback headless kv-events-config pt-load-map-location
    """,
    "0.9.1": """
        api-server-count data-parallel-backend disable-hybrid-kv-cache-manager enable-multimodal-encoder-data-parallel
        log-config-file
    """,
    "0.9.2": """
        data-parallel-rank enable-eplb enable-force-include-usage eplb-log-balancedness eplb-step-interval
        eplb-window-size expand-tools-even-if-tool-choice-none media-io-kwargs num-redundant-experts
        override-attention-dtype
    """,
    "0.10": """
        async-scheduling data-parallel-hybrid-lb default-mm-loras enable-tokenizer-info-endpoint interleave-mm-strings
        logprobs-mode
    """,
    "0.10.1": """
        convert enable-log-outputs enable-log-requests exclude-tools-when-tool-choice-none kv-sharing-fast-prefill
        logits-processors mamba-cache-dtype mamba-ssm-cache-dtype mm-processor-cache-gb runner skip-mm-profiling
        tool-server uds
    """,
    "0.10.2": """
        decode-context-parallel-size eplb-config h11-max-header-count h11-max-incomplete-event-size io-processor-plugin
        kv-cache-memory-bytes log-error-stack mm-encoder-tp-mode safetensors-load-strategy
    """,
    "0.11": """
        allowed-media-domains dbo-decode-token-threshold dbo-prefill-token-threshold enable-dbo
        expert-placement-strategy mm-processor-cache-type mm-shm-cache-max-object-size-mb pooler-config
        structured-outputs-config trust-request-chat-template video-pruning-rate
    """,
    "0.11.1": """
        aggregate-engine-logging all2all-backend cudagraph-capture-sizes data-parallel-external-lb
        dcp-kv-cache-interleave-size disable-nccl-for-dp-synchronization ec-transfer-config enable-mm-embeds
        kv-offloading-backend kv-offloading-size mamba-block-size master-addr master-port max-cudagraph-capture-size
        mm-encoder-attn-backend nnodes node-rank reasoning-parser-plugin stream-interval tokens-only
    """,
    "0.12": """
        cp-kv-cache-interleave-size kv-cache-metrics kv-cache-metrics-sample optimization-level
        prefill-context-parallel-size
    """,
    "0.13": """
        attention-backend attention-config cudagraph-metrics enable-layerwise-nvtx-tracing profiler-config
    """,
    "0.14": """
        allow-deprecated-quantization default-chat-template-kwargs enable-log-deltas enable-logging-iteration-details
        enable-mfu-metrics enable-offline-docs enable-return-routed-experts enable-tower-connector-lora ubatch-size
    """,
    "0.15": "mamba-cache-mode mm-encoder-only ssl-ciphers",
    "0.16": """
        disable-access-log-for-endpoints enable-flashinfer-autotune kernel-config specialize-active-lora
        weight-transfer-config
    """,
    "0.17": """
        cpu-offload-params enable-elastic-ep fail-on-environ-validation language-model-only moe-backend offload-backend
        offload-group-size offload-num-in-group offload-params offload-prefetch-step performance-mode
        use-gpu-for-pooling-score
    """,
    "0.18": """
        dcp-comm-backend distributed-timeout-seconds enable-ep-weight-filter gdn-prefill-backend grpc shutdown-timeout
    """,
    "0.19": """
        kv-cache-dtype-skip-layers lora-target-modules mm-tensor-ipc reasoning-config renderer-num-workers
        scheduler-reserve-full-isl
    """,
    "0.20": """
        enable-flash-late-interaction enable-mamba-cache-stochastic-rounding ir-op-priority mamba-backend
        mamba-cache-philox-rounds numa-bind numa-bind-cpus numa-bind-nodes
    """,
    "0.21": """
        fingerprint-mode fingerprint-value mm-encoder-attn-dtype mm-encoder-fp8-scale-path
        mm-encoder-fp8-scale-save-margin mm-encoder-fp8-scale-save-path safetensors-prefetch-block-size
        safetensors-prefetch-num-threads
    """,
    "0.22": """
        cpu-distributed-timeout-seconds data-parallel-multi-port-external-lb data-parallel-supervisor-port
        dp-supervisor-probe-failure-threshold dp-supervisor-probe-interval-s dp-supervisor-probe-timeout-s
        enable-cumem-allocator enable-mixed-moe-lora-format linear-backend quantization-config spec-method spec-model
        spec-tokens use-fp64-gumbel
    """,
    "0.24": "device-ids diffusion-config jit-monitor-verbose prefill-schedule-interval watermark",
    "0.25": "enable-per-request-metrics jit-monitor-mode mm-ipc-gpu-memory-gb model-class-overrides",
    "0.26": "enable-bf16x3-router-gemm enable-moe-shared-loras max-num-scheduled-tokens prefix-match-unit",
    "0.27": """
        cohere-format cohere-is-reasoning-model enable-fault-tolerance fault-tolerance-config kda-prefill-backend
        mamba-ssu-algorithm mm-hasher-algorithm replayssm-buffer-len use-replayssm video-pruning-method
    """,
    "0.28": "ec-manager-config mm-device-do-normalize mm-processor-device return-sampling-mask",
    "0.29": """
        dcp-q-replicate enable-batch-sharded-sampling enable-trace-replay max-num-queued-reqs max-num-queued-tokens
        per-request-spec-decode-metrics prefix-cache-retention-interval sse-keep-alive-interval
    """,
    "0.30": """
        dp-sync-interval elastic-ep-max-dp-size enable-mamba-fine-grained-prefix-cache enable-nccl-comm-suspend
        enable-scale-out engram-config kda-decode-backend sparse-indexer-topk-backend watermark-config
    """,
    "0.31": """
        anthropic-disabled-thinking-effort aux-output-config enable-mamba-shared-prefix-checkpoint log-level
        logging-config long-prefill-token-threshold-adaptive max-lora-cls-labels max-num-active-seqs
        sleep-preserve-parameter-names swa-bounded-replay tool-strict-level trust-request-mm-kwargs
    """,
    "0.32": """
        custom-histogram-buckets enable-hc-sp enable-shm-tensor-arena grpc-port sleep-mode-offload-cudagraph
    """,
    "0.33": "monokernel reasoning-effort-map sleep-mode-backend watchdog-config",
}


class Gone(NamedTuple):
    """A removed flag: ``release`` is the first without it (empty: not known), ``instead`` begins with a verb."""

    release: str
    instead: str


_SPECULATIVE = "write it into speculative-config, a JSON object"
_STRUCTURED = 'write `structured-outputs-config: {backend: ...}`, or leave it out, as "auto" is the default'
_EPLB = "write it into eplb-config, a JSON object"
_ROPE = "write it into hf-overrides, a JSON object"
_OUT = "leave it out"

#: Releases are the first whose source has no such flag, found as those in FLAGS_ADDED. Empty: 0.8.5 has none
#: either. 0.33 has none of these.
FLAGS_GONE: Mapping[str, Gone] = {
    "disable-log-requests": Gone("0.17", "leave it out, as requests are not logged unless enable-log-requests is set"),
    "enable-reasoning": Gone("0.10", "leave it out, as reasoning-parser alone is enough"),
    "task": Gone("0.13", "write `runner: pooling` for embeddings and the like, and nothing for text generation"),
    "device": Gone("0.10", _OUT + ", as the image decides it"),
    "swap-space": Gone("0.18", _OUT + ", as vLLM no longer swaps (kv-offloading-size is the new way)"),
    "max-seq-len-to-capture": Gone("0.11", "write max-cudagraph-capture-size (in tokens)"),
    "max-context-len-to-capture": Gone("", "write max-cudagraph-capture-size (in tokens)"),
    "cuda-graph-sizes": Gone("0.13", "write cudagraph-capture-sizes"),
    "num-scheduler-steps": Gone("0.10.1", _OUT),
    "multi-step-stream-outputs": Gone("0.10.1", _OUT),
    "scheduler-delay-factor": Gone("0.11", _OUT),
    "num-lookahead-slots": Gone("0.12", _OUT),
    "preemption-mode": Gone("0.11", _OUT),
    "disable-async-output-proc": Gone("0.11", _OUT),
    "use-v2-block-manager": Gone("0.10", _OUT),
    "worker-use-ray": Gone("", "write `distributed-executor-backend: ray`"),
    "engine-use-ray": Gone("", _OUT),
    "tokenizer-pool-size": Gone("0.10", _OUT),
    "tokenizer-pool-type": Gone("0.10", _OUT),
    "tokenizer-pool-extra-config": Gone("0.10", _OUT),
    "expand-tools-even-if-tool-choice-none": Gone("0.10", _OUT),
    "prompt-adapters": Gone("0.10", _OUT),
    "enable-prompt-adapter": Gone("0.10.2", _OUT),
    "max-prompt-adapters": Gone("0.10", _OUT),
    "max-prompt-adapter-token": Gone("0.10", _OUT),
    "lora-extra-vocab-size": Gone("0.12", _OUT),
    "long-lora-scaling-factors": Gone("0.10", _OUT),
    "enable-lora-bias": Gone("0.11.1", _OUT),
    "speculative-model": Gone("", _SPECULATIVE + " (`model`)"),
    "num-speculative-tokens": Gone("", _SPECULATIVE + " (`num_speculative_tokens`)"),
    "speculative-draft-tensor-parallel-size": Gone("", _SPECULATIVE + " (`draft_tensor_parallel_size`)"),
    "ngram-prompt-lookup-max": Gone("", _SPECULATIVE + " (`prompt_lookup_max`)"),
    "ngram-prompt-lookup-min": Gone("", _SPECULATIVE + " (`prompt_lookup_min`)"),
    "guided-decoding-backend": Gone("0.12", _STRUCTURED),
    "guided-decoding-disable-fallback": Gone("0.12", _STRUCTURED),
    "guided-decoding-disable-any-whitespace": Gone("0.12", _STRUCTURED),
    "guided-decoding-disable-additional-properties": Gone("0.12", _STRUCTURED),
    "rope-scaling": Gone("0.11.1", _ROPE),
    "rope-theta": Gone("0.11.1", _ROPE),
    "override-pooler-config": Gone("0.12", "write pooler-config"),
    "disable-mm-preprocessor-cache": Gone("0.13", "write `mm-processor-cache-gb: 0`"),
    "enable-multimodal-encoder-data-parallel": Gone("0.13", "write `mm-encoder-tp-mode: data`"),
    "num-redundant-experts": Gone("0.12", _EPLB),
    "eplb-window-size": Gone("0.12", _EPLB),
    "eplb-step-interval": Gone("0.12", _EPLB),
    "eplb-log-balancedness": Gone("0.12", _EPLB),
    "calculate-kv-scales": Gone("0.28", _OUT),
    "kv-cache-memory": Gone("", "write kv-cache-memory-bytes"),
    "logits-processor-pattern": Gone("0.17", _OUT),
    "use-gpu-for-pooling-score": Gone("0.18", _OUT),
    "max-num-partial-prefills": Gone("0.27", _OUT),
    "max-long-partial-prefills": Gone("0.27", _OUT),
    "override-attention-dtype": Gone("0.28", _OUT),
    "enable-bf16x3-router-gemm": Gone("0.30", _OUT),
    "enable-mamba-fine-grained-prefix-cache": Gone("0.31", _OUT),
    "quantization-param-path": Gone("", _OUT),
    "disable-frontend-multiprocessing": Gone("0.19", _OUT),
}

#: First release with a variable, of those about ROCm that 0.10.0 has not.
VARIABLES_ADDED: Mapping[str, str] = {
    "0.10.2": "VLLM_ROCM_USE_AITER_FP8BMM VLLM_USE_AITER_UNIFIED_ATTENTION",
    "0.11": "VLLM_ROCM_FP8_MFMA_PAGE_ATTN VLLM_ROCM_USE_AITER_FP4_ASM_GEMM VLLM_ROCM_USE_TRITON_ROPE",
    "0.11.2": """
        VLLM_ROCM_SLEEP_MEM_CHUNK_SIZE VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS VLLM_ROCM_USE_AITER_TRITON_GEMM
        VLLM_ROCM_USE_AITER_TRITON_ROPE VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION
    """,
    "0.15": "VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT VLLM_ROCM_USE_AITER_FP4BMM",
    "0.22": "VLLM_ROCM_QUICK_REDUCE_MIN_SIZE_BYTES_MB VLLM_ROCM_QUICK_REDUCE_QUANTIZATION_MIN_SIZE_KB",
    "0.23": "VLLM_ROCM_AITER_MOE_DISPATCH_POLICY VLLM_ROCM_USE_AITER_LINEAR_HIPBMM",
    "0.25": "VLLM_ROCM_USE_AITER_CUSTOM_AR",
    "0.28": "VLLM_ROCM_AITER_MLA_ASM_PADDING VLLM_ROCM_USE_AITER_MOE_SITUV2_A8W4",
    "0.31": "VLLM_ROCM_AITER_MLA_DCP_VERIFY VLLM_ROCM_USE_AITER_MOE_SITUV2",
    "0.32": """
        VLLM_ROCM_AITER_MEGA_MOE_FUSE_SHARED_EXPERTS VLLM_ROCM_MONO_DECODE VLLM_ROCM_USE_AITER_MOE_A4W4_DSV4
        VLLM_ROCM_USE_AITER_TRITON_SPARSE_MLA
    """,
    "0.33": "VLLM_ROCM_MUSE_MOE_ONLINE_QUANT VLLM_ROCM_MUSE_MOE_REDUCE_DTYPE",
}

#: First release without a variable: vLLM then passes over it, with a line in its log at most.
VARIABLES_GONE: Mapping[str, str] = {
    "0.10.2": "VLLM_FLASHINFER_FORCE_TENSOR_CORES VLLM_NO_DEPRECATION_WARNING VLLM_USE_TRTLLM_DECODE_ATTENTION",
    "0.11": "VLLM_GPT_OSS_USE_CONTAINER_TOOL",
    "0.11.2": """
        VLLM_DISABLE_NCCL_FOR_DP_SYNCHRONIZATION VLLM_DISABLE_PAD_FOR_CUDAGRAPH VLLM_LOGITS_PROCESSOR_THREADS
        VLLM_ROCM_USE_TRITON_ROPE VLLM_SKIP_DEEP_GEMM_WARMUP VLLM_USE_AITER_UNIFIED_ATTENTION
        VLLM_USE_DEEP_GEMM_E8M0_HOPPER VLLM_USE_RAY_COMPILED_DAG VLLM_USE_RAY_SPMD_WORKER VLLM_USE_TRITON_FLASH_ATTN
        VLLM_USE_TRTLLM_FP4_GEMM VLLM_USE_V1 VLLM_V0_USE_OUTLINES_CACHE
    """,
    "0.12": "VLLM_CPU_MOE_PREPACK VLLM_FLAT_LOGPROBS",
    "0.13": "VLLM_MM_INPUT_CACHE_GIB",
    "0.15": """
        VLLM_ATTENTION_BACKEND VLLM_DISABLE_FLASHINFER_PREFILL VLLM_FLASHINFER_DISABLE_Q_QUANTIZATION
        VLLM_FLASH_ATTN_MAX_NUM_SPLITS_FOR_CUDA_GRAPH VLLM_FLASH_ATTN_VERSION VLLM_USE_CUDNN_PREFILL
        VLLM_USE_TRTLLM_ATTENTION VLLM_USE_TRTLLM_RAGGED_DEEPSEEK_PREFILL VLLM_V1_USE_PREFILL_DECODE_ATTENTION
    """,
    "0.16": """
        VLLM_ALL2ALL_BACKEND VLLM_PROFILER_DELAY_ITERS VLLM_PROFILER_MAX_ITERS VLLM_TORCH_CUDA_PROFILE
        VLLM_TORCH_PROFILER_DIR VLLM_TORCH_PROFILER_DISABLE_ASYNC_LLM VLLM_TORCH_PROFILER_DUMP_CUDA_TIME_TOTAL
        VLLM_TORCH_PROFILER_RECORD_SHAPES VLLM_TORCH_PROFILER_USE_GZIP VLLM_TORCH_PROFILER_WITH_FLOPS
        VLLM_TORCH_PROFILER_WITH_PROFILE_MEMORY VLLM_TORCH_PROFILER_WITH_STACK
    """,
    "0.18": "VLLM_ENABLE_FUSED_MOE_ACTIVATION_CHUNKING VLLM_FUSED_MOE_CHUNK_SIZE VLLM_SLEEP_WHEN_IDLE",
    "0.19": "VLLM_ROCM_CUSTOM_PAGED_ATTN",
    "0.21": "VLLM_ENABLE_MOE_DP_CHUNK VLLM_MOE_DP_CHUNK_SIZE",
    "0.22": "VLLM_NIXL_ABORT_REQUEST_TIMEOUT",
    "0.23": """
        VLLM_MORIIO_CONNECTOR_READ_MODE VLLM_MORIIO_NUM_WORKERS VLLM_MORIIO_POST_BATCH_SIZE
        VLLM_MORIIO_QP_PER_TRANSFER VLLM_RPC_TIMEOUT
    """,
    "0.24": """
        VLLM_FLASHINFER_MOE_BACKEND VLLM_MXFP4_USE_MARLIN VLLM_NVFP4_GEMM_BACKEND VLLM_USE_FBGEMM
        VLLM_USE_FLASHINFER_MOE_FP16 VLLM_USE_FLASHINFER_MOE_FP4 VLLM_USE_FLASHINFER_MOE_FP8
        VLLM_USE_FLASHINFER_MOE_MXFP4_BF16 VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8
        VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8_CUTLASS VLLM_USE_NVFP4_CT_EMULATIONS
    """,
    "0.26": """
        VLLM_FLASHINFER_ALLREDUCE_FUSION_THRESHOLDS_MB VLLM_ROCM_USE_AITER_PAGED_ATTN VLLM_TPU_BUCKET_PADDING_GAP
        VLLM_TPU_MOST_MODEL_LEN
    """,
    "0.28": "AITER_SITUV2_A8W4 K_SCALE_CONSTANT Q_SCALE_CONSTANT V_SCALE_CONSTANT VLLM_CPU_SGL_KERNEL",
    "0.29": "VLLM_TRITON_ATTN_USE_TD",
    "0.30": "VLLM_MM_HASHER_ALGORITHM VLLM_NIXL_EP_MAX_NUM_RANKS VLLM_PREFIX_CACHE_RETENTION_INTERVAL",
    "0.31": """
        VLLM_KIMI_K3_GEMM_RS VLLM_PLE_CPU_OFFLOAD VLLM_ROCM_USE_AITER_MOE_SITUV2_A8W4 VLLM_XPU_ENABLE_XPU_GRAPH
    """,
    "0.32": "VLLM_ENGINE_ITERATION_TIMEOUT_S",
    "0.33": """
        VLLM_ROCM_AITER_MEGA_MOE_FUSE_SHARED_EXPERTS VLLM_ROCM_AITER_MLA_DCP_VERIFY VLLM_ROCM_MONO_DECODE
        VLLM_ROCM_USE_AITER_FP4_ASM_GEMM VLLM_USE_RAY_COMPILED_DAG_CHANNEL_TYPE
        VLLM_USE_RAY_COMPILED_DAG_OVERLAP_COMM VLLM_USE_RAY_V2_EXECUTOR_BACKEND VLLM_USE_RAY_WRAPPED_PP_COMM
    """,
}

#: What to set in the place of a variable that is gone, beginning with a verb.
VARIABLES_INSTEAD: Mapping[str, str] = {
    "VLLM_ATTENTION_BACKEND": "set attention-backend in vllm_server_args",
    "VLLM_ALL2ALL_BACKEND": "set all2all-backend in vllm_server_args",
    "VLLM_MM_HASHER_ALGORITHM": "set mm-hasher-algorithm in vllm_server_args",
    "VLLM_PREFIX_CACHE_RETENTION_INTERVAL": "set prefix-cache-retention-interval in vllm_server_args",
}


class Turned(NamedTuple):
    """A default that another release has otherwise: a flag's or a variable's, ``since`` that release."""

    name: str
    since: str
    before: str
    after: str


#: Defaults that decide what a server on AMD GPUs takes or how it computes.
DEFAULTS: tuple[Turned, ...] = (
    Turned("VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS", "0.12", "True", "False"),
    Turned("gpu-memory-utilization", "0.20", "0.9", "0.92"),
    Turned("VLLM_ROCM_AITER_MLA_DCP_VERIFY", "0.32", "segmented", "auto"),
    Turned("VLLM_ROCM_USE_AITER_FP8BMM", "0.33", "True", "False"),
    Turned("VLLM_ROCM_USE_AITER_FP4BMM", "0.33", "True", "False"),
)

#: Flags that NEWEST still has and calls deprecated, with the release that it says will have them no longer; empty: one
#: that has no effect any more. Those of 0.33 are still there in 0.33.
DEPRECATED: Mapping[str, str] = {
    "disable-cascade-attn": "",
    "ir-op-priority": "0.34",
    "log-config-file": "0.33",
    "mamba-cache-mode": "0.33",
}
