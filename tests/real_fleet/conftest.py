# SPDX-License-Identifier: Apache-2.0
"""Two nodes with the real vLLM (CPU), for all tests of this folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from fleet import LABEL_FILES, Fleet
from node_image import docker
from real_nodes import IMAGE, TREE, RealNodes, give_image


@pytest.fixture(scope="session")
def real_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNodes]:
    """Boot them."""
    name = f"real-{os.getpid()}"
    fleet = Fleet(name, lambda _: None)
    volume = f"{name}-tree"
    begun = time.monotonic()
    try:
        docker("volume", "create", "--label", f"{LABEL_FILES}={name}", volume)
        # Docker fills an empty volume with what the image has at that place.
        docker("run", "--rm", "--volume", f"{volume}:{TREE}", "--entrypoint", "true", IMAGE)
        copied = time.monotonic()
        folder, models = tmp_path_factory.mktemp("nodes"), tmp_path_factory.mktemp("models")
        models.chmod(0o755)
        fleet.up(folder, ["bookworm", "bookworm"], mounts=[f"{volume}:{TREE}:ro", f"{models}:/models:ro"])
        booted = time.monotonic()
        identity = give_image(fleet)
        print(
            f"\ninstalled tree into a volume {copied - begun:.0f} s, two nodes {booted - copied:.0f} s, "
            f"rest of the image into both {time.monotonic() - booted:.0f} s"
        )
        yield RealNodes(fleet, folder, identity, models)
    finally:
        fleet.down()
