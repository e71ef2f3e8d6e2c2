# SPDX-License-Identifier: Apache-2.0
"""How often a conversation finds its beginning in a prefix cache, by gateway_balance, and what a gateway costs.

    python bench/gateway.py [--real] [CONVERSATIONS [TURNS [SERVER'S CACHE IN CHARACTERS]]]

Each of four stand-ins has a cache of prefixes as vLLM has it: answers are in it, and what was least recently used is
forgotten first, a text from its end. It computes one prompt at a time and streams answers side by side. The role's
configuration for each mode, one after the other, stands in front of them. A stand-in is no GPU: only ratios within one
run mean something.

Three loads: clients that think between turns; the same with less thought and four times the work for a prompt, which
is more than the servers can do (saturated); all clients without any pause. People do not make the last one: who asks
in the moment in which an answer ended finds its own server the least loaded, so leastconn keeps conversations
together by chance.

With ``--real`` the real vLLM of gateway_real.py is measured as well, three times with other conversations.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import multiprocessing
import random
import runpy
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/integration", "tests/fleet", "tests")]

#: Of a row: what, times what, with how many digits.
COLUMNS = (("hit", 100, 0), ("ttft_p50_ms", 1, 0), ("ttft_p95_ms", 1, 0), ("makespan_s", 1, 1))
MODES = ("leastconn", "session", "prefix")
SERVERS, MODEL, KEY = 4, "bench/model", "key-of-the-bench"
BLOCK = 64
#: Seconds that an answer takes, and its size.
ANSWER, ANSWER_SIZE = 0.15, 1200


@dataclass(frozen=True)
class Load:
    """Seconds between two turns, from and to, and those that a character costs that is not in a cache."""

    pause: tuple[float, float]
    cost: float


LOADS = {"calm": Load((0.2, 1.0), 6e-6), "saturated": Load((0.05, 0.2), 24e-6), "at_once": Load((0.0, 0.0), 6e-6)}


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
        if asked.get("max_tokens") == 1:
            writer.write(b"data: {}\n\ndata: [DONE]\n\n")
            return
        text = "".join(one["role"] + one["content"] for one in asked["messages"])
        answer = "".join(random.Random(text).choices("abcdefgh ", k=ANSWER_SIZE))  # noqa: S311
        async with self.turn:
            found = self.remember(text)
            self.asked, self.hit = self.asked + len(text), self.hit + found
            await asyncio.sleep((len(text) - found) * asked["cost"] + 0.002)
        writer.write(f"data: {json.dumps({'choices': [{'delta': {'content': answer}}]})}\n\n".encode())
        await writer.drain()
        await asyncio.sleep(ANSWER)
        self.remember(text + "assistant" + answer)
        writer.write(b"data: [DONE]\n\n")

    def remember(self, text: str) -> int:
        """Characters that were in the cache; now all are."""
        chain, keys = b"", []
        for at in range(0, len(text) // BLOCK * BLOCK, BLOCK):
            chain = hashlib.blake2b(chain + text[at : at + BLOCK].encode(), digest_size=8).digest()
            keys.append(chain)
        hits = next((number for number, key in enumerate(keys) if key not in self.cache), len(keys))
        for key in reversed(keys):
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


async def ask(port: int, body: dict[str, Any], session: str = "") -> tuple[float, str]:
    """Seconds to the first token of a streamed answer, and its text."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    text = json.dumps({"model": MODEL, "stream": True, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{session}"
    head += "Connection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    line = await reader.readline()
    if b" 200 " not in line:
        raise RuntimeError(line.decode() + (await reader.read()).decode())
    first, said = 0.0, ""
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            first = first or time.monotonic() - began
            said += "".join(one["delta"].get("content") or "" for one in json.loads(line[6:])["choices"])
    writer.close()
    return first, said


@dataclass(frozen=True)
class Talk:
    """Conversations at the same time: how many and how long, sizes in characters, and more fields of each request."""

    conversations: int
    turns: int
    system_prompts: int = 3
    system: int = 6000
    first: int = 900
    said: int = 600
    #: Other texts for another one: a hash shares other conversations out otherwise.
    seed: int = 7


async def talk(port: int, mode: str, plan: Talk, pause: tuple[float, float], **more: Any) -> tuple[list[float], float]:
    """Seconds to first tokens, ascending, and of the whole; ``pause`` is between turns, ``more`` in each request."""
    dice = random.Random(plan.seed)  # noqa: S311

    def text(size: int) -> str:
        return "".join(dice.choices("abcdefgh ", k=size))

    shared = [text(plan.system) for _ in range(plan.system_prompts)]
    openings = [text(plan.first) for _ in range(plan.conversations)]
    found: list[float] = []

    async def client(number: int) -> None:
        mine = random.Random(number)  # noqa: S311
        messages = [
            {"role": "system", "content": shared[number % plan.system_prompts]},
            {"role": "user", "content": f"{number} {openings[number]}"},
        ]
        session = f"x-session-id: {number}\r\n" if mode == "session" else ""
        await asyncio.sleep(mine.uniform(*pause))
        for _ in range(plan.turns):
            first, answer = await ask(port, {"messages": messages, **more}, session)
            found.append(first)
            more_text = "".join(mine.choices("abcdefgh ", k=plan.said))
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": more_text}]
            await asyncio.sleep(mine.uniform(*pause))

    began = time.monotonic()
    await asyncio.gather(*(client(number) for number in range(plan.conversations)))
    return sorted(found), time.monotonic() - began


