# SPDX-License-Identifier: Apache-2.0
"""For a Prometheus and a Grafana that are there already: files on the controller, dashboards by Grafana's API."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from play import PLAYBOOK, ROOT
from synthetic_fleet import promtool

TOKEN = "glsa_canary5c0e71aa"
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
RECORDED = ROOT / "tests/fixtures/grafana-api"
BOARDS = {path.stem for path in (ROOT / "roles/monitoring/files/dashboards").glob("*.json")}


def run(folder: Path, part: str, variables: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run an entry point of the role on the controller, with an inventory of two nodes that nobody asks."""
    hosts = {f"node{n}": {"ansible_host": f"192.0.2.{n}", "vllm_server_model": "acme/m"} for n in (1, 2)}
    hosts["node1"]["vllm_server_slo"] = {"ttft_p95": "2s"}
    watch = {"hosts": {"watch1": {"ansible_host": "192.0.2.9"}}}
    (folder / "hosts.json").write_text(json.dumps({"vllm": {"hosts": hosts}, "monitoring": watch}))
    role = {"name": "Run", "ansible.builtin.include_role": {"name": "monitoring", "tasks_from": part}}
    play = {"name": "Test", "hosts": "localhost", "gather_facts": False, "tasks": [role], "vars": variables}
    (folder / "play.yml").write_text(yaml.safe_dump([{**play, "connection": "local"}]))
    words = [PLAYBOOK, "-i", str(folder / "hosts.json"), str(folder / "play.yml")]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)


def test_the_export_is_what_prometheus_reads(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(tmp_path, "export", {"monitoring_export": str(out), "monitoring_docs": "https://docs.example/alerts"})
    assert done.returncode == 0, done.stdout
    targets = json.loads((out / "targets.json").read_text())
    assert [one["targets"] for one in targets] == [["192.0.2.1:9110"], ["192.0.2.2:9110"]]
    assert {path.stem for path in (out / "dashboards").glob("*.json")} == BOARDS
    assert "https://docs.example/alerts#vllmserverdown" in (out / "rules/vllm-fleet.yml").read_text()
    assert "vector(2)" in (out / "rules/slo.yml").read_text()
    # The lines that its page says, put into a configuration as they stand there.
    said = (out / "README.md").read_text()
    block = said.partition("add to it:\n\n")[2].partition("\n3. ")[0]
    config = yaml.safe_load("\n".join(line[7:] for line in block.splitlines()))
    assert config["scrape_configs"][0]["tls_config"]["server_name"] == "vllm-fleet"
    for name in ("prometheus.pem", "prometheus.key"):
        (out / name).touch()
    (out / "prometheus.yml").write_text(yaml.safe_dump(config))
    promtool("check", "config", str(out / "prometheus.yml"))


def test_certificates_of_machines_that_a_run_does_not_reach_stay_in_the_export(tmp_path: Path) -> None:
    (tmp_path / "nodes.pem").write_text(f"# gone\n{PEM}\n# node2\n{PEM}\n")
    done = run(tmp_path, "export", {"monitoring_export": str(tmp_path)})
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "nodes.pem").read_text() == f"# node2\n{PEM}\n"


def test_a_machine_does_not_forget_a_monitoring_host_that_a_limit_leaves_out(tmp_path: Path) -> None:
    done = run(tmp_path, "machine", {})
    assert done.returncode == 2, done.stdout
    said = " ".join(done.stdout.split())
    assert "localhost would answer watch1 no more" in said and "--limit localhost,watch1" in said, done.stdout


class Grafana(ThreadingHTTPServer):
    """Says what a Grafana has said (tests/fixtures/grafana-api), of the dashboards that it has by now."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.boards: dict[str, dict[str, Any]] = {}
        self.written: list[str] = []
        #: Its answers where it has none of a dashboard, and where one is saved.
        self.missing, self.saved = "missing", "saved"


class Answers(BaseHTTPRequestHandler):
    """One request."""

    server: Grafana

    def do_GET(self) -> None:
        uid = self.path.removeprefix("/api/dashboards/uid/")
        self.say("found" if uid in self.server.boards else self.server.missing, uid)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        uid, boards = body["dashboard"]["uid"], self.server.boards
        assert self.path == "/api/dashboards/db"
        assert body["overwrite"] is True
        if self.server.saved == "saved":
            boards[uid] = {**body["dashboard"], "id": 7, "version": boards.get(uid, {}).get("version", 0) + 1}
            self.server.written.append(uid)
        self.say(self.server.saved, uid)

    def say(self, name: str, uid: str) -> None:
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            name = "key"
        head, body = (RECORDED / f"{name}.http").read_text().split("\n\n", 1)
        board = self.server.boards.get(uid, {})
        for word, value in {"UID": uid, "VERSION": str(board.get("version")), "BOARD": json.dumps(board)}.items():
            body = body.replace(word, value)
        first, *headers = head.splitlines()
        self.send_response(int(first.split()[1]))
        for line in headers:
            self.send_header(*line.split(": ", 1))
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def grafana() -> Iterator[Grafana]:
    made = Grafana()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


def test_grafana_gets_what_it_has_not(grafana: Grafana, tmp_path: Path) -> None:
    given = {"monitoring_grafana_url": f"http://127.0.0.1:{grafana.server_port}", "monitoring_grafana_token": TOKEN}
    done = run(tmp_path, "grafana", given)
    assert done.returncode == 0, done.stdout
    assert set(grafana.boards) == {f"vllm-fleet-{name}" for name in BOARDS}
    grafana.written.clear()
    grafana.boards["vllm-fleet-gpu"]["title"] = "edited by hand"
    again = run(tmp_path, "grafana", given)
    assert again.returncode == 0, again.stdout
    assert grafana.written == ["vllm-fleet-gpu"]
    assert TOKEN not in done.stdout + again.stdout + done.stderr


@pytest.mark.parametrize(
    ("missing", "saved", "token", "says"),
    [
        (
            "key",
            "saved",
            "glsa_old7f3b",
            "answered 401: Invalid API key. Give monitoring_grafana_token a token of one of",
        ),
        ("missing-old", "conflict", TOKEN, "answered 412: The dashboard has been changed by someone else. Check in"),
    ],
)
def test_a_grafana_that_refuses_is_quoted(
    grafana: Grafana, tmp_path: Path, missing: str, saved: str, token: str, says: str
) -> None:
    grafana.missing, grafana.saved = missing, saved
    given = {"monitoring_grafana_url": f"http://127.0.0.1:{grafana.server_port}", "monitoring_grafana_token": token}
    done = run(tmp_path, "grafana", given)
    assert done.returncode == 2, done.stdout
    said = " ".join(done.stdout.split())
    assert f"Grafana at {given['monitoring_grafana_url']} {says}" in said, done.stdout
    assert grafana.boards == {}
    assert token not in done.stdout + done.stderr
