# SPDX-License-Identifier: Apache-2.0
"""playbooks/usage.yml over two gateways of this machine whose journal is played by a program, and one out of reach."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import play

JOURNAL = """#!/bin/sh
echo "$*" >> {folder}/asked
cat {folder}/journal
"""


def line(key: str, second: int) -> str:
    said = f"192.0.2.7:1 [x] f b/n1 0/0/1/20/340 200 150 2048 -- 3/2/1/1/0 0/0 {{{key}|acme/large|310|11|7}} POST /v1/x"
    return json.dumps({"MESSAGE": said, "__REALTIME_TIMESTAMP": str(second * 1_000_000)})


def test_accounts_are_shown_and_written_and_a_missing_gateway_is_an_error(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    program.write_text(JOURNAL.format(folder=tmp_path))
    program.chmod(0o755)
    (tmp_path / "journal").write_text("".join(f"{line(key, 1793664000)}\n" for key in ("app", "app", "batch")))
    local = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "ansible_become": False}
    gateways = {"g1": local, "g2": local, "g3": {"ansible_host": "127.0.0.1", "ansible_port": 1}}
    inventory = tmp_path / "inventory.yml"
    environment = play.environment()
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    given = {
        "usage_since": "2026-11-01",
        "usage_until": "2026-11-30",
        "usage_file": str(tmp_path / "out" / "usage.csv"),
    }
    words = [play.PLAYBOOK, "-i", inventory, "-e", json.dumps(given), play.ROOT / "playbooks" / "usage.yml"]
    for hosts, code in ((gateways, 2), ({"g1": local, "g2": local}, 0)):
        inventory.write_text(json.dumps({"all": {"children": {"gateway": {"hosts": hosts}}}}))
        done = subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, env=environment, cwd=play.ROOT, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert ("g3 did not answer" in done.stdout) == (code == 2)
        shown = [text.split()[:3] for text in done.stdout.splitlines()]
        assert ["app", "acme/large", "4"] in shown
        assert ["batch", "acme/large", "2"] in shown
        rows = (tmp_path / "out" / "usage.csv").read_text().splitlines()
        assert rows[1].startswith("2026-11-03,app,acme/large,4,0,0,600,8192,4,44,28,")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[1].endswith(
        "--since=@1793491200 --until=@1796083200 _SYSTEMD_UNIT=haproxy.service SYSLOG_IDENTIFIER=haproxy"
    )
