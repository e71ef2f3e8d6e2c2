# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S101  a story is what it insists on
"""Runs killed (SIGKILL) at the boundaries of gate, soak and way back, one after the other, on a fleet with clients.

Each story is a chain: a run that is killed at a boundary, the next one at the next boundary, at last one that ends. Its
end is checked: the old release on all nodes, all of them up at the gateway, an exit code that is not 0, and no request
lost but those that the bad release itself answered with an error. Prints a row for each run.

    bench/boundaries.py [gate soak slow watchdog stuck]
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("fleet_rollout", "")]

import scene as scenes  # noqa: E402

NODES = ["bookworm", "trixie", "bookworm"]
GOOD = {"STANDIN_START_SECONDS": "0.5", "STANDIN_TOKEN_DELAY": "0.02"}
ROLLOUT = ("--tags", "rollout")
SOAKS = r"the new release is watched for (\d+) s more"
CONFIRMED = "after:Confirm the server, and record the release"
BACK = {"rollout_on_failure": "rollback"}
#: In a node's cache, and where its container has it: the old release does not start while it is there.
STOP, STOP_INSIDE = ".cache/huggingface/stop", "/root/.cache/huggingface/stop"


class Chain:
    """The runs of one story on the fleet, which is on its old release when it begins."""

    def __init__(self, scene: scenes.Scene, **old: Any) -> None:
        """Bring the old release."""
        self.scene, self.rows = scene, list[str]()
        scene.variables = {}
        scene.deploy(**{"vllm_server_env": GOOD, **old}).ok()
        self.before = made_of(scene)

    def killed(self, at: str, **edits: Any) -> None:
        """A run that kills itself there."""
        began = time.monotonic()
        self.scene.killed(at, *ROLLOUT, **edits)
        self.row(f"killed {at}", began)

    def started(self, until: str, kill: str = "", **edits: Any) -> scenes.Going:
        """A run that has come so far, and goes on."""
        run = self.scene.start(*ROLLOUT, kill=kill, **edits)
        run.until(until)
        return run

    def ended(self, run: scenes.Going | None = None, **edits: Any) -> scenes.Run:
        """A run that ends, with another code than 0."""
        began = time.monotonic()
        done = (run or self.scene.start(*ROLLOUT, **edits)).wait().failed()
        assert done.rc > 0, done.output
        self.row(f"ended with {done.rc}: {sentence(done)}", began)
        return done

    def row(self, what: str, began: float) -> None:
        """Note how the nodes stand after a run."""
        stand = ", ".join(
            f"{node} {'old' if found == self.before[node] else 'new'} {self.scene.gateway().get(node)}"
            for node, found in made_of(self.scene).items()
        )
        self.rows.append(f"{time.monotonic() - began:4.0f} s  {what}\n        {stand}")
        print(f"  {self.rows[-1]}", flush=True)

    def whole(self) -> None:
        """Insist on the old release everywhere, and on all being up."""
        assert made_of(self.scene) == self.before
        self.scene.until(lambda: set(self.scene.gateway().values()) == {"UP"}, "all are up")


def made_of(scene: scenes.Scene) -> dict[str, list[str]]:
    """Return what the nodes' servers are started with."""
    configs = {node: scene.server(node)["Config"] for node in scene.nodes}
    return {node: sorted([*found["Cmd"], *found["Env"]]) for node, found in configs.items()}


def sentence(done: scenes.Run) -> str:
    """Return what the run said of its first failure."""
    found = re.findall(r"(?:did not pass|Not rolled back|inter-token|stopped there).*", done.output)
    return " ".join(found[-1].split())[:400] if found else ""


def gate(scene: scenes.Scene) -> None:
    """A slower release, by the gate."""
    chain = Chain(scene)
    limits = {"itl": 1.3, "answers": 0.9}
    load = {"seconds": 2, "concurrency": 2, "input_tokens": 40, "output_tokens": 20}
    slow = {"vllm_server_env": {**GOOD, "STANDIN_TOKEN_DELAY": "0.05"}}
    with scene.clients(4) as clients:
        chain.killed("after:Measure the release that is replaced", **slow, rollout_gate=limits, rollout_gate_load=load)
        chain.killed("after:Measure the new release")
        chain.killed("after:Fail when the new release is worse")
        # The name of a file of tasks, too: the task in it has not begun.
        chain.killed("after:Restore the previous server")
        done = chain.ended()
        clients.wait_for(8)
    assert "inter-token latency is" in done.text
    chain.whole()
    assert clients.report.clean, clients.report
    print(f"  {clients.report}", flush=True)


