# SPDX-License-Identifier: Apache-2.0
"""What a deploy costs on four nodes over SSH: with nothing to change against a do-it-yourself playbook, and a change.

Both do the same job on the same test-bed (tests/fleet), each with its own server on every node. They take turns, so
that what else the machine does meets both, and find everything as wanted. The do-it-yourself playbook
(bench/diy/deploy.yml) goes through all nodes in one batch, which is the quickest that it can.

Of a change it is told how long the nodes were down, and how much of that was not the engine's own start.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "integration"), str(ROOT / "tests" / "fleet"), str(ROOT / "tests")]

MODEL = "acme/tiny"
NODES = ["bookworm", "bookworm", "trixie", "trixie"]


def run(runs: int = 5) -> dict[str, Any]:
    """Measure; gives the wall times of both in seconds, their medians, and the ratio of these."""
    import docker  # noqa: PLC0415
    import standin  # noqa: PLC0415
    from fake_hf_cache import FakeCache  # noqa: PLC0415
    from fleet import Fleet  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    fleet = Fleet(f"bench-{os.getpid()}")
    engine = docker.from_env()
    image = standin.build_image(engine)
    identity = engine.images.get(image).id
    seed = FakeCache(folder / "seed", repo_id=MODEL)
    variables = folder / "variables.json"
    variables.write_text(json.dumps({**_ours(image, identity, seed.cache, seed.commit), **_theirs(image, seed.cache)}))
    times: dict[str, list[float]] = {"deploy.yml": [], "do-it-yourself": []}
    try:
        fleet.up(folder / "fleet", NODES)
        fleet.load([image])
        plays = {"deploy.yml": ROOT / "deploy.yml", "do-it-yourself": ROOT / "bench" / "diy" / "deploy.yml"}
        for play in plays.values():
            _play(play, folder, variables)
        for _ in range(runs):
            for name, play in plays.items():
                times[name].append(_play(play, folder, variables, unchanged=True))
        downtimes = _change(plays["deploy.yml"], folder, variables)
    finally:
        fleet.down()
        shutil.rmtree(folder, ignore_errors=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["deploy.yml"] / medians["do-it-yourself"]
    return {"runs": runs, "nodes": len(NODES), "times": times, "median": medians, "ratio": ratio, **downtimes}


def _ours(image: str, identity: str, seed: Path, commit: str) -> dict[str, Any]:
    name, _, tag = image.partition(":")
    return {
        "vllm_server_model": MODEL,
        "vllm_server_revision": commit,
        "vllm_server_accelerator": "cpu",
        "vllm_server_args": {"max-model-len": 512},
        "vllm_server_env": {"STANDIN_START_SECONDS": "0.1"},
        # As from an archive that was loaded before: no registry is asked.
        "vllm_image_source": "archive",
        "vllm_image_archive": "/nowhere.tar",
        "vllm_image_expected_id": identity,
        "vllm_image_name": name,
        "vllm_image_tag": tag,
        "hf_cache_source": "controller",
        "hf_cache_controller_path": str(seed),
        "hf_cache_path": "/var/lib/huggingface",
        "hf_cache_create": True,
    }


def _theirs(image: str, seed: Path) -> dict[str, Any]:
    return {
        "diy_name": "vllm-diy",
        "diy_port": 8001,
        "diy_image": image,
        "diy_model": MODEL,
        "diy_seed": str(seed),
        "diy_cache": "/var/lib/huggingface-diy",
        "diy_waves": "100%",
        "diy_daemon": {
            "live-restore": True,
            "log-driver": "json-file",
            "log-opts": {"max-size": "100m", "max-file": "5"},
        },
    }


def _run(
    play: Path, folder: Path, variables: Path, *words: str, callback: str = "default"
) -> subprocess.CompletedProcess[str]:
    command = [
        "ansible-playbook",
        "-i",
        str(folder / "fleet" / "inventory.yml"),
        "-e",
        f"@{variables}",
        *words,
        str(play),
    ]
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    environ["ANSIBLE_STDOUT_CALLBACK"] = callback
    # A user's Python keeps what it compiled.
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def _play(play: Path, folder: Path, variables: Path, *, unchanged: bool = False) -> float:
    began = time.monotonic()
    done = _run(play, folder, variables)
    spent = time.monotonic() - began
    recap = [line for line in done.stdout.splitlines() if "unreachable=" in line]
    if done.returncode or (unchanged and not all("changed=0 " in line for line in recap)):
        raise SystemExit(f"{play} did not find all as wanted\n{done.stdout}{done.stderr}")
    return spent


def _change(play: Path, folder: Path, variables: Path) -> dict[str, Any]:
    """Deploy an edited argument: seconds that each node was down, and what of it the start does not explain."""
    edit = ["-e", json.dumps({"vllm_server_args": {"max-model-len": 256}})]
    done = _run(play, folder, variables, *edit, callback="ansible.posix.json")
    # The fleet's table comes behind it.
    told, _ = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{\n") :])
    results = [
        result
        for played in told["plays"]
        for task in played["tasks"]
        for result in task["hosts"].values()
        if result.get("changed") and result.get("downtime") is not None
    ]
    down = [result["downtime"] for result in results]
    return {
        "downtime": down,
        "downtime_besides_start": [
            result["downtime"] - result["stages"][-1]["at"] for result in results if result.get("stages")
        ],
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 5), indent=2))
