# SPDX-License-Identifier: Apache-2.0
"""Where a server answers: as the options say, and out of containers that somebody else made."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.container import spec
from ansible.module_utils.vllm_fleet.server import endpoint, gpu_gate
from ansible.module_utils.vllm_fleet.server.options import ServerOptions
from ansible.module_utils.vllm_fleet.vllm.endpoint import reachable

PUBLISHED = {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8000"}]}


def container(entrypoint, cmd, *, env=(), ports=PUBLISHED, **host):
    config = {"Entrypoint": entrypoint, "Cmd": cmd, "Env": list(env)}
    return {"Id": "c" * 64, "Config": config, "HostConfig": {"PortBindings": ports, **host}, "State": {"Running": True}}


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "names", "root"),
    [
        (["vllm", "serve"], ["org/m"], ("org/m",), "org/m"),
        (["vllm", "serve"], ["org/m", "--served-model-name", "a", "b"], ("a", "b"), "org/m"),
        (None, ["vllm", "serve", "org/m"], ("org/m",), "org/m"),
        # The model stands in a text or in a script.
        (["bash", "-c"], ["vllm serve org/m --max-model-len 512"], (), None),
        (None, ["/bin/bash", "-c", "exec vllm serve org/m"], (), None),
        (["/opt/serve.sh"], ["org/m"], (), None),
        (["tini", "--", "/opt/serve.sh"], None, (), None),
    ],
)
def test_what_a_container_serves_is_only_said_where_its_command_is_read(entrypoint, cmd, names, root):
    where = endpoint.of_container(container(entrypoint, cmd))
    assert (where.host, where.port, where.names, where.root) == ("127.0.0.1", 8000, names, root)


def test_a_script_may_listen_on_the_port_that_is_published():
    ports = {"9000/tcp": [{"HostIp": "", "HostPort": "8001"}]}
    assert endpoint.of_container(container(["bash", "-c"], ["vllm serve m --port 9000"], ports=ports)).port == 8001
    assert endpoint.of_container(container(["vllm", "serve"], ["m"], ports=ports)) is None


@pytest.mark.parametrize(
    ("script", "port"),
    [("vllm serve m --port 9000", 9000), ("vllm serve m --port $PORT", 8000), ("ls; vllm serve 'm", 8000), ("m", 8000)],
)
def test_on_the_hosts_network_a_script_tells_its_port(script, port):
    where = endpoint.of_container(container(["bash", "-c"], [script], ports=None, NetworkMode="host"))
    assert (where.host, where.port, where.names) == ("127.0.0.1", port, ())


def test_how_a_foreign_server_is_to_be_asked():
    where = endpoint.of_container(
        container(["vllm", "serve"], ["m", "--ssl-certfile", "/c.pem", "--api-key", "k1", "k2"])
    )
    assert (where.tls, where.api_key) == (True, "k1")
    assert endpoint.of_container(container(["/serve.sh"], None, env=["VLLM_API_KEY=k"])).api_key == "k"


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"api_key": "a"}, "a"),
        ({"env": {"VLLM_API_KEY": "e"}}, "e"),
        ({"api_key": "a", "env": {"VLLM_API_KEY": "e"}}, "a"),  # as the container gets it
        ({"env": {"VLLM_API_KEY": None}}, None),
    ],
)
def test_the_key_that_the_server_will_have_is_used(more, key):
    assert endpoint.of_options(ServerOptions.from_params({"model": "org/m", **more})).api_key == key


@pytest.mark.parametrize(
    ("bind", "address"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.5", "10.0.0.5")]
)
def test_where_a_server_answers_on_its_own_node(bind, address):
    assert reachable(bind) == address


def test_what_an_existing_container_takes_of_the_gpus():
    """Its own share, ranks and GPUs, not those of the release that failed."""
    words = ["org/m", "--gpu-memory-utilization", "0.5", "-tp", "2", "--revision", "abc"]
    old = container(["vllm", "serve"], words, env=["HIP_VISIBLE_DEVICES=1,2"], Devices=[{"PathOnHost": "/dev/kfd"}])
    options = ServerOptions(model="org/m", flags={"tensor-parallel-size": "8"})
    asked, command = gpu_gate.demand_of(old, options)
    assert asked.flags["tensor-parallel-size"] == "2"
    assert (asked.env, asked.devices) == ({"HIP_VISIBLE_DEVICES": "1,2"}, ("/dev/kfd",))
    assert spec.utilization_of(command) == "0.5"
    assert asked.gpu_memory_policy == "strict"
    # One without devices takes none of it.
    assert gpu_gate.demand_of(container(["vllm", "serve"], words), options)[0].gpu_memory_policy == "off"
