# SPDX-License-Identifier: Apache-2.0
"""Draining, admitting and the gate between waves, with HAProxy's socket played by this file: what is said to it, when."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gateway_scene
import play
import pytest
from standin import free_port

from ansible.module_utils.vllm_fleet.gateway import haproxy

MODEL, POOL = "acme/tiny", "acme_tiny"
SAME = {"actions": [], "confirmed": True, "container": {"status": "running"}}
EDIT = {**SAME, "actions": ["create", "stop", "keep", "rename", "start"]}
# An old check is no answer for a new server.
ADMITTED = [f"set server {POOL}/node1 health down", f"set server {POOL}/node1 state ready"]
COUNTS = "vllm:num_requests_running {}\nvllm:num_requests_waiting 0\n"


class HAProxy(socketserver.ThreadingUnixStreamServer):
    """Answers as HAProxy's runtime socket does; ``states`` by server, ``said`` is what it was told to change."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.states: dict[str, str] = {}
        self.said: list[str] = []
        super().__init__(str(path), Command)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, command: str) -> str:
        if command == "show info":
            return "Name: HAProxy\nVersion: 2.6.12-1+deb12u3\nPid: 1\n"
        if command == "show stat":
            head = "# pxname,svname,qcur,scur,stot,status,weight,check_status,last_chk,check_desc,lastchg,\n"
            return head + "".join(f"{POOL},{name},0,0,1,{state},1,,,,1,\n" for name, state in self.states.items())
        for part in command.split("; "):
            verb, what, server, *more = part.split()
            if (verb, what) in {("set", "server"), ("enable", "server")}:
                self.said.append(part)
                name = server.partition("/")[2]
                self.states[name] = {"drain": "DRAIN", "down": "DOWN", "ready": "UP"}[more[-1] if more else "ready"]
        return "\n"


class Command(socketserver.StreamRequestHandler):
    """One of them a connection."""

    server: HAProxy

    def handle(self) -> None:
        self.wfile.write(self.server.answer(self.rfile.readline().decode().strip()).encode())


