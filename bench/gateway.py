# SPDX-License-Identifier: Apache-2.0
"""How often a conversation finds its beginning in a prefix cache, by gateway_balance, and what a gateway costs.

    python bench/gateway.py [CONVERSATIONS [TURNS [SERVER'S CACHE IN CHARACTERS]]]

Each of four stand-ins has a cache of prefixes that forgets the least recently used, computes one prompt at a time and
streams answers side by side. The role's configuration for each mode, one after the other, stands in front of them. A
stand-in is no GPU: only ratios within one run mean something.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import multiprocessing
import os
import random
import runpy
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/integration", "tests")]

MODES = ("leastconn", "session", "prefix")
SERVERS, MODEL, KEY = 4, "bench/model", "key-of-the-bench"
BLOCK = 64
#: Seconds that a character costs that is not in the cache, that an answer takes, and between two turns.
COST, ANSWER, PAUSE = 6e-6, 0.15, (0.2, 1.0)
SYSTEM_PROMPTS, SYSTEM_SIZE = 3, 6000


class Server:
    """One stand-in, in a process of its own."""

    def __init__(self, capacity: int) -> None:
        """``capacity`` of the cache in characters."""
        self.capacity = capacity // BLOCK
        self.cache: OrderedDict[bytes, None] = OrderedDict()
        self.turn = asyncio.Lock()
        self.asked = self.hit = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; a connection has no second one."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            path = head.split()[1]
            size = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
            body = await reader.readexactly(size)
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n")
            if path.endswith("/chat/completions"):
                await self.chat(json.loads(body), writer)
            elif path == "/counts":
                writer.write(json.dumps([self.asked, self.hit]).encode())
                self.cache.clear()
                self.asked = self.hit = 0
            else:
                writer.write(json.dumps({"data": [{"id": MODEL}]}).encode())
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def chat(self, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Compute what is not in the cache, then stream."""
        text = "".join(one["role"] + one["content"] for one in asked["messages"])
        if asked.get("max_tokens") != 1:
            async with self.turn:
                found = self.remember(text)
                self.asked, self.hit = self.asked + len(text), self.hit + found
                await asyncio.sleep((len(text) - found) * COST + 0.002)
        writer.write(b"data: {}\n\n")
        await writer.drain()
        await asyncio.sleep(0 if asked.get("max_tokens") == 1 else ANSWER)
        writer.write(b"data: [DONE]\n\n")

    def remember(self, text: str) -> int:
        """Characters that were in the cache; now all are."""
        chain, keys = b"", []
        for at in range(0, len(text) // BLOCK * BLOCK, BLOCK):
            chain = hashlib.blake2b(chain + text[at : at + BLOCK].encode(), digest_size=8).digest()
            keys.append(chain)
        hits = next((number for number, key in enumerate(keys) if key not in self.cache), len(keys))
        for key in keys:
            self.cache[key] = None
            self.cache.move_to_end(key)
        while len(self.cache) > self.capacity:
            self.cache.popitem(last=False)
        return hits * BLOCK


def serve(port: int, capacity: int) -> None:
    """Run a stand-in for ever."""

    async def run() -> None:
        server = await asyncio.start_server(Server(capacity).answer, "127.0.0.1", port, limit=2**24, backlog=512)
        await server.serve_forever()

    asyncio.run(run())


async def ask(port: int, messages: list[dict[str, str]], session: str) -> float:
    """Seconds to the first token of an answer that is read to its end."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"messages": messages, "model": MODEL, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{session}"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    line = await reader.readline()
    if b" 200 " not in line:
        raise RuntimeError(line.decode() + (await reader.read()).decode())
    await reader.readuntil(b"data: ")
    first = time.monotonic() - began
    await reader.read()
    writer.close()
    return first


async def talk(port: int, mode: str, conversations: int, turns: int, wait: bool) -> tuple[list[float], float]:
    """Seconds to first tokens, and of the whole; with ``wait`` clients think between turns, else they do not."""
    dice = random.Random(7)  # noqa: S311

    def text(size: int) -> str:
        return "".join(dice.choices("abcdefgh ", k=size))

    shared = [text(SYSTEM_SIZE) for _ in range(SYSTEM_PROMPTS)]
    plans = [
        ([text(900), *(text(1800) for _ in range(turns))], [dice.uniform(*PAUSE) for _ in range(turns)])
        for _ in range(conversations)
    ]
    found: list[float] = []

    async def client(number: int) -> None:
        texts, pauses = plans[number]
        await asyncio.sleep(number * 0.05 if wait else 0)
        system = {"role": "system", "content": shared[number % SYSTEM_PROMPTS]}
        messages = [system, {"role": "user", "content": f"{number} {texts[0]}"}]
        session = f"x-session-id: {number}\r\n" if mode == "session" else ""
        for said, pause in zip(texts[1:], pauses, strict=True):
            found.append(await ask(port, messages, session))
            messages += [{"role": "assistant", "content": said[:1200]}, {"role": "user", "content": said[1200:]}]
            await asyncio.sleep(pause if wait else 0)

    began = time.monotonic()
    await asyncio.gather(*(client(number) for number in range(conversations)))
    return sorted(found), time.monotonic() - began


def counts(ports: list[int]) -> float:
    """Part of the text that was in a cache since the last time; caches are empty afterwards."""
    sums = [0, 0]
    for port in ports:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/counts")
        sums = [one + more for one, more in zip(sums, json.loads(connection.getresponse().read()), strict=True)]
        connection.close()
    return sums[1] / sums[0] if sums[0] else 0.0


def overhead(gateway: int, direct: int, pid: int, requests: int = 1500) -> tuple[float, float]:
    """Milliseconds that the gateway adds at p50, and requests for each second of its processor time."""
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}], "model": MODEL, "max_tokens": 1})
    times: dict[int, list[float]] = {gateway: [], direct: []}
    ticks = _ticks(pid)
    for number in range(2 * requests):
        port = (gateway, direct)[number % 2]
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
        connection.getresponse().read()
        connection.close()
        times[port].append(time.monotonic() - began)
    used = (_ticks(pid) - ticks) / os.sysconf("SC_CLK_TCK")
    return 1000 * (statistics.median(times[gateway]) - statistics.median(times[direct])), requests / max(used, 0.01)


def _ticks(pid: int) -> int:
    fields = Path("/proc", str(pid), "stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def run(conversations: int = 40, turns: int = 10, capacity: int = 200_000) -> dict[str, Any]:
    """Measure all modes; hit rates, seconds and milliseconds."""
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))  # makes module_utils importable
    import gateway_scene  # noqa: PLC0415
    import standin  # noqa: PLC0415

    ports = [standin.free_port() for _ in range(SERVERS)]
    servers = [multiprocessing.Process(target=serve, args=(port, capacity), daemon=True) for port in ports]
    for server in servers:
        server.start()
    hosts = {
        f"n{number}": {
            "vllm_server_model": MODEL,
            "vllm_server_port": port,
            "vllm_server_bind": "127.0.0.1",
            "vllm_server_api_key": KEY,
        }
        for number, port in enumerate(ports)
    }
    rows: dict[str, Any] = {}
    for mode in MODES:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            port, folder = standin.free_port(), Path(name)
            more = {"gateway_port": port, "gateway_local_offset": 1, "gateway_stats_port": standin.free_port()}
            gateway_scene.render(folder, hosts, gateway_balance=mode, gateway_check_timeout=10, **more)
            with gateway_scene.running(folder) as gateway:
                counts(ports)
                first, _ = asyncio.run(talk(port, mode, conversations, turns, wait=True))
                hit = counts(ports)
                _, makespan = asyncio.run(talk(port, mode, conversations, turns, wait=False))
                counts(ports)
                added, rate = overhead(port, ports[0], gateway.process.pid)
        rows[mode] = {
            "hit": hit,
            "ttft_p50_ms": 1000 * statistics.median(first),
            "ttft_p95_ms": 1000 * first[int(len(first) * 0.95)],
            "makespan_s": makespan,
            "added_p50_ms": added,
            "requests_per_core_second": rate,
        }
    for server in servers:
        server.terminate()
    return rows


def main() -> None:
    """Print a table: figures, and as ratios to leastconn."""
    rows = run(*map(int, sys.argv[1:]))
    base = rows[MODES[0]]
    print(json.dumps(rows, indent=2))
    for mode, row in rows.items():
        ratio = {name: value / base[name] for name, value in row.items()}
        print(
            f"{mode:10} hit {row['hit']:4.0%} ({ratio['hit']:.2f})  "
            f"first token p50 {row['ttft_p50_ms']:4.0f} ms ({ratio['ttft_p50_ms']:.2f}), "
            f"p95 {row['ttft_p95_ms']:4.0f} ms ({ratio['ttft_p95_ms']:.2f})  "
            f"saturated {row['makespan_s']:4.1f} s ({ratio['makespan_s']:.2f})  gateway +{row['added_p50_ms']:.2f} ms, "
            f"{row['requests_per_core_second']:.0f} requests for a second of processor time"
        )


if __name__ == "__main__":
    main()
