# SPDX-License-Identifier: Apache-2.0
"""The role docker_engine against a dockerd of its own: own socket, data, configuration. The machine's is left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import play
import pytest

from ansible.module_utils.vllm_fleet.container.api import DockerApi, DockerUnavailable

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("dockerd"), reason="starts a dockerd, which takes root"),
]


class Machine:
    """Where the role's engine lives."""

    def __init__(self, folder: Path, bridge: str) -> None:
        self.folder = folder
        self.bridge = bridge
        self.config = folder / "daemon.json"
        self.pid_file = folder / "docker.pid"
        self.socket = folder / "docker.sock"
        self.api = DockerApi(str(self.socket))

    @property
    def variables(self) -> dict[str, Any]:
        data = ["--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec")]
        return {
            "docker_engine_service_manager": "none",
            "docker_engine_socket": str(self.socket),
            "docker_engine_pid_file": str(self.pid_file),
            "docker_engine_config_path": str(self.config),
            "docker_engine_log_path": str(self.folder / "dockerd.log"),
            # Beside the machine's own engine: no packet rules, and a bridge of its own, because a dockerd that is told
            # to have none removes docker0, whoever made it.
            "docker_engine_daemon_args": [*data, f"--bridge={self.bridge}", "--iptables=false"],
        }

    def run(self, *more: str, facts: list[str] | None = None, **variables: Any) -> play.Run:
        said = {**self.variables, **variables}
        return play.run(self.folder, [play.role("docker_engine")], said, *more, facts=facts)

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text(encoding="utf-8"))

    def docker(self, *words: str) -> str:
        argv = ["docker", "-H", f"unix://{self.socket}", *words]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    def close(self) -> None:
        if self.pid_file.exists():
            try:
                os.kill(self.pid, signal.SIGTERM)
                handle = os.pidfd_open(self.pid)
            except OSError:
                pass
            else:
                import select

                poller = select.poll()
                poller.register(handle, select.POLLIN)
                poller.poll(30_000)
                os.close(handle)


