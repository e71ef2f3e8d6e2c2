# SPDX-License-Identifier: Apache-2.0
"""Whether the watchdog ever takes a busy server for a hung one, and how soon it brings a hung one back.

    bench/watchdog.py abuse 60    stand-in, an hour: first tokens after 90 s, a token each 10 s, queues, cut streams
    bench/watchdog.py load 30     real vLLM (CPU), 30 min: a queue above 20, prompts up to the context, cut streams
    bench/watchdog.py hangs       real vLLM: its processes stopped, killed and spinning, one of two workers among them

The last two need the image and the model that `make deploy` leaves. All print JSON.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "real")]

#: Seconds of silence: the role's default against false alarms, and a short one to measure with.
DEFAULT, SHORT = 120.0, 20.0
#: Of the watchdog where a process is made to hang.
LIMITS = {"interval": 5, "silence": SHORT, "ready_timeout": 900, "stall_timeout": 600, "restarts": 20}
#: The longest step of the abuse, seconds.
PREFILL = 90.0
TOKEN = 10.0
#: Makes a process of Python compute for ever, and lets none of its threads run, as soon as it gets the signal.
SPIN = signal.SIGRTMIN + 5
SPINS = f"""\
import signal, sys
def spin(*_):
    sys.setswitchinterval(1e6)
    while True:
        pass
