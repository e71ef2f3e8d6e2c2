# SPDX-License-Identifier: Apache-2.0
"""What gateway_balance does for two real vLLM engines (CPU) with prefix caching, as their own metrics count it.

    python bench/gateway_real.py [RUNS]

Also part of gateway.py --real. Needs the image and the model that `make deploy` leaves. Each engine has half of the
cores.

What a gateway can win with two servers: a conversation that goes to any of them is on the right one every second time.
Where each cache holds all conversations, the other one has it soon, too, and a conversation is computed twice instead
of once, however long it is. So each cache holds somewhat more than half of the conversations: all servers together
have room for all of them, and no server has, as with GPUs and the users of a model. Each conversation begins with a
long text, and then asks short questions about it.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gateway as bench

sys.path += [str(bench.ROOT / "tests" / "real"), str(bench.ROOT)]
import plugin_utils  # noqa: F401 - finds vllm_fleet

#: Conversations of some 600 to 820 tokens, of which 40 are a system prompt that all share.
TALK = bench.Talk(conversations=16, turns=10, system_prompts=1, system=60, first=1000, said=10)
#: Seconds between two turns; an engine takes one or two for a prompt that it does not know, so it is saturated. They
#: differ much: in a fixed order of an even number of conversations, taking turns between two servers is affinity.
PAUSE = (0.1, 4.0)
#: Blocks of 32 tokens, the smallest on a CPU: room for 8 of the 16 conversations at their end.
ARGUMENTS = {"enable-prefix-caching": True, "block-size": 32, "num-gpu-blocks-override": 220, "max-num-seqs": 8}
COUNTERS = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")


def fetch(port: int, path: str, method: str = "GET") -> str:
    """What a server answers; RuntimeError for anything but 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {bench.KEY}"})
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path} on port {port}: {answer.status} {text}")
        return text
    finally:
        connection.close()


def counters(ports: list[int]) -> list[float]:
    """Tokens that were looked for in the caches, and that were found, of all servers since their start."""
    lines = [line.split() for port in ports for line in fetch(port, "/metrics").splitlines() if line[:1] != "#"]
    return [sum(float(line[-1]) for line in lines if line and line[0].startswith(name)) for name in COUNTERS]


def measure(ports: list[int], plan: bench.Talk = TALK) -> dict[str, Any]:
    """All modes in front of these servers, each from empty caches."""
    from local_inventory import LOCAL  # noqa: PLC0415

    model = LOCAL["vllm_server_model"]
    given = {"vllm_server_model": model, "vllm_server_bind": "127.0.0.1", "vllm_server_api_key": bench.KEY}
    hosts = {f"n{number}": {**given, "vllm_server_port": port} for number, port in enumerate(ports)}
    request = {"model": model, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    for port in ports:  # what is slow only once
        asyncio.run(bench.ask(port, {**request, "messages": [{"role": "user", "content": "Hello."}]}))
    rows: dict[str, Any] = {}
    for mode in bench.MODES:
        for port in ports:
            fetch(port, "/reset_prefix_cache", "POST")
        with bench.gateway(hosts, mode) as (port, _):
            before = counters(ports)
            first, seconds = asyncio.run(bench.talk(port, mode, plan, PAUSE, **request))
            asked, hit = (after - one for after, one in zip(counters(ports), before, strict=True))
        rows[mode] = {"saturated": bench.row(first, seconds, hit / asked)}
    return rows


def run(runs: int = 3) -> list[dict[str, Any]]:
    """Start two engines, measure and print as often, remove them; SystemExit where there is nothing to start."""
    import docker  # noqa: PLC0415
    from local_inventory import CACHE, IMAGE, SERVER  # noqa: PLC0415
    from vllm_server_tools import Server  # noqa: PLC0415

    from ansible.module_utils.vllm_fleet.container.engine import Engine  # noqa: PLC0415

    client = docker.from_env()
    if not client.images.list(IMAGE) or not (CACHE / "seed").is_dir():
        raise SystemExit(f"no image {IMAGE}, or no model in {CACHE / 'seed'}: run `make deploy` first")
    half = max(1, (os.cpu_count() or 2) // 2)

    def start(server: Server, number: int) -> None:
        own = {
            "VLLM_CPU_OMP_THREADS_BIND": f"{number * half}-{(number + 1) * half - 1}",
            # For /reset_prefix_cache.
            "VLLM_SERVER_DEV_MODE": "1",
        }
        patient = {"ready_timeout": 900.0, "stall_timeout": 600.0}
        given = {"args": {**SERVER["args"], **ARGUMENTS}, "env": {**SERVER["env"], **own}}
        server.ready(api_key=bench.KEY, **{**SERVER, **patient, **given})

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        servers = [Server(Engine(), client, IMAGE, Path(name, str(number))) for number in range(2)]
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(start, servers, range(len(servers))))
            found = []
            for number in range(runs):
                found.append(measure([server.port for server in servers], replace(TALK, seed=TALK.seed + number)))
                print(f"In front of two real engines (CPU), run {number + 1} of {runs}", flush=True)
                bench.show(found[-1])
            return found
        finally:
            for server in servers:
                server.close()
            client.close()


if __name__ == "__main__":
    bench.prepare()
    run(*map(int, sys.argv[1:]))
