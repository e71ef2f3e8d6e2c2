# SPDX-License-Identifier: Apache-2.0
"""How soon a verdict is there: from a server's first 200, and from its death, to the module's answer.

The stand-in's last line before it answers, and the end of its container, are stamped by Docker; the answer's time is
taken when the module returns, diagnosis, log file and stop included. In the rows of Ansible it runs the module through
its action plugin, in slices, over a local connection and over SSH to a node (a container that shares this machine's
clock), and the time is that of the line on the terminal: what the controller's loop and SSH add to the module's time.

The last row is the diagnosis alone, of a log of five megabytes.
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
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/integration", "tests", "tests/fleet", "library")]

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

    from ansible.module_utils.vllm_fleet.container.engine import Engine  # noqa: PLC0415

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
        rows["first 200 to the line on the terminal, Ansible over SSH"] = _over_ssh(
            server.image, Path(folder), runs if ansible_runs is None else ansible_runs
        )
        rows["diagnosis of a log of 5 MB"] = [_diagnosis() for _ in range(runs)]
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
    from ansible.module_utils.vllm_fleet.server.watch import epoch  # noqa: PLC0415

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
    target = ["localhost", "-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={_python()}"]
    return _line(target, options) - _opened(server)


def _over_ssh(image: str, folder: Path, runs: int) -> list[float]:
    """The same on a test node."""
    from fleet import Fleet  # noqa: PLC0415

    from ansible.module_utils.vllm_fleet.server.watch import epoch  # noqa: PLC0415

    fleet = Fleet(f"bench-{os.getpid()}")
    found = []
    try:
        fleet.up(folder, ["bookworm"])
        fleet.load([image])
        options = {"image": image, "model": "acme/tiny", "accelerator": "cpu"}
        target = ["node1", "-i", str(folder / "inventory.yml"), "-b"]
        for number in range(runs + 1):
            fleet.exec("node1", ["docker", "rm", "-fv", "vllm"], check=False)
            seen = _line(target, {**options, "env": {"STANDIN_START_SECONDS": ANSIBLE_START}})
            log = fleet.exec("node1", ["sh", "-c", "docker logs --timestamps vllm 2>&1"]).stdout
            opened = next(line.split(" ", 1)[0] for line in log.splitlines() if OPEN in line)
            if number:  # the first asks the image for its flags
                found.append(seen - epoch(opened))
    finally:
        fleet.down()
    return found


def _line(target: list[str], options: dict[str, Any]) -> float:
    """Run Ansible and give the time at which it said that the server is ready."""
    argv = [str(Path(sys.executable).parent / "ansible"), *target, "-m", "vllm_server", "-a", json.dumps(options)]
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONUNBUFFERED": "1"}
    seen, shown = None, []
    with subprocess.Popen(argv, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as ansible:
        assert ansible.stdout is not None  # noqa: S101
        for line in ansible.stdout:
            shown.append(line)
            if seen is None and re.match(r"\[\w+\] ready ", line):
                seen = time.time()
    if seen is None:
        raise RuntimeError("Ansible did not say that the server is ready:\n" + "".join(shown))
    return seen


def _diagnosis() -> float:
    from ansible.module_utils.vllm_fleet.diagnosis.diagnose import Context, ExitFacts, diagnose  # noqa: PLC0415

    block = (ROOT / "tests" / "fixtures" / "failures" / "weights_corrupt.log").read_text()
    # Each differs, so that none can be left out as already seen.
    log = "".join(block.replace("covered", str(number)) for number in range(5_000_000 // len(block) + 1))
    begun = time.monotonic()
    diagnose(log, ExitFacts(1), Context())
    return time.monotonic() - begun


def _python() -> str:
    import standin  # noqa: PLC0415

    return str(standin.PYTHON)


def main() -> int:
    """Print the table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    result = run(runs)
    print(f"{'seconds, ' + str(runs) + ' runs':56} {'median':>8} {'worst':>8}")
    for name, row in result.items():
        print(f"{name:56} {row['median']:8.3f} {row['worst']:8.3f}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
