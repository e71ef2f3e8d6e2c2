#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A fleet that deploy.yml has to deal with: four nodes of two distributions, one gateway, stand-in servers, canary keys.

scene.py up NAME DIR      boots it and writes DIR/inventory.yml and DIR/group_vars
scene.py down NAME
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("fleet", "integration", "load", "")]

from fake_hf_cache import FakeCache  # noqa: E402
from fleet import Fleet  # noqa: E402
from load import Load  # noqa: E402

NODES = ["bookworm", "bookworm", "trixie", "trixie"]
MODEL = "acme/tiny"
KEY, NEXT, TOKEN = "canary-key-7d1f0c52a9", "canary-next-55a3e1b7d0", "hf_canaryTokenE81b06c3f4"
# Long enough for everything that is waited for here.
PATIENCE = 180.0

ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect("/run/haproxy/vllm-fleet.sock"); s.sendall(sys.argv[1].encode() + b"\\n")
sys.stdout.write(b"".join(iter(lambda: s.recv(65536), b"")).decode())
"""


@dataclass(frozen=True)
class Run:
    """What ansible-playbook said."""

    rc: int
    output: str

    @property
    def text(self) -> str:
        """The output with every run of white space as one blank: sentences are found whatever their breaks."""
        return " ".join(self.output.split())

    def recap(self, word: str) -> dict[str, int]:
        """A count of the recap, by host."""
        found = re.findall(rf"^(\S+)\s+: .*\b{word}=(\d+)", self.output, re.MULTILINE)
        return {host: int(count) for host, count in found}

    def ok(self) -> Run:
        """Insist that it went through."""
        assert self.rc == 0, self.output
        return self

    def failed(self) -> Run:
        """Insist that it did not."""
        assert self.rc != 0, self.output
        return self


class Going:
    """A run under way, its output in a file."""

    def __init__(self, command: list[str], log: Path, environ: dict[str, str]) -> None:
        self.log = log
        with log.open("w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, pattern: str) -> None:
        """Wait until the output has a match."""
        end = time.monotonic() + PATIENCE
        while not re.search(pattern, self.output):
            assert self.process.poll() is None, f"ended before {pattern!r}\n{self.output}"
            assert time.monotonic() < end, f"no {pattern!r}\n{self.output}"
            time.sleep(0.05)

    def wait(self) -> Run:
        """Let it end."""
        return Run(self.process.wait(2 * PATIENCE), self.output)

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory is short: the workers are not told."""
        self.process.kill()
        self.process.wait(PATIENCE)


