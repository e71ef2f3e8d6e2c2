# SPDX-License-Identifier: Apache-2.0
"""Questions to an engine that does not answer: a socket on which nobody does."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.container.api import DockerApi, DockerUnavailable


def test_a_silent_registry_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    path = str(tmp_path / "docker.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine:
        engine.bind(path)
        engine.listen()
        with pytest.raises(DockerUnavailable, match="timed out"):
            DockerApi(path, timeout=0.3).registry_digest("acme/vllm:1")
        began = time.monotonic()
        with pytest.raises(DockerUnavailable, match="timed out"):
            DockerApi(path, timeout=30).registry_digest("acme/vllm:1")
        assert time.monotonic() - began < 5
        # Another image is another question.
        with pytest.raises(DockerUnavailable, match="timed out"):
            DockerApi(path, timeout=0.3).registry_digest("acme/vllm:2")