class Engine(http.server.ThreadingHTTPServer):
    """A server's /metrics, one page after the other; the last one stays. None: it has no such page."""

    def __init__(self, port: int, *pages: str | None) -> None:
        self.pages = list(pages)
        super().__init__(("127.0.0.1", port), Page)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Page(http.server.BaseHTTPRequestHandler):
    """Of an Engine."""

    server: Engine

    def do_GET(self) -> None:
        pages = self.server.pages
        page = pages.pop(0) if len(pages) > 1 else pages[0]
        self.send_response(404 if page is None else 200)
        self.end_headers()
        self.wfile.write((page or "").encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Place:
    """This machine as one gateway and several nodes, and plays over the nodes."""

    def __init__(self, folder: Path) -> None:
        self.dir, self.port = folder, free_port()
        self.haproxy = HAProxy(folder / "haproxy.sock")
        self.calls = folder / "calls"

    def run(
        self,
        *tasks: dict[str, Any],
        nodes: int = 1,
        hosts: str = "vllm",
        gateway: bool = True,
        known: dict[str, Any] | None = None,
        **variables: Any,
    ) -> play.Run:
        """Run tasks on nodes, ``known`` of them before; ``facts`` are their outcomes in the rollout, by host."""
        values = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            "vllm_server_model": MODEL,
            "vllm_server_port": self.port,
            "vllm_server_state_dir": str(self.dir / "state"),
            "gateway_drain_timeout": 3,
            "gateway_admit_timeout": 3,
            "rollout_settle_timeout": 1,
            **variables,
        }
        groups: dict[str, Any] = {
            "vllm": {"hosts": {f"node{n}": (known or {}).get(f"node{n}", {}) for n in range(1, nodes + 1)}}
        }
        groups |= {"gateway": {"hosts": {"gateway1": {}}}} if gateway else {}
        (self.dir / "inventory.yml").write_text(json.dumps({"all": {"vars": values, "children": groups}}))
        note = self.dir / "facts.json"
        note.unlink(missing_ok=True)
        outcomes = "groups.vllm | map('extract', hostvars) | map(attribute='rollout_outcome', default={})"
        copy = {
            "content": f"{{{{ dict(groups.vllm | zip({outcomes})) | to_json }}}}",
            "dest": str(note),
            "mode": "0644",
        }
        tell = {"name": "Note", "ansible.builtin.copy": copy, "delegate_to": "localhost", "run_once": True}
        common = {"gather_facts": False, "become": False}
        plays = [
            {"name": "Do", "hosts": hosts, **common, "tasks": list(tasks)},
            {"name": "Tell", "hosts": "vllm", **common, "tasks": [tell]},
        ]
        (self.dir / "play.yml").write_text(json.dumps(plays))
        # A variable of the role itself, so an inventory does not reach it.
        socket = json.dumps({"__gateway_socket": str(self.haproxy.server_address)})
        words = [play.PLAYBOOK, "-i", self.dir / "inventory.yml", "-e", socket, self.dir / "play.yml"]
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            env=play.environment(),
            cwd=play.ROOT,
            check=False,
        )
        facts = json.loads(note.read_text()) if note.exists() else {}
        return play.Run(done.returncode, done.stdout + done.stderr, facts)

    def hooks(self) -> dict[str, str]:
        """Variables with files of tasks that write down that they were called."""
        for name in ("drain", "admit"):
            task = {
                "name": "Note",
                "ansible.builtin.shell": f"echo '{{{{ inventory_hostname }}}} {name}' >>{self.calls}",
            }
            (self.dir / f"{name}.yml").write_text(json.dumps([task]))
        return {f"rollout_{name}_tasks": str(self.dir / f"{name}.yml") for name in ("drain", "admit")}

    def called(self) -> list[str]:
        """What the hooks have written since the last time."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.haproxy.shutdown()
    made.haproxy.server_close()


def text(run: play.Run) -> str:
    return " ".join(run.output.split())


def fact(**values: Any) -> dict[str, Any]:
    return {"name": "Know", "ansible.builtin.set_fact": values}


def planned(hosts: list[str], nodes: int, **more: Any) -> dict[str, Any]:
    """What the entry point plan would have left at localhost."""
    made = {
        "hosts": hosts,
        "play": [f"node{n}" for n in range(1, nodes + 1)],
        "wrong": [],
        "reboot": [],
        "unchanged": [],
        "admit": [],
    }
    return {**fact(rollout_plan={**made, **more}), "delegate_to": "localhost", "delegate_facts": True, "run_once": True}


def test_a_server_is_drained_and_admitted_and_one_in_maintenance_is_left_in_it(place: Place) -> None:
    place.haproxy.states = {"node1": "UP", "node2": "MAINT"}
    roles = [play.role("gateway", entry) for entry in ("drain", "admit")]
    run = place.run(
        *roles, {**play.role("gateway", "verify_routing"), "when": "inventory_hostname == 'node2'"}, nodes=2
    ).ok()
    assert place.haproxy.said == [f"set server {POOL}/node1 state drain", *ADMITTED]
    assert place.haproxy.states == {"node1": "UP", "node2": "MAINT"}
    assert "node2 is in state MAINT at gateway1, where it stays" in text(run)
    assert "node1 is in state MAINT" not in text(run)


def test_a_gateway_that_knows_the_server_by_another_model_ends_it_before_anything_stops(place: Place) -> None:
    place.haproxy.states = {"node1": "UP"}
    said = text(place.run(play.role("gateway", "drain"), vllm_server_model="acme/before"))
    assert "node1 was not drained and nothing of it was stopped, because gateway1 did not do it" in said
    assert "'acme_before/node1' was not found" in said
    assert place.haproxy.said == []
    # Who takes the server away for good does not mind.
    task = {**play.role("rollout", "drain"), "vars": {"rollout_require_server": False}}
    place.run(task, vllm_server_model="acme/before").ok()


@pytest.mark.parametrize("gateway", [True, False], ids=["gateway", "hooks"])
def test_a_server_that_does_not_count_its_requests_is_replaced_all_the_same(place: Place, gateway: bool) -> None:
    """Without vLLM's gauges, as with disable-log-stats; what can be known was waited for before."""
    place.haproxy.states = {"node1": "UP"}
    engine = Engine(place.port, None)
    hooks = {} if gateway else place.hooks()
    run = place.run(play.role("rollout", "drain"), gateway=gateway, **hooks).ok()
    assert "node1 is not idle, it is stopped all the same: Nobody can tell whether the server is idle" in text(run)
    engine.shutdown()
    engine.server_close()


def test_with_hooks_alone_the_requests_are_waited_for_and_a_killed_run_leaves_no_server_drained(place: Place) -> None:
    engine = Engine(place.port, COUNTS.format(2), COUNTS.format(1), COUNTS.format(0))
    hooks = place.hooks()
    run = place.run(play.role("rollout", "drain"), gateway=False, **hooks).ok()
    assert (place.called(), len(engine.pages)) == (["node1 drain"], 1)
    assert "is not idle" not in text(run)
    engine.shutdown()
    engine.server_close()

    # Killed there. The next run finds the server as described.
    left = [planned([], 2, unchanged=["node1", "node2"]), play.role("rollout", "readmit_leftovers")]
    place.run(*left, hosts="node1", gateway=False, **hooks).ok()
    assert place.called() == ["node1 admit"]
    place.run(*left, hosts="node1", gateway=False, **hooks).ok()
    assert place.called() == []


