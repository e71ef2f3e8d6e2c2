# SPDX-License-Identifier: Apache-2.0
"""The real vLLM (CPU) with a real model, brought by the project's own roles: the scenario `default` ran before."""

from __future__ import annotations

import pytest
from local_inventory import CACHE, LOCAL, PRESET


@pytest.fixture(scope="session")
def docker_client():
    import docker

    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture
def real(docker_client, tmp_path):
    """A server of the real image, with the local inventory's model and arguments."""
    from vllm_server_tools import Server

    from ansible.module_utils.vllm_fleet.container.engine import Engine

    made = Server(Engine(), docker_client, f"{LOCAL['vllm_image_name']}:{LOCAL['vllm_image_tag']}", tmp_path)
    made.fixed = {
        "model": LOCAL["vllm_server_model"],
        "revision": LOCAL["vllm_server_revision"],
        "hf_cache": str(CACHE / "seed"),
        "args": PRESET["args"],
        "env": {k: str(v) for k, v in PRESET["env"].items()},
        "ready_timeout": 600.0,
        "stall_timeout": 300.0,
        "stop_timeout": 30,
    }
    yield made
    made.close()
