# SPDX-License-Identifier: Apache-2.0
"""What `vllm serve` takes since which release: flags, and values of the environment. Pure.

From the sources of all releases from 0.8.5 to 0.32.0 (engine/arg_utils.py, the cli_args.py of the entrypoints,
entrypoints/cli/serve.py): of 0.8 to 0.11 every one, then the first of each line, so that what came with 0.20.1 is said
to be of 0.21. What 0.8.5 has is not here. Flags that are gone stand in `diagnosis/flags.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

Version = tuple[int, int, int]

#: First release with a flag, of those that 0.8.5 has not.
_ADDED = {
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
}
SINCE: dict[str, str] = {flag: release for release, flags in _ADDED.items() for flag in flags.split()}

#: First release that reads this value of a variable. Before, vLLM takes `nobind` for a list of cores, and its worker
#: dies of it (v1/worker/cpu_worker.py).
VALUES_SINCE = {("VLLM_CPU_OMP_THREADS_BIND", "nobind"): "0.11.1"}

#: `vllm serve --help=all` prints all flags since this release; before, `--help` alone does.
HELP_ALL_SINCE = "0.11"

_VERSION = re.compile(r"^v?(\d+)\.(\d+)(?:\.(\d+))?")


def version_of(text: str) -> Version | None:
    """Return the vLLM version in an image's tag or a release's name: v0.31.0, 0.9.2.post2, rocm7.14_vllm_0.23.0.

    None where it has none.
    """
    text = text.rpartition("vllm_")[2] if "vllm_" in text else text
    if text.startswith("rocm"):
        return None
    found = _VERSION.match(text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def older(text: str, since: str) -> bool:
    """Whether a tag or a release's name is of an older vLLM than ``since``; False where it has no version."""
    have, need = version_of(text), version_of(since)
    return have is not None and need is not None and have < need


def too_old(flags: Collection[str], since: str) -> bool:
    """Whether a vLLM with these ``flags`` is older than a release: it has no flag that came with it or later."""
    return not any(flag in flags and not older(release, since) for flag, release in SINCE.items())


def newer_flags(args: Collection[str], tag: str) -> dict[str, str]:
    """Return those of ``args`` that an image of this tag is too old for, with the release that has them first."""
    names = {flag.partition(".")[0].removeprefix("no-") for flag in args}
    return {flag: SINCE[flag] for flag in sorted(names) if flag in SINCE and older(tag, SINCE[flag])}


def newer_values(env: Mapping[str, object], too_old: Callable[[str], bool]) -> list[tuple[str, str, str]]:
    """Return name, value and first release of what is set in ``env`` for which the vLLM is too old."""
    return [
        (name, value, since)
        for (name, value), since in VALUES_SINCE.items()
        if str(env.get(name, "")) == value and too_old(since)
    ]
