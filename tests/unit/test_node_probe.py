# SPDX-License-Identifier: Apache-2.0
"""node_probe finds what each module by itself finds in check mode, and survives what goes wrong in one of them."""

from __future__ import annotations

import importlib
import json

import node_probe
import pytest
from ansible.module_utils.testing import patch_module_args
from fake_hf_cache import REPO

SECRET = "canary-own-key-77b0"
NOWHERE = "/nonexistent/docker.sock"
SERVER = {"image": "vllm:1", "model": "org/m", "docker_host": f"unix://{NOWHERE}", "reported_host": "n1"}
CHAT = {"url": "http://127.0.0.1:9", "model": "m", "timeout": 1, "requests": [{"name": "one", "prompt": "x"}]}
REQUESTS = {
    "preflight_host": {"accelerator": "cpu", "docker_socket": NOWHERE, "clock": False, "host": False},
    "docker_engine": {"state": "probed", "socket": NOWHERE, "config": {"live-restore": True}},
    "vllm_image": {"state": "found", "name": "vllm", "source": "pull", "tag": "v1", "socket": NOWHERE},
    "hf_snapshot": {"state": "verified", "repo_id": REPO, "cache": "/nonexistent/cache"},
    "vllm_server": SERVER,
    "vllm_chat": CHAT,
    "vllm_watchdog": {"name": "nobody", "state": "absent"},
}


def own_result(module, args, capsys):
    """The module's result in check mode, called as Ansible calls it."""
    capsys.readouterr()
    with patch_module_args({**args, "_ansible_check_mode": True}), pytest.raises(SystemExit):
        importlib.import_module(module).main()
    result = json.loads(capsys.readouterr().out)
    result.pop("invocation", None)
    return result


def plain(result):
    """Without what is another at each call, and as JSON has it."""
    loose = ("elapsed", "exception")
    return json.loads(json.dumps(result), object_hook=lambda one: {k: v for k, v in one.items() if k not in loose})


@pytest.mark.parametrize("module", REQUESTS)
def test_a_probe_finds_what_the_module_finds(module, capsys):
    assert plain(node_probe.run(module, REQUESTS[module])) == plain(own_result(module, REQUESTS[module], capsys))


def test_everything_that_is_probed_is_tested_here():
    assert node_probe.PROBES.keys() == REQUESTS.keys()


@pytest.mark.parametrize(
    ("module", "args", "msg"),
    [
        ("docker_engine", {}, "docker_engine: state started is no probe"),
        ("vllm_image", {**REQUESTS["vllm_image"], "state": "pruned"}, "vllm_image: state pruned is no probe"),
        ("hf_snapshot", {"repo_id": REPO, "cache": "/tmp", "state": "absent"}, "hf_snapshot: state absent is no probe"),
        ("hf_snapshot", {}, "missing required arguments: cache, repo_id"),
        ("vllm_chat", {"prompt": "x", "messages": []}, "mutually exclusive"),
        ("vllm_chat", {"prompt": "x", "prot": 1}, "prot"),
        ("vllm_chat", {**CHAT, "prompt": "y"}, "messages, prompt and query belong into the entries of requests"),
        ("vllm_server", {**SERVER, "replica_step": {"nonce": "n"}}, "a rank of a replica"),
        ("rocm_info", {}, "KeyError: 'rocm_info'"),
    ],
)
def test_what_cannot_be_probed_has_failed(module, args, msg):
    result = node_probe.run(module, args)
    assert result["failed"] and msg in result["msg"], result


@pytest.mark.parametrize("error", [ValueError("oh"), OSError(5, "oh"), SystemExit("oh")])
def test_a_probe_that_crashes_has_failed(monkeypatch, error):
    def crash(_):
        raise error

    spec = {"argument_spec": {"key": {"type": "str", "no_log": True}}}
    monkeypatch.setitem(node_probe.PROBES, "vllm_chat", lambda: node_probe.Probe(spec, crash))
    result = node_probe.run("vllm_chat", {"key": SECRET})
    assert result["failed"] and f"vllm_chat: {type(error).__name__}: " in result["msg"]
    assert "in crash" in result["exception"]


@pytest.mark.parametrize(
    ("module", "args"),
    [
        ("vllm_server", {**SERVER, "name": SECRET, "env": {"MY_API_KEY": SECRET}}),
        ("vllm_server", {**SERVER, "name": SECRET, "env": f"MY_API_KEY={SECRET}"}),
        ("vllm_server", {**SERVER, "name": SECRET, "place": {"args": {"x-key": SECRET}}}),
        ("vllm_server", {**SERVER, "name": SECRET, "api_key": SECRET}),
        ("vllm_server", {**SERVER, "port": SECRET, "api_key": SECRET}),
        ("vllm_chat", {"url": "http://127.0.0.1:9", "requests": [{"prompt": "x", "model": SECRET, "api_key": SECRET}]}),
    ],
)
def test_a_result_shows_no_secret(module, args):
    """The secret stands where a result would show it."""
    shown = node_probe.run(module, args)
    assert SECRET not in json.dumps(shown)
    assert "***" in json.dumps(shown) or "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER" in json.dumps(shown)
