# SPDX-License-Identifier: Apache-2.0
"""The real vLLM (CPU) with a real model, brought by the project's own roles: the scenario `default` ran before."""

from __future__ import annotations

import pytest
from local_inventory import IMAGE, SERVER


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

    made = Server(Engine(), docker_client, IMAGE, tmp_path)
    made.fixed = dict(SERVER)
    yield made
    made.close()
