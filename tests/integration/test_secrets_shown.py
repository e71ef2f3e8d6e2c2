# SPDX-License-Identifier: Apache-2.0
"""A secret down every path, and every way out searched: the terminal at -vvvv, what modules log, records, reports, facts,
temporary files, and the process list while it runs."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import play
import pytest
import yaml
from standin import free_port

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
#: No secret is a part of another one, and the last has what some form writes otherwise.
NAMES = ("key", "token", "named", "auth", "keys", "proxy", "url", "header", "request", "list", "text", "arg", "odd")
CANARY = {name: f"canary4f1d-{name}-0123456789" for name in NAMES}
CANARY["token"] = "hf_" + CANARY["token"].replace("-", "X")
CANARY["odd"] = "canary4f1d'\"odd/+é&<>-0123456789"
#: Parts of them as they stand in each form, without a quote that would match itself in a process list.
TRACE = "canary4f1d"
TRACES = re.compile(
    "|".join(
        re.escape(text)
        for one in [TRACE, *CANARY.values()]
        for text in (one, quote(one, safe=""), base64.b64encode(one.encode()).decode().rstrip("=")[:12])
    )
)
#: What the modules' Python writes to syslog goes to a file.
SITE = """
import os, syslog
def log(*words):
    with open(os.environ["FLEET_SYSLOG"], "a") as file:
        file.write(f"{words[-1]}\\n")
syslog.syslog = log
"""


class Ways:
    """One "node", this machine, and all that a run says or leaves."""

    def __init__(self, folder: Path, image: str) -> None:
        self.folder, self.name = folder, f"shown-{os.getpid()}"
        self.syslog, self.python = folder / "syslog", folder / "python3"
        (folder / "site").mkdir()
        (folder / "site/sitecustomize.py").write_text(SITE)
        self.python.write_text(
            f'#!/bin/sh\nFLEET_SYSLOG={self.syslog} PYTHONPATH={folder}/site exec /usr/bin/python3 "$@"\n'
        )
        self.python.chmod(0o755)
        self.seen: set[str] = set()
        self.variables: dict[str, Any] = {
            "vllm_server_name": self.name,
            "vllm_server_image": image,
            "vllm_server_model": "acme/tiny",
            "vllm_server_accelerator": "cpu",
            "vllm_server_port": free_port(),
            "vllm_server_hf_cache": "",
            "vllm_server_state_dir": str(folder / "state"),
            "vllm_server_stop_timeout": 6,
            "vllm_server_api_key": CANARY["key"],
            "hf_token": CANARY["token"],
            "vllm_server_env": self.env(),
            "vllm_server_verify": [
                {
                    "name": "capital",
                    "prompt": "What is the capital of France?",
                    "max_tokens": 30,
                    "expect": {"pattern": "Paris"},
                }
            ],
        }

    def env(self, change: str = "") -> dict[str, str]:
        return {
            "STANDIN_START_SECONDS": "0.3",
            "HF_HUB_OFFLINE": "0",
            "MY_API_KEY": CANARY["named"] + change,
            "AUTH": CANARY["auth"] + change,
            "MY_KEYS": CANARY["keys"] + change,
            "HTTPS_PROXY": f"http://user:{CANARY['proxy']}{change}@proxy.example:3128",
            "S3_URL": f"https://AKIA:{CANARY['url']}{change}@s3.example/bucket",
            "ODD_SECRET": CANARY["odd"] + change,
        }

    def run(self, tasks: list[dict[str, Any]], *words: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run tasks at -vvvv, and look at all processes meanwhile."""
        path = play.write(self.folder, tasks, {}, [])
        (self.folder / "vars.yml").write_text(yaml.safe_dump({**self.variables, **variables}))
        local = {"ansible_connection": "local", "ansible_python_interpreter": str(self.python)}
        command = [
            *(play.PLAYBOOK, "-i", "localhost,", "-e", json.dumps(local), "-e", f"@{self.folder}/vars.yml"),
            *(str(path), "-vvvv", "--diff", *words),
        ]
        ended = threading.Event()
        look = threading.Thread(target=self._look, args=(ended,))
        look.start()
        environ = {**play.environment(), "VLLM_FLEET_REPORTS": str(self.folder / "reports")}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environ, cwd=ROOT, check=False, timeout=120
            )
        finally:
            ended.set()
            look.join(10)
        (self.folder / f"said-{len(list(self.folder.glob('said-*')))}").write_text(done.stdout + done.stderr)
        return done

    def _look(self, ended: threading.Event) -> None:
        while not ended.wait(0.2):
            shown = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=False, timeout=10)
            self.seen |= {line for line in shown.stdout.splitlines() if TRACES.search(line)}

    def left(self) -> list[str]:
        """Every file of these runs that has a trace of a secret, but for the test's own variables."""
        begun = (self.folder / "site").stat().st_mtime
        # Ansible's own temporary files, and what it leaves of a module that was killed.
        places = [self.folder, Path.home() / ".ansible/tmp", *Path("/tmp").glob("ansible*")]
        found = []
        walked = (Path(folder, name) for place in places for folder, _, files in os.walk(place) for name in files)
        for path in walked:
            try:
                if path.name in ("vars.yml", "play.yml") or not path.is_file() or path.stat().st_mtime < begun:
                    continue
                if TRACES.search(path.read_bytes().decode("utf-8", "replace")):
                    found.append(str(path))
            except OSError:  # of another test, which is gone meanwhile
                continue
        return found


