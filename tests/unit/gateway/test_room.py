# SPDX-License-Identifier: Apache-2.0
"""Does gateway_buffer_size fit? Tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible.module_utils.vllm_fleet.gateway import room

DEFAULTS = yaml.safe_load((Path(__file__).resolve().parents[3] / "roles/gateway/defaults/main.yml").read_text())


def front(*names, **more):
    pools = [{"model": name, "names": [name], "aliases": more.get("aliases", [])} for name in names]
    return {"port": 8080, "pools": pools, **more}


@pytest.mark.parametrize(
    ("size", "front", "says"),
    [
        (16383, front("a"), "gateway_buffer_size is 16383: give at least 16384 bytes"),
        (16384, front("a"), ""),
        (16384, front("a", "b"), ""),
        # The server itself lists the names of one model.
        (16384, front("a" * 20000), ""),
        (16384, front(*(f"org/model-{n}" for n in range(200))), "the list of models at port 8080 takes "),
        (131072, front(*(f"org/model-{n}" for n in range(200))), ""),
        (16384, front("a", aliases=[f"alias-{n}" for n in range(200)]), "the list of models at port 8080 takes "),
    ],
)
def test_what_haproxy_says_must_fit_into_a_buffer(size, front, says):
    found = room.problems(size, [front])
    assert (len(found), says in "".join(found)) == (bool(says), True), found


def test_the_buffers_of_all_connections_must_fit_into_the_memory():
    assert (DEFAULTS["gateway_buffer_size"], DEFAULTS["gateway_maxconn"]) == (room.SIZE, room.CONNECTIONS)
    assert room.too_little_memory("gw", 2 << 30, {}) == room.too_little_memory("gw", 0, {}) == ""
    said = room.too_little_memory("gw", 2 << 30, {"gateway_maxconn": 20000, "gateway_buffer_size": "131072"})
    assert said == (
        "gw has 2147 MB of memory, and requests may take 2621 MB: gateway_maxconn is 20000 for each port, "
        "gateway_buffer_size is 131072. Lower one of them."
    )
    assert room.too_little_memory("gw", 1 << 30, {}) == ""
    assert "may take 1073 MB" in room.too_little_memory("gw", 1_000_000_000, {"gateway_http2": "yes"})
    assert room.too_little_memory("gw", 1 << 30, {"gateway_ports": {"a": 1, "b": 2, "c": 3}})