@pytest.mark.parametrize(
    ("confirmed", "restored", "admitted"),
    [(True, False, True), (False, True, True), (False, False, False)],
    ids=["by its start", "by its verification", "no old one"],
)
def test_an_old_server_that_still_loads_is_left_to_the_gateways_checks(
    place: Place, confirmed: bool, restored: bool, admitted: bool
) -> None:
    """It was put back, and was not ready in time: it comes back by itself. A new one that was never good does not."""
    place.haproxy.states = {"node1": "DRAIN"}
    running = {"container": {"status": "running"}, "failure": {"class": "ready_timeout"}}
    known = {
        "vllm_server_result": {**EDIT, **running, "failed": True, "confirmed": confirmed},
        "rollout_outcome": {"state": "replacing"},
    }
    known |= {"vllm_server_restore_result": {**running, "confirmed": True}} if restored else {}
    place.run(play.role("rollout", "restore_or_confirm"), known={"node1": known}).ok()
    assert place.haproxy.said == ADMITTED * admitted


def test_a_wave_does_not_begin_when_a_server_has_died_since_the_plan(place: Place) -> None:
    place.haproxy.states = {"node1": "UP", "node2": "UP", "node3": "DOWN"}
    known = {
        "node1": {"vllm_server_result": EDIT, "rollout_outcome": {"state": "replaced", "serving": True}},
        "node2": {"vllm_server_result": EDIT},
        "node3": {"vllm_server_result": SAME},
    }
    wave = [planned(["node1", "node2"], 3), play.role("rollout")]
    run = place.run(*wave, hosts="node2", nodes=3, known=known, rollout_min_available=2).ok()
    why = f"only 1 replica of {MODEL} would stay (node1) and rollout_min_available is 2"
    assert run.facts["node2"] == {"state": "failed", "msg": f"It was not touched: {why}."}
    assert place.haproxy.said == []


def test_weights_that_cannot_be_read_fail_the_node_with_that_reason(place: Place) -> None:
    known = {"node1": {"vllm_server_result": EDIT}}
    cache = {"hf_cache_repo_id": MODEL, "hf_cache_folder": str(place.dir), "hf_cache_prewarm_rate": "fast"}
    run = place.run(planned(["node1"], 1), play.role("rollout"), gateway=False, known=known, **cache).ok()
    assert run.facts["node1"]["state"] == "failed"
    assert "'fast'" in run.facts["node1"]["msg"], run.output


def test_an_old_server_that_was_put_back_in_a_change_of_key_and_name_is_admitted_and_asked(place: Place) -> None:
    """With a real HAProxy. The server has the old key, the old name and the old port; the play knows the new ones."""
    port, stats = gateway_scene.free_ports(2)
    given = {"gateway_port": port, "gateway_local_offset": 1, "gateway_stats_port": stats}
    old = gateway_scene.Echo("node1", MODEL, key="old-key")
    args = {**old.host["vllm_server_args"], "served-model-name": ["acme/next", MODEL]}
    new = {"vllm_server_model": "acme/next", "vllm_server_api_key": "new-key", "vllm_server_args": args}
    gateway_scene.render(place.dir, {"node1": old.host}, **given)
    record = {"content": base64.b64encode((place.dir / "secrets.cfg").read_bytes()).decode()}
    more = {"__gateway_secrets_file": record, "__gateway_servers": []}
    gateway_scene.render(place.dir, {"node1": {**old.host, **new}}, **given, **more)
    spec = {"model": MODEL, "args": old.host["vllm_server_args"], "bind": "127.0.0.1", "port": old.server_port}
    failed = {**EDIT, "failed": True, "rolled_back": True, "spec": spec, "failure": {"class": "verification"}}
    known = {"node1": {"vllm_server_result": failed, "rollout_outcome": {"state": "replacing"}}}
    place.haproxy.shutdown()
    place.haproxy.server_close()
    with gateway_scene.running(place.dir, wait=False) as gateway:

        def states() -> dict[str, str]:
            with contextlib.suppress(haproxy.SocketError):
                return {one.backend: one.status for one in gateway.entries() if one.name == "node1"}
            return {}

        gateway_scene.until(
            lambda: states() == {"acme_next": "DOWN", POOL: "UP"}, "each pool knows whether it is of it"
        )
        for pool in states():
            haproxy.ask(gateway.socket, f"set server {pool}/node1 state drain")
        run = place.run(play.role("rollout", "recover"), known=known, vllm_server_port=8300, **given, **new).ok()
        assert states() == {"acme_next": "DOWN", POOL: "UP"}
        outcome = run.facts["node1"]
        assert (outcome["state"], outcome["serving"]) == ("failed", True), run.output
        assert "could not be admitted" not in text(run)
        # Asked through the gateway as the server that it is; its word was that it has another key.
        assert "ok: gateway : Send a request through every gateway to this server [node1]" in run.output, run.output
        asks = {"Authorization": "Bearer old-key"}
        assert gateway_scene.ask(port, "/v1/chat/completions", "POST", b'{"model": "acme/tiny"}', **asks)[0] == 200
    old.shutdown()
    old.server_close()
