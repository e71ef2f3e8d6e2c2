# SPDX-License-Identifier: Apache-2.0
"""What a run with nothing to change costs on the node: vllm_server against docker_container plus uri, in one run.

Each module is packed by Ansible itself and its package then run again and again by the node's Python, so that what is
measured is the module: interpreter, imports, questions to Docker, HTTP. Controller and SSH are left out; they are the
same for all.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "integration"), str(ROOT / "tests")]

NODE_PYTHON = "/usr/bin/python3"


def run(runs: int = 20) -> dict[str, Any]:
    """Measure; gives the medians and worst cases in seconds, and the ratio of the medians."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return _measure(runs, Path(folder))


def _measure(runs: int, folder: Path) -> dict[str, Any]:
    import conftest  # noqa: F401, PLC0415  makes module_utils importable
    import docker  # noqa: PLC0415
    import standin  # noqa: PLC0415

    client = docker.from_env()
    image, port, name = standin.build_image(client), standin.free_port(), f"bench-{os.getpid()}"
    ours = {
        "name": name,
        "image": image,
        "model": "acme/tiny",
        "accelerator": "cpu",
        "port": port,
        "env": {"STANDIN_START_SECONDS": "0.1"},
        "state_dir": str(folder / "state"),
    }
    theirs = {
        "name": name,
        "image": image,
        "state": "started",
        "restart_policy": "unless-stopped",
        "published_ports": [f"127.0.0.1:{port}:8000"],
    }
    tasks = {
        "vllm_server": {"vllm_server": ours},
        "docker_container": {"community.docker.docker_container": theirs},
        "uri": {"ansible.builtin.uri": {"url": f"http://127.0.0.1:{port}/health"}},
    }
    try:
        _play([tasks["vllm_server"]])  # the server that both then find as wanted
        packages = {key: _package(task, folder / key) for key, task in tasks.items()}
        times: dict[str, list[float]] = {key: [] for key in packages}
        for _ in range(runs):
            for key, package in packages.items():
                times[key].append(_once(package))
    finally:
        for container in client.containers.list(all=True, filters={"name": name}):
            container.remove(force=True, v=True)
    medians = {key: statistics.median(values) for key, values in times.items()}
    both = statistics.median([a + b for a, b in zip(times["docker_container"], times["uri"], strict=True)])
    return {
        "runs": runs,
        "median": {**medians, "docker_container + uri": both},
        "worst": {key: max(values) for key, values in times.items()},
        "ratio": medians["vllm_server"] / both,
    }


def _play(tasks: list[dict[str, Any]], **environ: str) -> str:
    play = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write(yaml.safe_dump(play))
        file.flush()
        done = subprocess.run(
            [
                "ansible-playbook",
                "-i",
                "localhost,",
                "-c",
                "local",
                "-e",
                f"ansible_python_interpreter={NODE_PYTHON}",
                file.name,
            ],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **environ},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


def _package(task: dict[str, Any], folder: Path) -> Path:
    """Have Ansible pack a module with its arguments, and keep the package in ``folder``."""
    _play(
        [task],
        ANSIBLE_KEEP_REMOTE_FILES="1",
        ANSIBLE_PIPELINING="0",
        ANSIBLE_SSH_PIPELINING="0",
        ANSIBLE_REMOTE_TMP=str(folder),
    )
    return next(folder.rglob("AnsiballZ_*.py"))


def _once(package: Path) -> float:
    begin = time.monotonic()
    done = subprocess.run([NODE_PYTHON, str(package)], capture_output=True, text=True, check=False)
    spent = time.monotonic() - begin
    answer = json.loads(done.stdout)
    if answer.get("failed") or answer.get("changed"):
        raise SystemExit(f"{package.name} did not find all as wanted: {answer}")
    return spent


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 20), indent=2))
