# SPDX-License-Identifier: Apache-2.0
"""`vllm bench serve`: real requests to a server, and figures under the names that vLLM 0.32.0 gives them."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm bench serve")
    for name in ("backend", "base-url", "endpoint", "model", "served-model-name", "dataset-name", "request-rate"):
        parser.add_argument(f"--{name}")
    for name in ("percentile-metrics", "metric-percentiles", "result-dir", "result-filename", "temperature"):
        parser.add_argument(f"--{name}")
    for name in ("random-input-len", "random-output-len", "num-prompts", "max-concurrency", "seed", "num-warmups"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("ignore-eos", "disable-tqdm", "save-result"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.set_defaults(endpoint="/v1/completions", num_prompts=1000, random_input_len=1024, random_output_len=128)
    return parser


def _ask(options: argparse.Namespace) -> tuple[float, int] | None:
    """One request: seconds and generated tokens; None when it failed."""
    url = urlsplit(options.base_url)
    body = {
        "model": options.served_model_name or options.model,
        "prompt": "word " * options.random_input_len,
        "max_tokens": options.random_output_len,
    }
    headers = {"Content-Type": "application/json"}
    if os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
    connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=60)
    begun = time.monotonic()
    try:
        connection.request("POST", options.endpoint, json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
    except OSError:
        return None
    finally:
        connection.close()
    if answer.status != 200:
        return None
    return time.monotonic() - begun, json.loads(text)["usage"]["completion_tokens"]


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def run(arguments: Sequence[str]) -> int:
    """Measure; returns the exit code."""
    options = _parser().parse_args(arguments)
    begun = time.monotonic()
    with ThreadPoolExecutor(options.max_concurrency or 16) as pool:
        answers = [one for one in pool.map(lambda _: _ask(options), range(options.num_prompts)) if one]
    duration = time.monotonic() - begun
    if not answers:
        print("ValueError: All requests failed.", file=sys.stderr)
        return 1
    tokens = sum(count for _, count in answers)
    asked = len(answers) * options.random_input_len
    times = [1000 * seconds for seconds, _ in answers]
    each = [1000 * seconds / max(count, 1) for seconds, count in answers]
    result = {
        "backend": options.backend,
        "model_id": options.model,
        "num_prompts": options.num_prompts,
        "max_concurrency": options.max_concurrency,
        "duration": duration,
        "completed": len(answers),
        "failed": options.num_prompts - len(answers),
        "total_input_tokens": asked,
        "total_output_tokens": tokens,
        "request_throughput": len(answers) / duration,
        "output_throughput": tokens / duration,
        "total_token_throughput": (asked + tokens) / duration,
    }
    for name, values in (("ttft", times), ("tpot", each), ("itl", each)):
        result |= {f"mean_{name}_ms": sum(values) / len(values), f"median_{name}_ms": _percentile(values, 0.5)}
        result[f"p99_{name}_ms"] = _percentile(values, 0.99)
    print("============ Serving Benchmark Result ============")
    if options.save_result:
        (Path(options.result_dir) / options.result_filename).write_text(json.dumps(result), encoding="utf-8")
    return 0