signal.signal({int(SPIN)}, spin)
"""
#: Trials: whose process (by its command line), and the signal.
ENGINE, WORKERS = "EngineCore", "Worker"
TRIALS = {"SIGSTOP": signal.SIGSTOP, "SIGKILL": signal.SIGKILL, "spinning": SPIN}


@contextlib.contextmanager
def watched(*, real: bool, **settings: Any) -> Iterator[tuple[Any, Any]]:
    """A server that was not started yet, and its watchdog."""
    import conftest  # noqa: F401, PLC0415  makes module_utils importable
    import docker  # noqa: PLC0415
    import standin  # noqa: PLC0415
    from local_inventory import IMAGE, SERVER  # noqa: PLC0415
    from vllm_server_tools import Server  # noqa: PLC0415
    from watchdog_tools import Watched  # noqa: PLC0415

    from ansible.module_utils.vllm_fleet.container.engine import Engine  # noqa: PLC0415

    client = docker.from_env()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, standin.using_images():
        server = Server(Engine(), client, IMAGE if real else standin.build_image(client), Path(folder))
        if real:
            server.fixed = {**SERVER, "ready_timeout": 900.0, "stall_timeout": 600.0}
        made = Watched(server)
        made.configure(interval=5, ready_timeout=900, stall_timeout=600, **settings)
        try:
            yield server, made
        finally:
            made.kill()
            server.close()


def ask(port: int, body: dict[str, Any], *, cut: bool = False, timeout: float = 3600.0) -> str:
    """Ask for a completion: `whole`, `cut`, or `lost`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.suppress(OSError, http.client.HTTPException):
        asked = json.dumps({**body, "stream": True})
        connection.request("POST", "/v1/completions", asked, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read(300) if cut else answer.read()
        return "cut" if cut else "whole" if said.endswith(b"[DONE]\n\n") else "lost"
    connection.close()
    return "lost"


class Clients:
    """Ask as the phase of the moment says, until the end."""

    def __init__(self, port: int, phase: Callable[[int], dict[str, Any] | None], number: int) -> None:
        """``phase`` gives the request of a client, None for none at the moment."""
        self.port, self.phase = port, phase
        self.over = threading.Event()
        self.counts = dict.fromkeys(("whole", "cut", "lost"), 0)
        self._lock = threading.Lock()
        for client in range(number):
            threading.Thread(target=self._work, args=(client,), daemon=True).start()

    def _work(self, client: int) -> None:
        while not self.over.wait(0.2):
            body = self.phase(client)
            if body is None:
                self.over.wait(1)
                continue
            cut = client % 5 == 4
            found = ask(self.port, body, cut=cut)
            with self._lock:
                self.counts[found] += 1


def look(made: Any, seconds: float, steps: list[float], queue: list[float]) -> dict[str, Any]:
    """Watch the page of metrics for so long: what an engine moves, and how long it stood still at most."""
    from ansible.module_utils.vllm_fleet.vllm import metrics  # noqa: PLC0415

    end, last, moved = time.monotonic() + seconds, None, time.monotonic()
    states: dict[str, int] = {}
    while time.monotonic() < end:
        time.sleep(1)
        with contextlib.suppress(OSError):
            page = made.get("/metrics").decode()
            now = {name: load.signature for name, load in metrics.engines(page).items()}
            if now != last:
                steps.append(time.monotonic() - moved)
                last, moved = now, time.monotonic()
            queue.append(metrics.load(page).waiting)
        state = str(made.state["state"])
        states[state] = states.get(state, 0) + 1
    steps.append(time.monotonic() - moved)
    return states


def unalarmed(
    server: Any, made: Any, minutes: float, phase: Callable[[int], dict[str, Any] | None], number: int
) -> dict[str, Any]:
    """What a trial against false alarms comes to: so many clients for so long, of a server that is ready."""
    made.start()
    made.until("serving", seconds=60)
    first = made.started_at()
    steps: list[float] = []
    queue: list[float] = []
    clients = Clients(server.port, phase, number)
    states = look(made, minutes * 60, steps, queue)
    clients.over.set()
    requests = dict(clients.counts)  # before what is open is lost with the server
    kinds = made.kinds()
    memory, cpu = made.usage()
    return {
        "minutes": minutes,
        "requests": requests,
        "states (looks)": states,
        "events": kinds,
        "restarts": kinds.count("restart"),
        "same start": made.started_at() == first,
        "longest stillness (s)": round(max(steps), 1),
        "looks with a queue above 20": f"{sum(1 for one in queue if one > 20)} of {len(queue)}",
        "queue (median)": statistics.median(queue) if queue else None,
        "watchdog (MB)": round(memory / 1e6, 1),
        "watchdog (s of CPU)": round(cpu, 2),
    }


def abuse(minutes: float) -> dict[str, Any]:
    """The stand-in, in five kinds of load that take turns."""
    begun, length = time.monotonic(), minutes * 60 / 10
    long, short = {"prompt": "word " * 900, "max_tokens": 2}, {"prompt": "word " * 12, "max_tokens": 12}

    def phase(client: int) -> dict[str, Any] | None:
        now = int((time.monotonic() - begun) / length) % 5
        if now == 0:  # long prompts alone, one after the other
            return long if client < 2 else None
        if now == 1:  # a token each ten seconds
            return short if client < 3 or client == 4 else None
        if now == 2:  # nobody
            return None
        if now == 3:  # a queue
            return short if client < 5 else {**short, "max_tokens": 4}
        return long if client == 0 else short if client < 5 else None

    with watched(real=False, silence=DEFAULT, model="acme/tiny") as (server, made):
        delays = {"STANDIN_PROMPT_DELAY": str(PREFILL / 9), "STANDIN_TOKEN_DELAY": str(TOKEN)}
        server.ready(env=delays, args={"max-num-seqs": 4, "max-model-len": 1024})
        return unalarmed(server, made, minutes, phase, 30)


def load(minutes: float) -> dict[str, Any]:
    """The real engine, full for so long."""
    with watched(real=True, silence=SHORT) as (server, made):
        body = {"model": server.fixed["model"], "max_tokens": 100, "ignore_eos": True}

        def phase(client: int) -> dict[str, Any]:
            return {**body, "prompt": "the " * (850 if client % 7 == 0 else 20)}

        made.configure(interval=5, silence=SHORT, ready_timeout=900, stall_timeout=600, model=body["model"])
        server.ready(args={**server.fixed["args"], "max-num-seqs": 4, "max-num-batched-tokens": 512})
        return unalarmed(server, made, minutes, phase, 28)


def hangs() -> dict[str, Any]:
    """The real engine's processes, one fault after the other: how soon it is out, and serves again."""
    from local_inventory import PRESET_VERIFY  # noqa: PLC0415

    return {**hangs_of_engine(PRESET_VERIFY), **hangs_of_worker()}


def hangs_of_engine(verify: list[dict[str, Any]]) -> dict[str, Any]:
    """One process that computes."""
    rows: dict[str, Any] = {}
    with watched(real=True, silence=SHORT) as (server, made):
        spins = server.folder / "spins"
        spins.mkdir()
        (spins / "sitecustomize.py").write_text(SPINS)
        extra = {"volumes": [f"{spins}:/spins:ro"], "env": {**server.fixed["env"], "PYTHONPATH": "/spins"}}
        begun = time.monotonic()
        server.ready(**extra)
        rows["start (s)"] = round(time.monotonic() - begun, 1)
        made.configure(**LIMITS, model=server.fixed["model"], verify=verify)
        for name, number in TRIALS.items():
            rows[f"engine, {name}"] = trial(server, made, ENGINE, number)
    return rows


def hangs_of_worker() -> dict[str, Any]:
    """Two that compute together, on random weights, which the seed's model cannot be cut into."""
    from tiny_model import make_model  # noqa: PLC0415

    rows: dict[str, Any] = {}
    with watched(real=True, silence=SHORT) as (server, made):
        spins = server.folder / "spins"
        spins.mkdir()
        (spins / "sitecustomize.py").write_text(SPINS)
        make_model(server.folder / "tiny")
        server.fixed |= {"model": "/models/tiny", "revision": None, "hf_cache": None}
        args = {"dtype": "float32", "max-model-len": 512, "enforce-eager": True, "load-format": "dummy"}
        volumes = [f"{spins}:/spins:ro", f"{server.folder / 'tiny'}:/models/tiny:ro"]
        env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "PYTHONPATH": "/spins"}
        begun = time.monotonic()
        server.ready(args={**args, "tensor-parallel-size": 2}, volumes=volumes, env=env, shm_size="1g")
        rows["start with two workers (s)"] = round(time.monotonic() - begun, 1)
        any_answer = {"timeout": 120, "requests": [{"prompt": "Hello", "max_tokens": 8, "expect": {"min_chars": 1}}]}
        made.configure(**LIMITS, model="/models/tiny", verify=any_answer)
        for name, number in TRIALS.items():
            rows[f"one of two workers, {name}"] = trial(server, made, WORKERS, number)
    return rows