def soak(scene: scenes.Scene) -> None:
    """A release that leaks errors, by the soak, with the way back."""
    chain = Chain(scene)
    env = {**GOOD, "STANDIN_CONTROL": "1"}
    with scene.clients(8) as clients:
        chain.killed(CONFIRMED, vllm_server_env=env, rollout_soak="2m", **BACK)
        began = time.monotonic()
        run = chain.started(SOAKS, kill="after:Record what is wrong with the new release")
        assert int(re.findall(SOAKS, run.output)[0]) > 110, run.output
        scene.order("node1", "leak")
        assert run.wait().rc < 0
        chain.row("killed after the failed look", began)
        asked = len(clients.report.failures), clients.report.errors
        chain.killed("after:Record that the server is drained")
        assert scene.gateway()["node1"] == "DRAIN"
        # The release that failed is drained, and the next run must not admit it.
        chain.killed(CONFIRMED)
        assert scene.gateway()["node1"] == "DRAIN"
        assert made_of(scene) == chain.before
        lost = clients.report.errors - asked[1]
        print(f"  {lost} errors between the failed look and the old release", flush=True)
        # The same command once more brings the release again; it is watched anew.
        began = time.monotonic()
        run = chain.started(SOAKS)
        scene.order("node1", "leak")
        done = chain.ended(run)
        clients.wait_for(8)
    assert "Rolled back, because node1 failed: node1 serves release" in done.text
    assert "1 failed and taken back" in done.text
    chain.whole()
    assert all("made to leak" in why for why in clients.report.failures), clients.report
    assert clients.report.truncated == 0
    print(f"  {str(clients.report).splitlines()[0]}", flush=True)


def slow(scene: scenes.Scene) -> None:
    """A release whose answers begin late after its gate."""
    chain = Chain(scene)
    env = {**GOOD, "STANDIN_CONTROL": "1"}
    with scene.clients(24) as clients:
        run = chain.started(SOAKS, vllm_server_env=env, rollout_soak="5m", **BACK)
        scene.order("node1", "slow", "5")
        done = chain.ended(run)
        clients.wait_for(8)
    assert re.search(r"its answers begin after \d+ ms at the gateways, those of its peers after \d+ ms", done.text)
    chain.whole()
    assert clients.report.clean, clients.report
    print(f"  {clients.report}", flush=True)


def watchdog(scene: scenes.Scene) -> None:
    """A release whose server hangs in its soak, seen by its watchdog."""
    chain = Chain(scene, vllm_watchdog_enabled=True, vllm_watchdog_silence=10)
    env = {**GOOD, "STANDIN_SHARDS": "5"}
    number = 4
    with scene.clients(number) as clients:
        run = chain.started(SOAKS, vllm_server_env=env, rollout_soak="5m", **BACK)
        scene.fleet.exec("node1", ["kill", "-STOP", str(scene.server("node1")["State"]["Pid"])])
        done = chain.ended(run)
        clients.wait_for(8)
    assert "its watchdog says hung" in done.text, done.output
    chain.whole()
    assert clients.report.errors + clients.report.truncated <= number, clients.report
    print(f"  {clients.report}", flush=True)
    scene.deploy(vllm_watchdog_enabled=False, vllm_server_env=GOOD).ok()


def stuck(scene: scenes.Scene) -> None:
    """A release that breaks on the last node, and a first node that cannot go back: no weights there, or no start."""
    old = {**GOOD, "STANDIN_FAIL_IF": STOP_INSIDE}
    chain = Chain(scene, vllm_server_env=old)
    breaks = {**GOOD, "STANDIN_FAIL_TEXT": "vllm serve: error: argument --dtype: invalid choice: 'float31'"}
    env = f"{{{{ {json.dumps(breaks)} if inventory_hostname == 'node3' else {json.dumps(GOOD)} }}}}"
    home = scene.fleet.exec("node1", ["sh", "-c", "echo ~ops"]).stdout.strip()
    with scene.clients(4) as clients:
        run = chain.started(r"wave by wave: node3", vllm_server_env=env, **BACK)
        scene.fleet.exec("node1", ["mv", f"{home}/.cache/huggingface/hub", f"{home}/.cache/huggingface/away"])
        done = chain.ended(run)
        assert "Not rolled back: node1, which still serves the new release" in done.text, done.output
        scene.fleet.exec("node1", ["mv", f"{home}/.cache/huggingface/away", f"{home}/.cache/huggingface/hub"])
        run = chain.started(r"wave by wave: node3")
        scene.fleet.exec("node1", ["touch", f"{home}/{STOP}"])
        done = chain.ended(run)
        assert "Not rolled back: node1, which still serves the new release" in done.text, done.output
        assert set(scene.gateway().values()) == {"UP"}
        scene.fleet.exec("node1", ["rm", f"{home}/{STOP}"])
        done = chain.ended()
        clients.wait_for(8)
    assert "Rolled back, because node3 failed" in done.text
    assert "Not rolled back" not in done.text
    chain.whole()
    assert clients.report.clean, clients.report
    print(f"  {clients.report}", flush=True)


STORIES: dict[str, Callable[[scenes.Scene], None]] = {one.__name__: one for one in (gate, soak, slow, watchdog, stuck)}


def main() -> None:
    """Tell the stories that were asked for, by default all."""
    scenes.NODES[:] = NODES
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        name = os.environ.get("VLLM_FLEET_SCENE_NAME") or f"bench-boundaries-{os.getpid()}"
        scene = scenes.Scene(name, Path(folder) / "scene")
        try:
            scene.up()
            scene.deploy().ok()
            for story in sys.argv[1:] or STORIES:
                began = time.monotonic()
                print(f"{story}: {STORIES[story].__doc__}", flush=True)
                STORIES[story](scene)
                print(f"  {time.monotonic() - began:.0f} s in all", flush=True)
        finally:
            scene.down()


if __name__ == "__main__":
    main()
