# SPDX-License-Identifier: Apache-2.0
"""Two nodes with the real vLLM (CPU), for all tests of this folder.

Needs the image and the model that the molecule scenario `default` leaves. The nodes' engines do not get the image's
3.5 GB loaded: its installed tree is in one volume of this machine that both nodes mount, and the rest of the image, some
400 MB, is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fleet import Fleet
from node_image import docker

IMAGE, TREE = "vllm-cpu:0.32.0", "/opt/vllm"
CACHE = Path(os.environ.get("VLLM_FLEET_CACHE") or Path.home() / ".cache/vllm-fleet")


@dataclass(frozen=True)
class RealNodes:
    """The fleet, its inventory's folder, the image's id on both nodes, and a folder that the nodes have as /models."""

    fleet: Fleet
    folder: Path
    image_id: str
    models: Path


def give_image(fleet: Fleet) -> str:
    """Import the image without its installed tree into the nodes' engines, with its settings; gives its id."""
    config = json.loads(docker("image", "inspect", IMAGE))[0]["Config"]
    changes = [f"ENV {name}={value}" for name, _, value in (item.partition("=") for item in config["Env"])]
    changes.append(f"ENTRYPOINT {json.dumps(config['Entrypoint'])}")
    options = [word for change in changes for word in ("--change", change)]
    pack = ["docker", "run", "--rm", "--entrypoint", "tar", IMAGE, "c", "--one-file-system"]
    pack += [f"--exclude=.{TREE}/*", "--exclude=./proc", "--exclude=./sys", "-C", "/", "."]
    first, *others = (["docker", "exec", "-i", node.container, "docker"] for node in fleet.nodes)
    pipe(pack, [*first, "import", *options, "-", IMAGE])
    # Imported again it would have another id.
    for other in others:
        pipe([*first, "save", IMAGE], [*other, "load"])
    return subprocess.run(
        [*first, "image", "inspect", "--format", "{{.Id}}", IMAGE], capture_output=True, text=True, check=True
    ).stdout.strip()


def pipe(source: list[str], sink: list[str]) -> None:
    """Run one command into another."""
    with subprocess.Popen(source, stdout=subprocess.PIPE) as going:
        subprocess.run(sink, stdin=going.stdout, check=True, stdout=subprocess.DEVNULL)
    assert going.returncode == 0, source