class Scene:
    """The fleet, and deploy.yml with variables that a test edits."""

    def __init__(self, name: str, directory: Path) -> None:
        self.fleet, self.dir = Fleet(name, say=lambda line: print(line, flush=True)), directory
        self.variables: dict[str, Any] = {}
        # Whether a test's edits are to be forgotten at its end.
        self.bad = False
        self.runs = 0
        self.groups, self.reports = directory / "group_vars" / "all", directory / "reports"

    # -- life

    def up(self, *, lasting: bool = False) -> None:
        """Boot it, give it image and variables. ``lasting``: it is to outlive this process."""
        import docker
        import standin

        self.fleet.up(self.dir, NODES, gateways=["bookworm"], lasting=lasting)
        with standin.using_images():
            client = docker.from_env()
            image = standin.build_image(client)
            identity = client.images.get(image).id
            self.fleet.load([image])
        seed = FakeCache(self.dir / "seed", repo_id=MODEL)
        name, _, tag = image.partition(":")
        self.groups.mkdir(mode=0o700, parents=True)
        (self.groups / "site.json").write_text(json.dumps(variables(name, tag, identity, seed)))

    def down(self) -> None:
        """Take it away."""
        self.fleet.down()

    # -- runs

    def start(
        self, *words: str, playbook: str = "deploy.yml", template: str = "", kill: str = "", **edits: Any
    ) -> Going:
        """Begin a run; `edits` stay for those that follow. What an inventory `template` says is above the scene's groups.

        `kill`: where it kills itself, in the words of tests/callbacks/kill_at.py.
        """
        self.variables |= edits
        # Later than site.json, and not with -e, which is above what a rollback takes from the records.
        (self.groups / "z-edits.json").write_text(json.dumps(self.variables))
        self.runs += 1
        inventories = [*([str(ROOT / template)] if template else []), str(self.dir / "inventory.yml")]
        command = ["ansible-playbook", *(word for one in inventories for word in ("-i", one))]
        # Not Molecule's own, which lead elsewhere and colour what is read here.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PY_COLORS"))}
        environ |= {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "2000"}
        environ["VLLM_FLEET_REPORTS"] = str(self.reports)
        if kill:
            folders = (ROOT / "callback_plugins", ROOT / "tests" / "callbacks")
            environ |= {"ANSIBLE_CALLBACK_PLUGINS": ":".join(map(str, folders)), "VLLM_FLEET_KILL": kill}
        return Going([*command, str(ROOT / playbook), *words], self.dir / f"run{self.runs}.log", environ)

    def deploy(self, *words: str, playbook: str = "deploy.yml", template: str = "", **edits: Any) -> Run:
        """A whole run."""
        return self.start(*words, playbook=playbook, template=template, **edits).wait()

    def killed(self, at: str, *words: str, **edits: Any) -> Run:
        """A run that is killed (SIGKILL) exactly there, in the words of tests/callbacks/kill_at.py."""
        run = self.start(*words, kill=at, **edits).wait()
        assert run.rc == -signal.SIGKILL, f"ended with {run.rc} and not {at!r}\n{run.output}"
        return run

    def order(self, node: str, word: str, body: str = "") -> None:
        """Tell a node's stand-in, started with STANDIN_CONTROL, to behave otherwise from now on."""
        url = f"http://127.0.0.1:8000/standin/{word}"
        ask = f"import urllib.request as u; u.urlopen({url!r}, {body.encode()!r}, timeout=10)"
        self.fleet.exec(node, ["python3", "-c", ask])

    # -- what is there

    @property
    def nodes(self) -> list[str]:
        """The serving nodes."""
        return [node.name for node in self.fleet.nodes if node.group == "vllm"]

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://{self.fleet.node('gateway1').address}:8080"

    def clients(self, number: int) -> Load:
        """Clients that ask there with the fleet's key as it is now, one request at a time each."""
        key = self.variables.get("vllm_server_api_key", KEY)
        return Load(self.url, model=MODEL, api_key=key, concurrency=number)

    def server(self, node: str) -> dict[str, Any]:
        """Docker's account of a node's server."""
        found: list[dict[str, Any]] = json.loads(self.fleet.exec(node, ["docker", "inspect", "vllm"]).stdout)
        return found[0]

    def servers(self) -> dict[str, str]:
        """The nodes' containers, by their ids."""
        return {node: self.server(node)["Id"] for node in self.nodes}

    def gateway(self, column: str = "status") -> dict[str, str]:
        """The state of every server at the gateway, in HAProxy's word, or another column of its table."""
        table = self.fleet.exec("gateway1", ["python3", "-c", ASK, "show stat"]).stdout.lstrip("# ")
        lines = [line.split(",") for line in table.splitlines()]
        names = lines[0]
        rows = [dict(zip(names, line, strict=False)) for line in lines[1:]]
        return {row["svname"]: row[column].split()[0] for row in rows if row.get("svname", "").startswith("node")}

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for something to become so."""
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, f"never: {what}"
            time.sleep(0.2)


def variables(name: str, tag: str, identity: str, seed: FakeCache) -> dict[str, Any]:
    """What a user of this fleet would have in group_vars, the vault's part included."""
    return {
        "vllm_server_model": MODEL,
        "vllm_server_revision": seed.commit,
        "vllm_server_accelerator": "cpu",
        "vllm_server_args": {"max-model-len": 512},
        "vllm_server_env": {"STANDIN_START_SECONDS": "0.5", "STANDIN_TOKEN_DELAY": "0.02"},
        "vllm_server_bind": "0.0.0.0",
        "vllm_server_api_key": KEY,
        "hf_token": TOKEN,
        # As from an archive that was loaded before: no registry is asked.
        "vllm_image_source": "archive",
        "vllm_image_archive": "/nowhere.tar",
        "vllm_image_expected_id": identity,
        "vllm_image_name": name,
        "vllm_image_tag": tag,
        "hf_cache_source": "controller",
        # Four nodes and a few bytes: a swarm would only cost its packages.
        "hf_cache_distribution": "rsync",
        "hf_cache_controller_path": str(seed.cache),
        "hf_cache_path": "~/.cache/huggingface",
        "hf_cache_create": True,
        "gateway_drain_timeout": 30,
        # Stories name their canaries; whose clients are few at some moment is not theirs to know.
        "rollout_order": "inventory",
    }


def main() -> None:
    """The command line."""
    verb, name, *rest = sys.argv[1:]
    if verb == "up":
        Scene(name, Path(rest[0]).resolve()).up(lasting=True)
    else:
        Fleet(name).down()


if __name__ == "__main__":
    main()
