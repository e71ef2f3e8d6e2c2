# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus with TLS and users behind the gateway's own port for it, in the HAProxys of Debian 12 and 13."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import haproxy_program
import jinja2
import pytest
from gateway_scene import FLEET, Echo, ask, echoing, free_ports, journal, render, running, service_helper, until

from ansible.module_utils.vllm_fleet.gateway import haproxy, usage

ROLE = Path(__file__).resolve().parents[2] / "roles/monitoring"
#: Of `secret`, at the lowest cost.
HASH = "$2b$04$rl0kXiNfeqhC48urPykKJuFnlWWVXiIADux/LHQH/tf6wxxga2lYq"
RIGHT = {"Authorization": f"Basic {base64.b64encode(b'ops:secret').decode()}"}


@contextlib.contextmanager
def prometheus(folder: Path, port: int, certificate: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Prometheus of this machine, closed by the file that the role writes."""
    folder.mkdir()
    (folder / "prometheus.yml").write_text("{}")
    environment = jinja2.Environment(trim_blocks=True, autoescape=False)  # noqa: S701 - YAML
    environment.filters["to_json"] = json.dumps
    text = environment.from_string((ROLE / "templates/web.yml.j2").read_text()).render(
        monitoring_certificate=certificate, monitoring_certificate_key=certificate, monitoring_users={"ops": HASH}
    )
    (folder / "web.yml").write_text(text)
    words = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--web.config.file={folder}/web.yml"]
    words += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@dataclass
class Scene:
    """Rendered files in front of two Prometheus, and what a client of them knows."""

    folder: Path
    certificate: Path
    models: int
    watched: int
    places: tuple[int, int]
    log: socket.socket

    def status(self, **headers: str) -> tuple[int, str]:
        """Status and body of Prometheus' flags, from whoever has the certificate."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", self.watched, timeout=10, context=context)
        with contextlib.closing(connection):
            connection.request("GET", "/api/v1/status/flags", headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def serves(self, number: int) -> bool:
        """Whether that Prometheus answers."""
        with contextlib.suppress(OSError):
            return f'"127.0.0.1:{self.places[number]}"' in self.status(**RIGHT)[1]
        return False


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """In front of a model's server, too."""
    folder = tmp_path_factory.mktemp("watching")
    models, watched, first, second = free_ports(4)
    both = folder / "both.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=gateway.test"
    words += f" -addext subjectAltName=IP:127.0.0.1 -keyout {folder}/key.pem -out {both}"
    subprocess.run(["openssl", *words.split()], check=True, stderr=subprocess.DEVNULL)
    both.write_text(both.read_text() + (folder / "key.pem").read_text())
    opened = {"monitoring_certificate": str(both), "monitoring_users": {"ops": HASH}}
    hosts = {"watch1": {**opened, "monitoring_port": first}, "watch2": {**opened, "monitoring_port": second}}
    # HAProxy starts without knowing where it is.
    hosts["watch3"] = {**opened, "monitoring_bind": "watch3.invalid"}
    one = Echo("one1", "acme/one", key=FLEET)
    with echoing(one), journal() as log:
        ports = {"gateway_port": models, "gateway_monitoring_port": watched}
        render(folder, {"one1": one.host}, log=f"127.0.0.1:{log.getsockname()[1]}", watching=hosts, **ports)
        yield Scene(folder, both, models, watched, (first, second), log)


@pytest.mark.parametrize("program", haproxy_program.PROGRAMS)
def test_prometheus_behind_the_gateway_lets_its_own_users_in_alone(scene: Scene, tmp_path: Path, program: str) -> None:
    with contextlib.ExitStack() as stack:
        leader, follower = (
            stack.enter_context(prometheus(tmp_path / str(port), port, scene.certificate)) for port in scene.places
        )
        gateway = stack.enter_context(running(scene.folder, program=program))
        until(lambda: scene.serves(0), "the first Prometheus serves")
        assert scene.status()[0] == 401
        assert scene.status(Authorization=f"Bearer {FLEET}")[0] == 401
        assert scene.status(Authorization=RIGHT["Authorization"][:-4])[0] == 401
        assert ask(scene.watched, "/-/healthy", **RIGHT)[0] == 400, "it speaks TLS alone"
        lines = iter(lambda: scene.log.recv(65536).decode().strip().partition("]: ")[2], None)
        line = next(line for line in lines if line.startswith("monitoring from 127.0.0.1:"))
        entry = json.dumps({"MESSAGE": line, "__REALTIME_TIMESTAMP": "0"})
        assert usage.read_journal([entry], str) == {"rows": [], "unreadable": 0}, "the accounts leave it out"
        assert [one.name for one in gateway.entries()] == ["one1"], "Prometheus is no server of the fleet"
        written = service_helper(scene.folder).states(
            haproxy.ask(gateway.socket, "show servers state"), (scene.folder / "gateway.cfg").read_text()
        )
        assert "one1" in written and "monitoring" not in written
        leader.kill()
        until(lambda: scene.serves(1), "the second one takes over")
        follower.kill()
        follower.wait()
        with pytest.raises((OSError, http.client.HTTPException)):
            scene.status(**RIGHT)
        told = ask(scene.models, "/v1/models", Authorization=f"Bearer {FLEET}")
        assert told[0] == 200, "models do not need the monitoring"
