# SPDX-License-Identifier: Apache-2.0
"""The HAProxy of this machine, and that of Debian 13 in a container that shares the machine's network and processes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import docker
import node_image

#: This machine's own: Debian 12 has 2.6.
HERE = os.environ.get("VLLM_FLEET_HAPROXY", "/usr/sbin/haproxy")
#: Debian 13 has 3.0.
SUITE = "trixie"
PROGRAMS = ("here", SUITE)
REPOSITORY, OWNER = "vllm-fleet-haproxy", "io.vllm-fleet.haproxy"
RECIPE = """FROM {base}
RUN install="apt-get install -qq --no-install-recommends haproxy"; $install || (apt-get update -qq && $install)
"""


def words(program: str, folders: Iterable[Path]) -> list[str]:
    """Return what runs one of PROGRAMS. It sees ``folders``, writes as this user, and ends by the signals that it gets."""
    if program == "here":
        return HERE.split()
    mounts = [word for folder in folders for word in ("-v", f"{folder}:{folder}")]
    command = ["docker", "run", "--rm", "--network", "host", "--pid", "host", "--user", f"{os.getuid()}:{os.getgid()}"]
    return [*command, "--label", f"{OWNER}={os.getpid()}", *mounts, image(), "haproxy"]


def image() -> str:
    """Return the image of Debian 13's HAProxy, built where it is missing. What killed runs left is taken away."""
    base = node_image.ensure_image(SUITE, "engine", say=lambda _: None)
    tag = f"{REPOSITORY}:{base.rpartition('-')[2]}"
    with (Path(tempfile.gettempdir()) / "vllm-fleet-haproxy.lock").open("a") as one, _client() as client:
        fcntl.flock(one, fcntl.LOCK_EX)
        for container in client.containers.list(filters={"label": OWNER}, ignore_removed=True):
            if not Path("/proc", container.labels[OWNER]).exists():
                container.remove(force=True)
        if not client.images.list(name=tag):
            old = client.images.list(name=REPOSITORY)
            recipe = io.BytesIO(RECIPE.format(base=base).encode())
            client.images.build(fileobj=recipe, tag=tag, network_mode="host", rm=True, forcerm=True)
            for each in old:
                client.images.remove(each.id, force=True)
    return tag


@contextlib.contextmanager
def _client():
    client = docker.from_env()
    try:
        yield client
    finally:
        client.close()
