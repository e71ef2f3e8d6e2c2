# SPDX-License-Identifier: Apache-2.0
"""A secret in every variable of every role, on a node with a journal: what its user, its disk and its processes see of it.

The values are ones that people write: a URL with a password, `NAME=value` in a list, a key by its name, a header. Most are
wrong for their variable, so that each role also says what it does not like.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import play
import pytest
import yaml
from fleet import Fleet

from ansible.module_utils.vllm_fleet.common import secrets
from ansible.module_utils.vllm_fleet.preflight.role_specs import OWN

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
TRACE = "canary8b3e"
#: Where a role is; what a file on the controller is called is what its user has named it.
HARMLESS = {"preflight_json": "", "burnin_json": "", "ansible_host": ""}
#: Paths, a name and an address that are words of a command or of a module's call on a node: they stand in its process list
#: and its journal.
WORDS = {"fleet_lock_path", "preflight_sysfs_root", "vllm_server_name", "vllm_server_bind"}
#: Folders of a node in which something may be left.
LEFT = "/tmp /var/tmp /run /root/.ansible /home/ops/.ansible /var/lib/vllm-fleet /var/log /etc/vllm-fleet"


def value(name: str, option: dict[str, Any], secret: str) -> Any:
    """What a user might put into a variable of this type that holds a secret."""
    url = f"https://user:{secret}@host.example/x"
    kind, element = option.get("type", "str"), option.get("elements", "str")
    if name == "preflight_findings":  # of another form it is all that preflight says
        return [{"level": "warning", "what": "own", "expected": f"MY_API_KEY={secret}", "got": url, "remedy": url}]
    if kind == "dict":
        return {"MY_TOKEN": secret, "proxy": url, "headers": {"Authorization": f"Bearer {secret}"}}
    if kind == "list":
        return [{"api_key": secret, "url": url}] if element in ("dict", "raw") else [url, f"MY_API_KEY={secret}"]
    if secrets.is_secret(name):
        return secret
    return f"MY_API_KEY={secret} {url}" if kind == "str" and not option.get("choices") else url


def variables() -> dict[str, Any]:
    """Each variable that can hold text, with a secret of its own."""
    found: dict[str, Any] = {}
    for role in OWN:
        specs = yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text())["argument_specs"]
        for entry in specs.values():
            for name, option in (entry.get("options") or {}).items():
                if (
                    option.get("type", "str") in ("str", "path", "list", "dict", "raw", "jsonarg")
                    and name not in HARMLESS
                ):
                    found.setdefault(name, value(name, option, f"{TRACE}{len(found):03d}x"))
    return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(f"secrets-{os.getpid()}", lambda _: None)
    try:
        made.up(tmp_path_factory.mktemp("fleet"), ["trixie"])
        yield made
    finally:
        made.down()


class Watch:
    """Looks at all processes of this machine, those of its nodes among them."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            shown = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=False, timeout=10)
            self.seen |= {line for line in shown.stdout.splitlines() if TRACE in line}


def traces(text: str) -> list[str]:
    """Lines with a secret, cut to what is around it."""
    return sorted({match[0] for match in re.finditer(rf".{{0,120}}{TRACE}\d+x.{{0,20}}", text)})


def told(text: str, given: dict[str, Any]) -> dict[str, list[str]]:
    """The variables whose secrets stand in a text, with the lines."""
    found = {name: re.search(rf"{TRACE}\d+x", str(value)) for name, value in given.items()}
    return {name: traces(text) for name, secret in found.items() if secret and secret[0] in text}


def test_no_variable_of_any_role_shows_the_secret_in_it(fleet: Fleet, tmp_path: Path) -> None:
    given = variables()
    assert len(given) > 130
    (tmp_path / "vars.json").write_text(json.dumps(given))
    (tmp_path / "vars.json").chmod(0o600)
    tasks = [
        {
            "name": f"Try {role}",
            "block": [{"name": role, "ansible.builtin.include_role": {"name": role}}],
            "rescue": [{"name": "Go on", "ansible.builtin.debug": {"msg": f"ended {role}"}}],
        }
        for role in OWN
    ]
    book = [{"name": "Roles", "hosts": "vllm", "become": True, "gather_facts": False, "tasks": tasks}]
    (tmp_path / "play.yml").write_text(json.dumps(book))
    (tmp_path / "work").mkdir()
    environ = {
        **play.environment(),
        "VLLM_FLEET_REPORTS": str(tmp_path / "reports"),
        "ANSIBLE_CACHE_PLUGIN": "jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(tmp_path / "facts"),
    }
    said = ""
    with Watch() as watch:
        # The roles one by one; then preflight, which judges all variables at once.
        for book_path in (tmp_path / "play.yml", ROOT / "playbooks/preflight.yml"):
            words = ["-i", f"{fleet.directory}/inventory.yml", "-e", f"@{tmp_path}/vars.json", "-vvvv", "--diff"]
            done = subprocess.run(
                [play.PLAYBOOK, *words, str(book_path)],
                capture_output=True,
                text=True,
                env=environ,
                cwd=tmp_path / "work",
                check=False,
                timeout=240,
            )
            said += done.stdout + done.stderr
    (tmp_path / "said").write_text(said)
    tried = re.findall(r"ended (\w+)", said)
    assert len(set(tried)) > len(OWN) / 2, said[-3000:]
    assert traces(said) == []
    shown = told("\n".join(watch.seen), given)
    assert shown.keys() <= WORDS, shown
    for folder in ("reports", "facts", "work"):
        for path in (tmp_path / folder).rglob("*"):
            assert TRACE not in str(path) and (not path.is_file() or traces(path.read_text(errors="replace")) == []), (
                path
            )
    journal = fleet.exec("node1", ["journalctl", "--no-pager", "--output", "json"]).stdout
    assert "Invoked with" in journal
    # sudo writes down the commands that it runs.
    shown = told(journal, given)
    assert shown.keys() <= WORDS, shown
    look = f"grep -rIsl {TRACE} {LEFT} --exclude-dir=journal || true"
    assert fleet.exec("node1", ["sh", "-c", look]).stdout == ""