def row(first: list[float], seconds: float, hit: float) -> dict[str, float]:
    """What one load in one mode came to."""
    p50, p95 = statistics.median(first), first[int(len(first) * 0.95)]
    return {"hit": hit, "ttft_p50_ms": 1000 * p50, "ttft_p95_ms": 1000 * p95, "makespan_s": seconds}


def counts(ports: list[int]) -> float:
    """Part of the text that was in a cache since the last time; caches are empty afterwards."""
    sums = [0, 0]
    for port in ports:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/counts")
        sums = [one + more for one, more in zip(sums, json.loads(connection.getresponse().read()), strict=True)]
        connection.close()
    return sums[1] / sums[0] if sums[0] else 0.0


def overhead(gateway: int, direct: int, pid: int, requests: int = 1500, clients: int = 8) -> tuple[float, float]:
    """Milliseconds that the gateway adds at p50 to one request after the other, and requests per second of a core.

    The second is counted while several clients ask at the same time, by the processor time of HAProxy's threads.
    """
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}], "model": MODEL, "max_tokens": 1})

    def post(port: int) -> float:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
        connection.getresponse().read()
        connection.close()
        return time.monotonic() - began

    times = [[post(port) for port in (gateway, direct)] for _ in range(requests // 2)]
    through, without = (statistics.median(column) for column in zip(*times, strict=True))
    before = processor_seconds(pid)
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(post, [gateway] * requests))
    return 1000 * (through - without), requests / (processor_seconds(pid) - before)


def processor_seconds(pid: int) -> float:
    """What the threads of a process have computed."""
    threads = Path("/proc", str(pid), "task").iterdir()
    return sum(int(thread.joinpath("schedstat").read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9


def prepare() -> None:
    """Make module_utils importable."""
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))


def run(conversations: int = 40, turns: int = 10, capacity: int = 200_000) -> dict[str, Any]:
    """Measure all modes; hit rates, seconds and milliseconds."""
    prepare()
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
    plan, rows = Talk(conversations, turns), {}
    for mode in MODES:
        with gateway(hosts, mode) as (port, pid):
            rows[mode] = {}
            counts(ports)
            for name, load in LOADS.items():
                first, seconds = asyncio.run(talk(port, mode, plan, load.pause, cost=load.cost))
                rows[mode][name] = row(first, seconds, counts(ports))
            added, rate = overhead(port, ports[0], pid)
            rows[mode]["gateway"] = {"added_p50_ms": added, "requests_per_core_second": rate}
    for server in servers:
        server.terminate()
    return rows


@contextlib.contextmanager
def gateway(hosts: dict[str, Any], mode: str) -> Iterator[tuple[int, int]]:
    """A gateway in front of ``hosts``: its port, and its process."""
    import gateway_scene  # noqa: PLC0415
    import standin  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        port, folder = standin.free_port(), Path(name)
        more = {"gateway_port": port, "gateway_local_offset": 1, "gateway_stats_port": standin.free_port()}
        gateway_scene.render(folder, hosts, gateway_balance=mode, gateway_check_timeout=10, **more)
        with gateway_scene.running(folder) as made:
            yield port, made.process.pid


def show(rows: dict[str, Any]) -> None:
    """Print a table: figures, and as ratios to leastconn."""
    base = rows[MODES[0]]
    for load in (name for name in base if name != "gateway"):
        print(f"{load:10} {'% in a cache':>17} {'first token p50 ms':>17} {'p95 ms':>17} {'makespan s':>17}")
        for mode in MODES:
            own, first = rows[mode][load], base[load]
            cells = [f"{own[name] * by:9.{digits}f} ({own[name] / first[name]:5.2f})" for name, by, digits in COLUMNS]
            print(f"{mode:10} {' '.join(cells)}")
    for mode in MODES if "gateway" in base else ():
        cost = rows[mode]["gateway"]
        print(
            f"{mode:10} gateway +{cost['added_p50_ms']:.2f} ms at p50, "
            f"{cost['requests_per_core_second']:.0f} requests for a second of processor time"
        )


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, print, and give what was found."""
    numbers = [int(word) for word in arguments if word != "--real"]
    results = {"standins": run(*numbers)}
    print("In front of four stand-ins")
    show(results["standins"])
    if "--real" in arguments:
        import gateway_real  # noqa: PLC0415

        results["real"] = gateway_real.run()
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