@pytest.fixture
def machine() -> Iterator[Machine]:
    # A socket's path may have 108 bytes; pytest's folders are longer.
    folder = Path(tempfile.mkdtemp(prefix="de-", dir="/var/tmp"))
    bridge = f"vfe{os.getpid()}"
    subprocess.run(["ip", "link", "add", "name", bridge, "type", "bridge"], check=True)
    subprocess.run(["ip", "address", "add", "198.18.77.1/24", "dev", bridge], check=True)
    made = Machine(folder, bridge)
    yield made
    made.close()
    subprocess.run(["ip", "link", "delete", bridge], check=False)
    subprocess.run(["umount", "--recursive", "--quiet", str(folder / "data")], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def tiny_image(machine: Machine) -> None:
    """Import an image of `sleep` and the libraries it needs."""
    sleep = shutil.which("sleep")
    assert sleep
    libraries = [word for word in subprocess.check_output(["ldd", sleep], text=True).split() if word.startswith("/")]
    archive = machine.folder / "tiny.tar"
    with tarfile.open(archive, "w") as tar:
        for path in [sleep, *libraries]:
            tar.add(Path(path).resolve(), path.lstrip("/"))
    machine.docker("import", str(archive), "tiny:1")


def test_an_engine_is_started_configured_reloaded_and_restarted(machine: Machine) -> None:
    machine.config.write_text('{"max-concurrent-downloads": 5, "log-opts": {"tag": "x"}}', encoding="utf-8")
    first = machine.run(facts=["docker_engine_become"]).ok()
    assert first.recap("changed") == 1
    assert first.facts == {"docker_engine_become": False}
    assert json.loads(machine.config.read_text(encoding="utf-8")) == {
        "max-concurrent-downloads": 5,
        "log-driver": "json-file",
        "log-opts": {"tag": "x", "max-size": "100m", "max-file": "5"},
        "live-restore": True,
    }
    assert machine.api.info()["LiveRestoreEnabled"] is True
    pid = machine.pid
    assert os.getsid(pid) == pid  # on its own: the end of the run is not its end

    again = machine.run().ok()
    assert again.recap("changed") == 0
    assert machine.pid == pid

    # Registry mirrors can be reloaded.
    predicted = machine.run("--check", "--diff", docker_engine_registry_mirrors=["https://mirror.example"]).ok()
    assert "mirror.example" in predicted.output and predicted.recap("changed") == 1
    assert "registry-mirrors" not in json.loads(machine.config.read_text(encoding="utf-8"))
    reloaded = machine.run(docker_engine_registry_mirrors=["https://mirror.example"]).ok()
    assert reloaded.recap("changed") == 1
    assert machine.pid == pid
    assert machine.api.info()["RegistryConfig"]["Mirrors"] == ["https://mirror.example/"]

    # The size of logs cannot; nothing runs, so the engine is restarted with the flags it had.
    restarted = machine.run(docker_engine_log_max_size="1m").ok()
    assert restarted.recap("changed") == 1
    assert machine.pid != pid
    assert machine.api.info()["DockerRootDir"] == str(machine.folder / "data")

    # A dockerd that was killed leaves its pid and socket files.
    os.kill(machine.pid, signal.SIGKILL)
    raised = machine.run(docker_engine_log_max_size="1m").ok()
    assert raised.recap("changed") == 1
    assert machine.api.ping() >= (1, 24)

    # The number in the file that it left may belong to somebody else by now.
    os.kill(machine.pid, signal.SIGKILL)
    machine.pid_file.write_text(str(os.getpid()), encoding="utf-8")
    assert machine.run(docker_engine_log_max_size="1m").ok().recap("changed") == 1
    assert machine.pid != os.getpid()
    assert machine.api.ping() >= (1, 24)


def test_running_containers_are_not_stopped_for_a_setting(machine: Machine) -> None:
    machine.run(docker_engine_live_restore=False).ok()
    tiny_image(machine)
    machine.docker(
        "run", "--detach", "--name", "work", "--network", "none", "tiny:1", shutil.which("sleep") or "", "600"
    )
    pid = machine.pid

    left = machine.run(docker_engine_live_restore=False, docker_engine_log_max_size="1m").ok()
    assert "log-opts take effect when dockerd restarts, which would stop 1 running container(s)" in left.output
    assert machine.pid == pid
    assert machine.run(docker_engine_live_restore=False, docker_engine_log_max_size="1m").ok().recap("changed") == 0
    assert machine.docker("inspect", "--format", "{{.State.Running}}", "work") == "true"

    machine.docker("rm", "--force", "work")
    followed = machine.run(docker_engine_live_restore=False, docker_engine_log_max_size="1m").ok()
    assert followed.recap("changed") == 1
    assert machine.pid != pid


def test_live_restore_lets_the_container_live_through_a_restart(machine: Machine) -> None:
    machine.run().ok()
    tiny_image(machine)
    machine.docker(
        "run", "--detach", "--name", "work", "--network", "none", "tiny:1", shutil.which("sleep") or "", "600"
    )
    before = machine.docker("inspect", "--format", "{{.State.Pid}}", "work")
    pid = machine.pid
    machine.run(docker_engine_log_max_size="1m").ok()
    assert machine.pid != pid
    assert machine.docker("inspect", "--format", "{{.State.Pid}}", "work") == before
    machine.docker("rm", "--force", "work")


def test_a_broken_daemon_json_is_named_and_left_alone(machine: Machine) -> None:
    machine.config.write_text('{"log-driver": ', encoding="utf-8")
    said = machine.run().failed()
    assert f"{machine.config} is not valid JSON" in said and "left as it is" in said
    assert machine.config.read_text(encoding="utf-8") == '{"log-driver": '
    assert not machine.socket.exists()


def test_a_dockerd_that_dies_is_told_with_its_last_words(machine: Machine) -> None:
    machine.config.write_text('{"no-such-key": true}', encoding="utf-8")
    run = machine.run()
    assert "dockerd ended with exit code 1 right after its start" in run.failed()
    assert "no-such-key" in run.output
    with pytest.raises(DockerUnavailable):
        machine.api.ping()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "become gives uid 65534"),
        ({"ansible_become_exe": "/no/such/sudo"}, "/no/such/sudo: not found"),
    ],
)
def test_without_root_and_docker_one_sentence_says_what_to_do(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, variables: dict[str, Any], reason: str
) -> None:
    # The node's Python runs as nobody, so that is who the connecting user is.
    python = machine.folder / "python"
    python.write_text('#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups /usr/bin/python3 "$@"\n')
    python.chmod(0o755)
    machine.folder.chmod(0o755)
    monkeypatch.setenv("ANSIBLE_BECOME_ALLOW_SAME_USER", str(bool(variables)))
    run = machine.run("-e", json.dumps({"ansible_python_interpreter": str(python), **variables}))
    assert "docker_engine needs root or sudo on localhost: no Docker engine runs there" in run.output
    assert reason in run.output
    assert "Nothing was changed" in run.output
    assert run.rc != 0 and run.recap("changed") == 0
    assert not machine.config.exists()
