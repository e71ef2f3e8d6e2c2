"""How soon a verdict is there: from a server's first 200, and from its death, to the module's answer.

The stand-in's last line before it answers, and the end of its container, are stamped by Docker; the answer's time is
taken when the module returns, diagnosis, log file and stop included. In the last row Ansible runs the module through
its action plugin over a local connection, in slices, and the time is that of the line on the terminal.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "integration"), str(ROOT / "tests"), str(ROOT / "library")]

#: The last line of uvicorn before the first request can be answered.
OPEN = "Application startup complete."
#: Seconds that the starts under Ansible take: several slices, for each change of stage ends one.
ANSIBLE_START = "3"


def run(runs: int = 20, ansible_runs: int | None = None) -> dict[str, Any]:
    """Measure; gives for each row the median, the worst case and all values, in seconds."""
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))  # makes module_utils importable
    import docker  # noqa: PLC0415
    import standin  # noqa: PLC0415
    from vllm_server_tools import Server  # noqa: PLC0415

    from ansible.module_utils.vllm_fleet.engine import Engine  # noqa: PLC0415

    client = docker.from_env()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        server = Server(Engine(), client, standin.build_image(client), Path(folder))
        server.fixed["env"] = {"STANDIN_START_SECONDS": "0.5"}
        try:
            server.ready()  # asks the image for its flags once
            rows = {
                "first 200 to verdict, module": [_ready(server) for _ in range(runs)],
                "death to verdict, module": [_death(server) for _ in range(runs)],
                "first 200 to the line on the terminal, Ansible": [
                    _terminal(server) for _ in range(runs if ansible_runs is None else ansible_runs)
                ],
            }
        finally:
            server.close()
    return {
        name: {"median": round(statistics.median(v), 3), "worst": round(max(v), 3), "values": [round(x, 3) for x in v]}
        for name, v in rows.items()
        if v
    }


def _fresh(server: Any) -> None:
    for row in server.client.api.containers(all=True, filters={"name": server.name}):
        server.client.api.remove_container(row["Id"], force=True, v=True)


def _opened(server: Any) -> float:
    """Give the time at which the server's first 200 could be had, by Docker's stamp."""
    from ansible.module_utils.vllm_fleet.watch import epoch  # noqa: PLC0415

    log = server.client.api.logs(server.name, timestamps=True).decode()
    stamp = next(line.split(" ", 1)[0] for line in log.splitlines() if OPEN in line)
    return float(epoch(stamp))


def _ready(server: Any) -> float:
    _fresh(server)
    server.ready()
    answered = time.time()
    return answered - _opened(server)


def _death(server: Any) -> float:
    """A first deployment that dies while it loads, under the restart policy that a user has."""

    _fresh(server)
    env = {"STANDIN_START_SECONDS": "0.5", "STANDIN_FAIL_AT": "kv_cache"}
    begun = time.time()
    result = server.run(env=env)
    answered = time.time()
    assert result["failure"]["exit_code"] == 1, result  # noqa: S101
    # Docker restarts it until it is stopped; the first death is the one that counts.
    events = server.client.api.events(
        since=int(begun), until=answered, filters={"container": server.name, "event": "die"}, decode=True
    )
    return answered - min(int(event["timeNano"]) / 1e9 for event in events if event["timeNano"] / 1e9 > begun)


def _terminal(server: Any) -> float:
    _fresh(server)
    options = {k: v for k, v in server.options(env={"STANDIN_START_SECONDS": ANSIBLE_START}).items() if v is not None}
    argv = [str(Path(sys.executable).parent / "ansible"), "localhost", "-i", "localhost,", "-c", "local"]
    argv += ["-m", "vllm_server", "-a", json.dumps(options), "-e", f"ansible_python_interpreter={_python()}"]
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONUNBUFFERED": "1"}
    seen = None
    with subprocess.Popen(argv, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as ansible:
        assert ansible.stdout is not None  # noqa: S101
        for line in ansible.stdout:
            if seen is None and re.match(r"\[localhost\] ready ", line):
                seen = time.time()
    if seen is None:
        raise RuntimeError("Ansible did not say that the server is ready")
    return seen - _opened(server)


def _python() -> str:
    import standin  # noqa: PLC0415

    return str(standin.PYTHON)


def main() -> int:
    """Print the table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    result = run(runs)
    print(f"{'seconds, ' + str(runs) + ' runs':50} {'median':>8} {'worst':>8}")
    for name, row in result.items():
        print(f"{name:50} {row['median']:8.3f} {row['worst']:8.3f}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