@pytest.fixture
def ways(tmp_path: Path, standin_image: str, docker_client: Any) -> Iterator[Ways]:
    made = Ways(tmp_path, standin_image)
    yield made
    for container in docker_client.containers.list(all=True, filters={"name": made.name}):
        container.remove(force=True, v=True)


def test_no_way_out_shows_a_secret(ways: Ways) -> None:
    server = [play.role("vllm_server")]
    first = ways.run(server)
    assert first.returncode == 0, first.stdout[-4000:]
    # A difference in each of them; with a log in which the server says what it was given, and dies.
    echo = {"STANDIN_FAIL_TEXT": f"ValueError: {CANARY['key']} {json.dumps(CANARY['odd'] + 'x')}"}
    changed = ways.run(server, vllm_server_env={**ways.env("x"), **echo})
    assert changed.returncode != 0
    assert "fingerprint" in changed.stdout
    assert "http://user:***@proxy.example:3128" in changed.stdout
    # Forms in which nobody can tell a secret by its name, a wrong value beside it, and a request with a key of its own.
    # As variables: of a task that fails Ansible shows the text.
    server_at, asked = {"image": "x:1", "model": "a/b"}, {"name": "a", "prompt": "x", "api_key": CANARY["request"]}
    wrong = {
        "vllm_server": [
            {**server_at, "env": [f"X_KEY={CANARY['list']}"]},
            {**server_at, "env": f"X_KEY={CANARY['text']}", "port": "no"},
            {**server_at, "args": f"--api-key {CANARY['arg']}"},
        ],
        "vllm_chat": [
            {
                "url": f"http://127.0.0.1:{ways.variables['vllm_server_port']}",
                "api_key": CANARY["key"],
                "requests": [{**asked, "headers": {"X-Door": CANARY["header"]}}],
            }
        ],
    }
    tasks = [
        {"name": "Try", module: f"{{{{ wrong.{module}[{number}] }}}}", "ignore_errors": True, "register": "said"}
        for module, calls in wrong.items()
        for number in range(len(calls))
    ]
    ways.run(tasks, wrong=wrong)

    assert not ways.seen
    assert ways.left() == []
    assert "Invoked with" in ways.syslog.read_text()
    assert list((ways.folder / "state").rglob("releases/*.json")), "a record was searched"
    assert len(first.stdout) > 10_000
