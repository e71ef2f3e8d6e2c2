"""The real vLLM (CPU) over two nodes: tensor-parallel 2, one half on each; answers, dies, and comes back as a whole.

Needs the image and the model's tokenizer that the molecule scenario `default` leaves. The nodes' engines do not get the
image's 3.5 GB loaded: its installed tree is in one volume of this machine that both nodes mount, and the rest of the
image, some 400 MB, is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import LABEL, Fleet
from node_image import docker
from replica_fleet import Replica

pytestmark = pytest.mark.engine
NODES = ("node1", "node2")
IMAGE, TREE, MODEL = "vllm-cpu:0.32.0", "/opt/vllm", "/models/tiny"
CACHE = Path(os.environ.get("VLLM_FLEET_CACHE") or Path.home() / ".cache/vllm-fleet")
#: 4 layers and 8 heads, which 2 ranks divide. The weights are vLLM's own random ones (--load-format dummy).
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 49152,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARGS = {
    "tensor-parallel-size": 2,
    "dtype": "float32",
    "max-model-len": 512,
    "enforce-eager": True,
    "load-format": "dummy",
}
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def make_model(folder: Path) -> None:
    """A config of its own and the tokenizer of the model that the project's seed has."""
    (snapshot,) = (CACHE / "seed/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots").iterdir()
    folder.mkdir()
    for path in snapshot.iterdir():
        if path.suffix in (".json", ".jinja", ".txt") and path.name != "config.json":
            shutil.copy(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(CONFIG))


def give_image(fleet: Fleet) -> None:
    """Import the image without its installed tree into the nodes' engines, with its settings."""
    config = json.loads(docker("image", "inspect", IMAGE))[0]["Config"]
    changes = [f"ENV {name}={value}" for name, _, value in (item.partition("=") for item in config["Env"])]
    changes.append(f"ENTRYPOINT {json.dumps(config['Entrypoint'])}")
    options = [word for change in changes for word in ("--change", change)]
    pack = ["docker", "run", "--rm", "--entrypoint", "tar", IMAGE, "c", "--one-file-system"]
    pack += [f"--exclude=.{TREE}/*", "--exclude=./proc", "--exclude=./sys", "-C", "/", "."]
    for node in fleet.nodes:
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as source:
            command = ["docker", "exec", "-i", node.container, "docker", "import", *options, "-", IMAGE]
            subprocess.run(command, stdin=source.stdout, check=True, stdout=subprocess.DEVNULL)
        assert source.returncode == 0


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """Two nodes with the real image."""
    name = f"real-replica-{os.getpid()}"
    fleet = Fleet(name, lambda _: None)
    volume = f"{name}-tree"
    begun = time.monotonic()
    try:
        docker("volume", "create", "--label", f"{LABEL}.files={name}", volume)
        # Docker fills an empty volume with what the image has at that place.
        docker("run", "--rm", "--volume", f"{volume}:{TREE}", "--entrypoint", "true", IMAGE)
        copied = time.monotonic()
        model = tmp_path_factory.mktemp("model") / "tiny"
        make_model(model)
        fleet.up(
            tmp_path_factory.mktemp("nodes"),
            ["bookworm", "bookworm"],
            mounts=[f"{volume}:{TREE}:ro", f"{model}:{MODEL}:ro"],
        )
        booted = time.monotonic()
        give_image(fleet)
        print(
            f"\ninstalled tree into a volume {copied - begun:.0f} s, two nodes {booted - copied:.0f} s, "
            f"rest of the image into both {time.monotonic() - booted:.0f} s"
        )
        yield Replica(
            fleet,
            tmp_path_factory.mktemp("replica"),
            vllm_server_image=IMAGE,
            vllm_server_model=MODEL,
            vllm_server_args=ARGS,
            vllm_server_env=ENV,
            vllm_server_volumes=[f"{TREE}:{TREE}:ro"],
            vllm_server_ready_timeout=600,
            vllm_server_verify_endpoints=["/v1/models"],
            # Random weights talk nonsense: that they answer at all takes both nodes.
            vllm_server_verify=[{"name": "any", "prompt": "Hello", "max_tokens": 8, "expect": {"min_chars": 1}}],
        )
    finally:
        fleet.down()
        docker("volume", "rm", "--force", volume)


def test_one_model_over_two_nodes_answers_and_a_lost_worker_brings_all_back(
    replica: Replica, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    first = replica.play().ok()
    ready = time.monotonic() - begun
    assert first.changed() == {"node1": 1, "node2": 1}
    answer = replica.ask(MODEL)
    assert answer
    head, worker = (replica.sh(node, "docker logs vllm 2>&1") for node in NODES)
    assert "world_size=2 rank=0" in head
    assert "world_size=2 rank=1" in worker
    assert "headless multiproc executor" in worker
    again = replica.play().ok()
    assert again.changed() == {"node1": 0, "node2": 0}

    counts = {node: replica.inspect(node)["RestartCount"] for node in NODES}
    killed = replica.sh("node2", "pgrep -f 'VLLM::Worker' | head -1")
    replica.sh("node2", f"kill -9 {killed}")
    noticed = replica.wait("the head is down", lambda: not replica.healthy(), 60)
    back = replica.wait(
        "all ranks are back",
        lambda: all(replica.inspect(n)["RestartCount"] > counts[n] for n in NODES) and replica.healthy(),
        300,
    )
    assert replica.ask(MODEL)
    assert replica.play().ok().changed() == {"node1": 0, "node2": 0}
    with capsys.disabled():
        print(
            f"\nfirst deployment {ready:.0f} s; answer {answer!r}; worker killed: head down after {noticed:.1f} s, "
            f"the replica answers again after {noticed + back:.0f} s"
        )
