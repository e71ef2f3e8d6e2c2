# SPDX-License-Identifier: Apache-2.0
"""What the integration tests share: the Docker engine, the stand-in's image, servers that are removed afterwards."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def remove_servers(client: Any) -> None:
    """Remove all containers of the stand-in: with their restart policy they come back with every start of the engine."""
    from docker.errors import APIError

    for container in client.containers.list(all=True, ignore_removed=True):
        if container.attrs["Config"]["Image"].startswith("vllm-standin:"):
            with contextlib.suppress(APIError):
                container.remove(force=True, v=True)


@pytest.fixture(scope="session")
def docker_client() -> Iterator[Any]:
    """The machine's Docker engine, through the SDK."""
    import docker
    import standin

    client = docker.from_env()
    client.ping()
    # Several runs on one machine share the images; the first one takes away what killed runs left, the last one these.
    with standin.USERS.open("a") as users:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_servers(client)
        fcntl.flock(users, fcntl.LOCK_SH)
        yield client
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for image in client.images.list(name="vllm-standin"):
                with contextlib.suppress(docker.errors.APIError):
                    client.images.remove(image.id, force=True)
    client.close()


@pytest.fixture(scope="session")
def standin_image(docker_client: Any) -> str:
    """The stand-in's image without an entrypoint (as rocm/vllm), by a tag that names its sources."""
    import standin

    return standin.build_image(docker_client, "plain")


@pytest.fixture(scope="session")
def standin_openai_image(docker_client: Any) -> str:
    """The stand-in's image with the entrypoint `vllm serve` (as vllm/vllm-openai-rocm)."""
    import standin

    return standin.build_image(docker_client, "openai")


@pytest.fixture(scope="session")
def engine() -> Any:
    """The project's own connection to the engine."""
    from ansible.module_utils.vllm_fleet.container.engine import Engine

    return Engine()


@pytest.fixture
def server(engine: Any, docker_client: Any, standin_image: str, tmp_path: Path) -> Iterator[Any]:
    """One server under test: a name, a port and a state folder of its own; removed afterwards."""
    from vllm_server_tools import Server

    made = Server(engine, docker_client, standin_image, tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def hub_python() -> str:
    """A Python with the pinned huggingface_hub: the environment that the seed's converter has anyway."""
    from hub_standin import hub_python_of

    return hub_python_of()
