# SPDX-License-Identifier: Apache-2.0
"""Flags of ``vllm serve`` that are gone: since which release, and what to write instead. Pure.

A flag that is not here and resembles none that exists gets no advice: a wrong flag costs a start of an hour.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple


class Gone(NamedTuple):
    """A removed flag: ``release`` is the first without it (empty: not known), ``instead`` begins with a verb."""

    release: str
    instead: str


_SPECULATIVE = "write it into speculative-config, a JSON object"
_STRUCTURED = 'write `structured-outputs-config: {backend: ...}`, or leave it out, as "auto" is the default'
_EPLB = "write it into eplb-config, a JSON object"
_ROPE = "write it into hf-overrides, a JSON object"
_OUT = "leave it out"

#: Releases are the first whose source has no such flag, found as those in `vllm/releases.py`. Empty: 0.8.5 has none
#: either. 0.32's help has none of these.
REMOVED: dict[str, Gone] = {
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

#: How alike two flags must be for one to be a misspelling of the other: max-model-length and max-model-len are 0.90,
#: disable-log-requests and disable-log-stats 0.74.
_ALIKE = 0.85


def split_words(unknown: str) -> tuple[list[str], list[str]]:
    """Return the flags of argparse's list of unknown arguments as given, and the words that belong to none of them."""
    flags: list[str] = []
    stray: list[str] = []
    for word in unknown.split():
        if re.match(r"--?[A-Za-z]", word):
            flags.append(word.split("=", 1)[0])
        elif not flags:
            stray.append(word)
    return flags, stray


def removed(flag: str) -> Gone | None:
    """Return what became of a flag that is gone; ``no-`` before it changes nothing."""
    return REMOVED.get(flag) or REMOVED.get(flag.removeprefix("no-"))


def meant(flag: str, known: Sequence[str]) -> str:
    """Return the flag of which this is a misspelling, or an empty string."""
    sense = _sense(flag)
    return next(iter(difflib.get_close_matches(flag, [name for name in known if _sense(name) == sense], 1, _ALIKE)), "")


def _sense(flag: str) -> str:
    """What a flag begins with where that turns its meaning round."""
    return flag.split("-", 1)[0] if flag.startswith(("enable-", "disable-", "no-")) else ""
