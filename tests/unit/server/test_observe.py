"""What a run finds out before it acts: from options, and from containers that somebody else made."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.container import plan, spec
from ansible.module_utils.vllm_fleet.server import endpoint, observe
from ansible.module_utils.vllm_fleet.server.state import NodeState

OPTIONS = {"model": "org/m", "bind": "127.0.0.1", "port": 8000, "args": {}, "env": {}}
IMAGE = spec.Image("vllm:1", "sha256:" + "1" * 64, entrypoint=("vllm", "serve"))
PUBLISHED = {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8000"}]}
HELP = "--max-model-len --served-model-name --host --port"


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
    where = endpoint.endpoint_of(container(entrypoint, cmd))
    assert (where.host, where.port, where.names, where.root) == ("127.0.0.1", 8000, names, root)


def test_a_script_may_listen_on_the_port_that_is_published():
    ports = {"9000/tcp": [{"HostIp": "", "HostPort": "8001"}]}
    assert endpoint.endpoint_of(container(["bash", "-c"], ["vllm serve m --port 9000"], ports=ports)).port == 8001
    assert endpoint.endpoint_of(container(["vllm", "serve"], ["m"], ports=ports)) is None


@pytest.mark.parametrize(
    ("script", "port"),
    [("vllm serve m --port 9000", 9000), ("vllm serve m --port $PORT", 8000), ("ls; vllm serve 'm", 8000), ("m", 8000)],
)
def test_on_the_hosts_network_a_script_tells_its_port(script, port):
    where = endpoint.endpoint_of(container(["bash", "-c"], [script], ports=None, NetworkMode="host"))
    assert (where.host, where.port, where.names) == ("127.0.0.1", port, ())


def test_how_a_foreign_server_is_to_be_asked():
    where = endpoint.endpoint_of(
        container(["vllm", "serve"], ["m", "--ssl-certfile", "/c.pem", "--api-key", "k1", "k2"])
    )
    assert (where.tls, where.api_key) == (True, "k1")
    assert endpoint.endpoint_of(container(["/serve.sh"], None, env=["VLLM_API_KEY=k"])).api_key == "k"


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
    assert endpoint.endpoint({**OPTIONS, **more}).api_key == key


@pytest.mark.parametrize(
    ("answer", "noted", "asked_again"),
    [(HELP, True, False), ("", True, False), ("usage: other", True, False), (None, False, True)],
    ids=["help", "failed", "no help", "too slow"],
)
def test_an_image_is_asked_again_only_where_it_was_too_slow(tmp_path, answer, noted, asked_again):
    node, asked, notes = NodeState(str(tmp_path), "vllm"), [], []

    class Docker:
        def run_once(self, *_, **__):
            asked.append(1)
            return answer

    for _ in range(2):
        known = observe._known_flags(OPTIONS, IMAGE, Docker(), node, notes)
    assert bool(known) is (answer == HELP) is not bool(notes)
    assert (node.flags(IMAGE.id) is not None) is noted
    assert len(asked) == (2 if asked_again else 1)


@pytest.mark.parametrize(
    ("state", "current", "previous", "names"),
    [
        ("absent", None, "exited", ["previous"]),
        ("absent", "exited", None, ["state"]),
        ("absent", "running", "running", ["state", "previous"]),
        ("stopped", "exited", "running", ["previous"]),
        ("stopped", None, "running", ["previous"]),
        ("stopped", "running", "exited", ["state"]),
        ("stopped", "exited", "exited", []),
        ("absent", None, None, []),
    ],
)
def test_whatever_is_done_is_a_difference(state, current, previous, names):
    """`changed` comes from the differences, in check mode too."""

    def made(status):
        return status and {"Id": status, "State": {"Status": status, "Running": status == "running"}}

    ranks = (plan.Rank.UNKNOWN, plan.Rank.READY)
    seen = observe._without_spec("vllm", state, made(current), made(previous), ranks, restoring=None)
    assert [d.name for d in seen.differences] == names
    assert bool(seen.differences) is bool(seen.plan.actions)


def test_what_an_existing_container_takes_of_the_gpus():
    """Its own share, ranks and GPUs, not those of the release that failed."""
    words = ["org/m", "--gpu-memory-utilization", "0.5", "-tp", "2", "--revision", "abc"]
    old = container(["vllm", "serve"], words, env=["HIP_VISIBLE_DEVICES=1,2"], Devices=[{"PathOnHost": "/dev/kfd"}])
    options = {**OPTIONS, "args": {"tensor-parallel-size": 8}, "gpu_memory_policy": "strict"}
    asked, command = endpoint.demand_of(old, options)
    assert (asked["args"]["tensor-parallel-size"], asked["env"], asked["devices"]) == (
        "2",
        {"HIP_VISIBLE_DEVICES": "1,2"},
        ["/dev/kfd"],
    )
    assert spec.utilization_of(command) == "0.5"
    assert asked["gpu_memory_policy"] == "strict"
    # One without devices takes none of it.
    assert endpoint.demand_of(container(["vllm", "serve"], words), options)[0]["gpu_memory_policy"] == "off"


def test_groups_that_the_options_name_are_looked_up_on_the_node():
    found = observe.node_facts({"accelerator": "cpu", "groups": ["root", "daemon", "0", "no-such-group"]})
    assert found.groups == {"root": 0, "daemon": 1}