def trial(server: Any, made: Any, who: str, number: int) -> dict[str, Any]:
    """Let clients ask, send the signal to one process, and wait until the server serves again."""
    if made.process is None:
        made.start()
    made.until("serving", seconds=900)
    first, seen = made.started_at(), len(made.events)
    body = {"model": server.fixed["model"], "prompt": "the " * 20, "max_tokens": 60, "ignore_eos": True}
    clients = Clients(server.port, lambda _: body, 6)
    # In the middle of its work; an engine's first steps are given more time than all later ones.
    while clients.counts["whole"] < 3:
        time.sleep(0.2)
    found: list[int] = []
    while not found:  # it names itself some time after its start
        found = [pid for pid in server.engine.pids(server.id()) if who.encode() in cmdline(pid)]
        time.sleep(0.2)
    pid = found[0]
    begun = time.monotonic()
    os.kill(pid, number)
    row: dict[str, Any] = {}
    deadline = begun + 900
    while time.monotonic() < deadline:
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            if "out (s)" not in row and made.agent() != "up\n":
                row["out (s)"] = round(time.monotonic() - begun, 1)
        # A dead engine ends its container, which Docker starts again before the watchdog has looked.
        again = made.started_at() != first and made.state["state"] == "serving"
        if again and ask(server.port, {**body, "max_tokens": 1}, timeout=5) == "whole":
            row["serves again (s)"] = round(time.monotonic() - begun, 1)
            break
    clients.over.set()
    row["events"] = [event["kind"] for event in made.events[seen:] if event["kind"] != "started"]
    row["why"] = next((event["why"] for event in made.events[seen:] if event["kind"] == "hung"), "")
    row["requests"] = clients.counts
    print(json.dumps({who: row}), flush=True)
    return row


def cmdline(pid: int) -> bytes:
    """How a process calls itself."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def main() -> None:
    """The command line."""
    verb, *rest = sys.argv[1:] or ["help"]
    if verb == "hangs":
        print(json.dumps(hangs(), indent=1))
    elif verb in ("abuse", "load") and rest:
        print(json.dumps({"abuse": abuse, "load": load}[verb](float(rest[0])), indent=1))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
