# SPDX-License-Identifier: Apache-2.0
"""A real Ray cluster over two nodes from the role: head and worker containers of one image, guarded, taken down again.

vLLM's CPU build refuses Ray, so the server on top is the stand-in; what it is started with is proved in
tests/unit/test_replica.py.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet
from node_image import docker
from replica_fleet import ROOT, Replica

pytestmark = pytest.mark.engine
NODES = ("node1", "node2")
RAY = "ray==2.60.0"
CACHE = Path(os.environ.get("VLLM_FLEET_CACHE") or Path.home() / ".cache/vllm-fleet")
DOCKERFILE = """
FROM {base} AS ray
COPY wheels /wheels
RUN python3 -m venv /opt/ray && /opt/ray/bin/pip install --no-index --no-cache-dir --find-links /wheels {ray}
LABEL io.vllm-fleet.standin=ray
FROM {standin}
COPY --from=ray /opt/ray /opt/ray
RUN ln -s /opt/ray/bin/ray /usr/local/bin/ray
"""


def wheels() -> Path:
    """Ray and what it needs, by this machine's pip, for the image's Python, which is this machine's; kept."""
    folder = CACHE / f"wheels-{RAY}"
    if not folder.is_dir():
        part = folder.with_suffix(f".{os.getpid()}")
        command = [
            "/usr/bin/python3",
            "-m",
            "pip",
            "download",
            "--quiet",
            "--only-binary",
            ":all:",
            "-d",
            str(part),
            RAY,
        ]
        subprocess.run(command, check=True)
        part.rename(folder)
    return folder


def build(base: str, standin: str, tag: str, folder: Path) -> None:
    """Build the image with the engine's own builder: the stand-in's, with Ray made where pip is, in the base image."""
    (folder / "wheels").symlink_to(wheels())
    (folder / "Dockerfile").write_text(DOCKERFILE.format(base=base, standin=standin, ray=RAY))
    with subprocess.Popen(["tar", "c", "--dereference", "-C", str(folder), "."], stdout=subprocess.PIPE) as source:
        subprocess.run(["docker", "build", "--quiet", "--tag", tag, "-"], stdin=source.stdout, check=True)
    docker("image", "prune", "--force", "--filter", "label=io.vllm-fleet.standin=ray")


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """Two nodes with the image."""
    import docker as sdk
    import standin

    client = sdk.from_env()
    image = f"vllm-standin-ray-{os.getpid()}:1"
    fleet = Fleet(f"ray-{os.getpid()}", lambda _: None)
    try:
        build(standin.base_image(), standin.build_image(client), image, tmp_path_factory.mktemp("image"))
        fleet.up(tmp_path_factory.mktemp("ray-fleet"), ["bookworm", "bookworm"])
        fleet.load([image])
        yield Replica(
            fleet,
            tmp_path_factory.mktemp("ray"),
            vllm_server_image=image,
            vllm_server_model="acme/tiny",
            vllm_server_args={"tensor-parallel-size": 2},
            vllm_server_env={"STANDIN_START_SECONDS": "0.5"},
            vllm_server_distributed_backend="ray",
        )
    finally:
        fleet.down()
        docker("image", "rm", "--force", image)
        client.close()


def active(replica: Replica) -> int:
    """Nodes that `ray status` lists as active."""
    address = f"{replica.addresses['node1']}:6379"
    text = replica.sh("node1", f"docker exec vllm ray status --address={address}", check=False)
    part = text.partition("Active:")[2].partition("Pending:")[0]
    return part.count("node_")


def test_a_ray_cluster_over_two_nodes_lives_and_goes_as_one(replica: Replica) -> None:
    first = replica.play().ok()
    assert first.changed() == {"node1": 1, "node2": 1}
    assert replica.ask() == "The capital of France is Paris."
    replica.wait("both nodes are in the cluster", lambda: active(replica) == 2, 60)
    head = replica.inspect("node1")
    assert "--distributed-executor-backend" in head["Config"]["Cmd"]
    assert replica.play().ok().changed() == {"node1": 0, "node2": 0}

    counts = {node: replica.inspect(node)["RestartCount"] for node in NODES}
    replica.sh("node2", "kill -9 $(pgrep -f 'raylet/raylet' | head -1)")
    replica.wait(
        "all ranks restarted and the head healthy",
        lambda: all(replica.inspect(n)["RestartCount"] > counts[n] for n in NODES) and replica.healthy(),
        120,
    )
    replica.wait("both nodes are in the cluster again", lambda: active(replica) == 2, 60)
    assert replica.ask() == "The capital of France is Paris."

    replica.play("-e", "teardown_confirm=yes", play=str(ROOT / "playbooks/teardown.yml")).ok()
    assert replica.containers() == {"node1": {}, "node2": {}}
    for node in NODES:
        assert replica.sh(node, "pgrep -f '[r]aylet|[g]cs_server'", check=False) == ""
        assert ":6379 " not in replica.sh(node, "ss -tln")
