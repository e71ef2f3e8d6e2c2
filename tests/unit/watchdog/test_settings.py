# SPDX-License-Identifier: Apache-2.0
"""The settings' file: what it may say, and in which words a wrong one is refused."""

from __future__ import annotations

import json

import pytest

from ansible.module_utils.vllm_fleet.vllm.endpoint import Endpoint
from ansible.module_utils.vllm_fleet.watchdog.settings import parse, verification

GOOD = {
    "name": "vllm",
    "state_dir": "/var/lib/vllm-fleet",
    "silence": 120,
    "action": "restart",
    "restarts": 3,
    "interval": 5,
    "agent": {"address": "10.0.0.7", "port": 8081},
    "docker_socket": "/var/run/docker.sock",
    "ready_timeout": 3600,
    "stall_timeout": 900,
    "model": "acme/tiny",
    "verify": {
        "timeout": 300,
        "requests": [
            {"name": "paris", "prompt": "What is the capital of France?", "expect": {"pattern": "Paris"}},
            {"name": "poem", "messages": [{"role": "user", "content": "A poem"}], "api": "chat", "max_tokens": 64},
        ],
    },
}


def test_all_that_can_be_said():
    settings = parse(json.dumps(GOOD))
    assert (settings.silence, settings.restarts, settings.agent) == (120.0, 3, ("10.0.0.7", 8081))
    first, second = verification(settings, Endpoint("::1", 8000, ("tiny",), api_key="sk-key"))
    assert (first.url, first.model, first.api_key) == ("http://[::1]:8000", "tiny", "sk-key")
    assert (first.expect.pattern, first.expect.min_chars, first.timeout) == ("Paris", 1, 300.0)
    assert (second.name, second.max_tokens, second.stream) == ("poem", 64, True)


def test_what_must_be_said():
    settings = parse('{"name": "vllm", "state_dir": "/s", "silence": 20, "agent": null}')
    assert (settings.action, settings.restarts, settings.interval, settings.agent) == ("restart", 3, 5.0, None)
    assert verification(settings, Endpoint("127.0.0.1", 8000, ())) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "../x"}, "name should be a container's name, found '../x'"),
        ({"silence": 0}, "silence should be a number of at least 1, found 0"),
        ({"silence": True}, "found True"),
        ({"action": "reboot"}, "action should be one of restart, drain, observe, found 'reboot'"),
        ({"agent": {"address": "a", "port": 70000}}, "agent should have an address and a port"),
        ({"api_key": "x"}, "the settings have api_key, which nothing reads"),
        ({"verify": {"requests": [{"prompt": "x", "api_key": "k"}]}}, "the key is read from the container"),
        ({"verify": {"requests": [{"prompt": "x", "word": "k"}]}}, "word, which no request knows"),
        (
            {"verify": {"requests": [{"name": "n", "prompt": "x", "expect": {"pattern": "("}}]}},
            "Request 'n': pattern '('",
        ),
        ({"verify": []}, "verify should have a list of requests"),
    ],
)
def test_what_is_refused(change, says):
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse(json.dumps({**GOOD, **change}))
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_what_is_no_settings_at_all(text):
    with pytest.raises(ValueError, match="the settings"):
        parse(text)
