# SPDX-License-Identifier: Apache-2.0
"""How soon the death of a worker ends the start of its server over two nodes, over SSH.

The worker's end is stamped by Docker on its node, a container that shares this machine's clock. From there to three
moments: the line on the terminal that says why; the head's node going back, as its old container gets its name again;
and the end of the play, with both old servers ready.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/integration", "tests", "tests/fleet")]

START = "2"
LINE = re.compile(r"^\[node2\] failed, disk_full: ")


def run(runs: int = 5) -> dict[str, Any]:
    """Measure; gives for each row the median, the worst case and all values, in seconds."""
    import docker  # noqa: PLC0415
    import standin  # noqa: PLC0415
    from fleet import Fleet  # noqa: PLC0415
    from replica_fleet import Replica  # noqa: PLC0415

    image = standin.build_image(docker.from_env())
    fleet = Fleet(f"bench-replica-{os.getpid()}", lambda _: None)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            fleet.up(Path(folder) / "fleet", ["bookworm", "bookworm"])
            fleet.load([image])
            (Path(folder) / "play").mkdir()
            replica = Replica(
                fleet,
                Path(folder) / "play",
                vllm_server_image=image,
                vllm_server_model="acme/tiny",
                vllm_server_args={"tensor-parallel-size": 2},
                vllm_server_env={"STANDIN_START_SECONDS": "0.5"},
            )
            replica.play().ok()
            return measured([death(replica) for _ in range(runs)])
        finally:
            fleet.down()


def measured(found: list[dict[str, float]]) -> dict[str, Any]:
    """Put the runs together."""
    rows = {name: [one[name] for one in found] for name in found[0]}
    return {
        name: {"median": statistics.median(values), "worst": max(values), "all": values}
        for name, values in rows.items()
    }


def death(replica: Any) -> dict[str, float]:
    """One start whose worker dies."""
    bad = {"STANDIN_FAIL_AT": "shards", "STANDIN_FAIL_TEXT": "OSError: No space left on device"}
    slow = {"STANDIN_START_SECONDS": START}
    old, begun = replica.inspect("node2")["Id"], time.time()
    lines = stamped(replica, hosts={"node2": {"vllm_server_env": {**slow, **bad}}}, vllm_server_env=slow)
    died = min(events(replica, "node2", "die", begun, but=old))
    said = next(at for at, text in lines if LINE.search(text))
    told = min(at for at in events(replica, "node1", "rename", begun) if at > died)
    return {
        "worker's death to the line that says why": said - died,
        "worker's death to the head's node going back": told - died,
        "worker's death to both old servers ready": lines[-1][0] - died,
    }


def stamped(replica: Any, **changes: Any) -> list[tuple[float, str]]:
    """Run the play as `Replica.play` does, every line with its time."""
    replica.play("--syntax-check", **changes).ok()  # writes the variables
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", f"{replica.fleet.directory}/inventory.yml"]
    command += ["-i", replica.folder / "more.yml", replica.folder / "play.yml"]
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    with subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as going:
        assert going.stdout is not None  # noqa: S101  asked for above
        return [(time.time(), line) for line in going.stdout]


def events(replica: Any, node: str, action: str, since: float, but: str = "") -> list[float]:
    """When what happened to the containers of a node; of that with the id ``but`` nothing."""
    words = f"docker events --since {since:.3f} --until {time.time():.3f} --filter type=container"
    text = replica.sh(node, f"{words} --filter event={action} --format '{{{{json .}}}}'")
    found = [json.loads(line) for line in text.splitlines()]
    return [int(event["timeNano"]) / 1e9 for event in found if event["Actor"]["ID"] != but]


def main() -> None:
    """Measure and show."""
    for name, row in run(int(sys.argv[1]) if len(sys.argv) > 1 else 5).items():
        print(f"  {name:<48} median {row['median']:6.3f}   worst {row['worst']:6.3f}")


if __name__ == "__main__":
    main()
