# SPDX-License-Identifier: Apache-2.0
"""Two fleet nodes that serve one model together: what a user runs for them, and what is then there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fleet import Fleet

ROOT = Path(__file__).resolve().parents[2]
PORT = 8000
#: Run on the head's node, where the server listens on the loopback address.
_ASK = """
import sys, urllib.request
url = f"http://127.0.0.1:{sys.argv[1]}/v1/chat/completions"
request = urllib.request.Request(url, sys.argv[2].encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=120).read().decode())
"""
_HEALTH = """
import sys, urllib.request
urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health", timeout=3)
"""

_STAT = """
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect("/run/haproxy/vllm-fleet.sock")
link.sendall(b"show stat\\n")
sys.stdout.write(b"".join(iter(lambda: link.recv(65536), b"")).decode())
"""


@dataclass(frozen=True)
class Run:
    """What a play said."""

    rc: int
    output: str

    def ok(self) -> Run:
        """Insist that it went through."""
        assert self.rc == 0, self.output
        return self

    def changed(self) -> dict[str, int]:
        """Changed tasks of each host in the recap."""
        return {h: int(n) for h, n in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", self.output, re.MULTILINE)}

    def words(self) -> str:
        """The output in one line, for sentences that the terminal's output wraps."""
        return " ".join(self.output.split())


class Replica:
    """The first two nodes of a fleet as one server: a play with the role alone, and variables that a test edits."""

    def __init__(self, fleet: Fleet, folder: Path, **variables: Any) -> None:
        """Nothing is deployed yet. ``variables`` hold for all hosts of the replica."""
        self.fleet, self.folder = fleet, folder
        self.addresses = {name: fleet.node(name).address for name in ("node1", "node2")}
        self.others: dict[str, dict[str, Any]] = {}
        self.variables: dict[str, Any] = {
            "vllm_server_replica": "pair",
            "vllm_server_accelerator": "cpu",
            "vllm_server_hf_cache": "",
            "vllm_server_interface": "eth0",
            "vllm_server_stop_timeout": 6,
            **variables,
        }
        play = [{"hosts": "pair", "become": True, "gather_facts": False, "roles": ["vllm_server"]}]
        (folder / "play.yml").write_text(yaml.safe_dump(play))

    def write(self, hosts: dict[str, Any] | None = None, **changes: Any) -> None:
        """Write the inventory, with ``changes`` for both hosts and ``hosts`` ({name: variables}) for single ones."""
        own = {n: (hosts or {}).get(n, {}) for n in self.addresses}
        pair = {"hosts": own, "vars": self.variables | changes}
        others = {n: {**values, **(hosts or {}).get(n, {})} for n, values in self.others.items()}
        (self.folder / "more.yml").write_text(yaml.safe_dump({"vllm": {"hosts": others, "children": {"pair": pair}}}))

    def play(self, *words: str, hosts: dict[str, Any] | None = None, play: str = "play.yml", **changes: Any) -> Run:
        """Run it, with the variables of ``write``.

        ``play``: a file of the test's folder, or a playbook of the project as an absolute path.
        """
        self.write(hosts, **changes)
        command = [Path(sys.executable).with_name("ansible-playbook"), "-i", f"{self.fleet.directory}/inventory.yml"]
        command += ["-i", self.folder / "more.yml", self.folder / play, *words]
        environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "1000"}
        done = subprocess.run(
            [str(w) for w in command], cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=900
        )
        return Run(done.returncode, done.stdout + done.stderr)

    # -- what is there -----------------------------------------------------------------------------------------

    def sh(self, node: str, script: str, *, check: bool = True) -> str:
        """Run a script as root on a node."""
        return self.fleet.exec(node, ["sh", "-c", script], check=check, timeout=300).stdout.strip()

    def containers(self) -> dict[str, dict[str, str]]:
        """Of every node its containers: name to id and state."""
        out = {}
        for node in self.addresses:
            rows = self.sh(node, "docker ps -a --no-trunc --format '{{.Names}} {{.ID}} {{.State}}'").splitlines()
            out[node] = {r.split()[0]: " ".join(r.split()[1:]) for r in rows}
        return out

    def inspect(self, node: str, name: str = "vllm") -> dict[str, Any]:
        """Docker's inspect of a node's container."""
        found: list[dict[str, Any]] = json.loads(self.sh(node, f"docker inspect {name}"))
        return found[0]

    def gateway(self) -> dict[str, str]:
        """Of every server that the gateway knows its state, in HAProxy's word."""
        table = self.fleet.exec("gateway1", ["python3", "-c", _STAT]).stdout.lstrip("# ").splitlines()
        rows = [dict(zip(table[0].split(","), line.split(","), strict=False)) for line in table[1:]]
        return {row["svname"]: row["status"].split()[0] for row in rows if row.get("svname", "").startswith("node")}

    def ask(self, model: str = "acme/tiny", content: str = "What is the capital of France?", port: int = PORT) -> str:
        """Ask the head a question, from the head."""
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 16}
        done = self.fleet.exec("node1", ["python3", "-c", _ASK, str(port), json.dumps(body)])
        return str(json.loads(done.stdout)["choices"][0]["message"]["content"])

    def healthy(self, port: int = PORT) -> bool:
        """Whether the head says that it is."""
        return self.fleet.exec("node1", ["python3", "-c", _HEALTH, str(port)], check=False).returncode == 0

    def wait(self, what: str, condition: Any, seconds: float) -> float:
        """Wait for something to become true; gives the seconds that it took."""
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < seconds, f"{what}: not within {seconds} s\n{self.logs()}"
            time.sleep(0.5)
        return time.monotonic() - begun

    def logs(self, lines: int = 30) -> str:
        """The last lines of all nodes' servers."""
        texts = [f"== {n}\n" + self.sh(n, f"docker logs --tail {lines} vllm 2>&1", check=False) for n in self.addresses]
        return "\n".join(texts)

    def clear(self, images: Sequence[str] = ()) -> None:
        """Remove every container, and what the role remembers of them."""
        for node in self.addresses:
            self.sh(node, "docker rm -f $(docker ps -aq) >/dev/null 2>&1; rm -rf /var/lib/vllm-fleet/vllm", check=False)
            for image in images:
                self.sh(node, f"docker rmi -f {image}", check=False)
