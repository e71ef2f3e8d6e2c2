# SPDX-License-Identifier: Apache-2.0
"""A real HAProxy under load that is reloaded by the helper of its service, as after an upgrade of this project."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import standin
from gateway_scene import PROGRAM, ROLE, Echo, ask, render, running, until

from ansible.module_utils.vllm_fleet.gateway import haproxy

KEY = "fleet-key-of-the-servers"


@pytest.fixture
def helper(tmp_path: Path) -> Any:
    """The program that the service calls, with places of the test."""
    loader = importlib.machinery.SourceFileLoader("helper", str(ROLE / "files" / "vllm-fleet-gateway"))
    spec = importlib.util.spec_from_loader("helper", loader)
    assert spec
    found = importlib.util.module_from_spec(spec)
    loader.exec_module(found)
    found.SOCKET, found.STATE, found.PROGRAM = str(tmp_path / "haproxy.sock"), str(tmp_path / "state"), PROGRAM
    found.CONFIGURATION = tuple(str(tmp_path / name) for name in ("secrets.cfg", "gateway.cfg"))
    return found


@pytest.fixture
def echoes() -> Iterator[list[Echo]]:
    made = [Echo(f"n{number}", "acme/small", key=KEY) for number in (1, 2, 3)]
    yield made
    for one in made:
        one.shutdown()
        one.server_close()


def chat(port: int, text: str) -> tuple[int, str]:
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    status, _, head = ask(port, "/v1/chat/completions", "POST", body, Authorization=f"Bearer {KEY}")
    return status, head.get("x-vllm-replica", "")


def test_an_older_configuration_is_taken_over_under_load(helper: Any, echoes: list[Echo], tmp_path: Path) -> None:
    """States of servers stay, ports are those of the file, no request is lost."""
    port = standin.free_port()
    render(
        tmp_path,
        {one.name: one.host for one in echoes},
        gateway_port=port,
        gateway_local_offset=1,
        gateway_stats_port=standin.free_port(),
    )
    config = tmp_path / "gateway.cfg"
    new = config.read_text()
    # As it was before servers had numbers of their own.
    config.write_text(re.sub(r"(    server .*) id \d+", r"\1", new))
    with running(tmp_path, "-W") as gateway, Echo("n3", "acme/small", key=KEY) as moved:
        haproxy.ask(gateway.socket, "set server acme_small/n1 state drain")
        haproxy.ask(gateway.socket, "set server acme_small/n2 state maint")
        # n3 is replaced: the new file has another port.
        config.write_text(re.sub(r"(server n3 127.0.0.1):\d+", rf"\1:{moved.server_port}", new))
        stop = threading.Event()

        def load(client: int) -> list[tuple[int, str]]:
            answers = []
            while not stop.wait(0.005):
                answers.append(chat(port, f"{client} {len(answers)}"))
            return answers

        with ThreadPoolExecutor(3) as clients:
            runs = [clients.submit(load, number) for number in range(3)]
            try:
                helper.reload(gateway.process.pid)
                until(lambda: moved.chats > 20, "requests arrive at the new port")
            finally:
                stop.set()
        answers = [answer for run in runs for answer in run.result()]
        lost = [answer for answer in answers if answer != (200, "n3")]
        print(f"{len(answers)} requests over a reload, {len(lost)} lost")
        assert (lost, len(answers) > 30) == ([], True)
        assert {one.name: one.status for one in gateway.entries() if one.backend == "acme_small"} == {
            "n1": "DRAIN",
            "n2": "MAINT",
            "n3": "UP",
        }
        assert (tmp_path / "state").read_text() == "1\n"
        haproxy.ask(gateway.socket, "set server acme_small/n1 state ready")
        until(lambda: chat(port, "again")[0] == 200, "it serves")


def test_what_is_written_down_of_servers(helper: Any) -> None:
    answer = (
        "1\n# be_id be_name srv_id srv_name\n"
        "3 pool 1 n1 192.0.2.1 2 8 1 1 17 15 3 2 6 0 0 1 - 8000 - 0 0 - - 0\n"
        "3 pool 2 gone 192.0.2.2 2 0 1 1 17 15 3 2 6 0 0 1 - 8000 - 0 0 - - 0\n\n"
    )
    config = "backend pool\n    server n1 [2001:db8::1]:8100 id 4\nfrontend x\n    server n1 192.0.2.9:1\n"
    assert helper.states(answer, config) == "1\n3 pool 1 n1 192.0.2.1 2 8 1 1 17 15 3 2 6 0 0 1 - 8100 -\n"
