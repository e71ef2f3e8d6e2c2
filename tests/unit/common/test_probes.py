# SPDX-License-Identifier: Apache-2.0
"""Results of probes are taken only where they are of this very call and say that nothing is to be done."""

from __future__ import annotations

import json

import pytest

from ansible.module_utils.vllm_fleet.common import probes


@pytest.mark.parametrize(
    ("results", "seen"),
    [
        ([{}, {"right": True}, {"present": True}], 3),
        ([{}, {"right": False}, {"present": True}], 2),
        ([{"changed": True}], 1),
        ([{"failed": True, "msg": "no"}], 1),
        ([{"maintenance": " since monday"}], 1),
    ],
)
def test_after_one_that_has_something_to_do_none_is_probed(results, seen):
    modules = ("preflight_host", "docker_engine", "vllm_image")
    found = dict(zip(modules, results, strict=False))
    requests = [{"module": module, "args": {}} for module in modules]
    assert probes.run_all(requests, lambda module, _: found[module]) == results[:seen]


def test_a_probe_takes_what_one_before_it_found():
    asked = []

    def run(module, args):
        asked.append((module, args))
        return {"present": True, "image_ref": "name:1", "results": [1]}

    image = probes.result_of("vllm_image", "image_ref")
    requests = [
        {"module": "vllm_image", "args": {"tag": "1"}},
        {"module": "vllm_server", "args": {"image": image, "model": image + "x", "devices": []}},
        {"module": "other", "args": {"image": probes.result_of("vllm_image", "unknown")}},
    ]
    probes.run_all(requests, run)
    assert asked[1] == ("vllm_server", {"image": "name:1", "model": image + "x", "devices": []})
    # What is not known stays a name that no image has.
    assert asked[2] == ("other", requests[2]["args"])


def test_options_of_a_server_are_not_kept():
    facts = probed({"module": "vllm_server", "args": {"env": {"SOME_KEY": "s3cret"}, "model": "m"}}, {"changed": False})
    row = {"module": "vllm_server", "args": {}, "digest": "", "result": {"changed": False}}
    assert probes.probed(facts, "vllm_server") == row
    assert probes.probed(facts, "vllm_chat") == probes.probed(None, "vllm_server") == {}


@pytest.mark.parametrize(
    ("module", "result", "taken"),
    [
        ("docker_engine", {"right": True}, True),
        ("docker_engine", {"right": False}, False),
        ("docker_engine", {"running": True}, False),
        ("vllm_image", {"present": True, "changed": False}, True),
        ("vllm_image", {"present": True, "changed": True}, False),
        ("vllm_image", {"present": False}, False),
        ("hf_snapshot", {"complete": True}, True),
        ("hf_snapshot", {"complete": False}, False),
        ("hf_snapshot", {"complete": True, "failed": True}, False),
        ("hf_snapshot", {}, False),
        ("vllm_chat", {"results": [1]}, True),
        ("vllm_chat", {}, False),
        ("vllm_chat", {"failed": True, "results": []}, False),
    ],
)
def test_a_result_is_taken_where_nothing_is_to_be_done(module, result, taken):
    facts = probed({"module": module, "args": {"a": [1], "b": None}}, result)
    assert probes.nothing_to_do(module, result) is taken
    assert probes.cached_result(facts, module, {"a": [1]}) == (result if taken else None)
    # Only for just this call.
    assert probes.cached_result(facts, module, {"a": [2]}) is None
    assert probes.cached_result(facts, module, {"a": [1], "more": 1}) is None
    assert probes.cached_result(facts, "other", {"a": [1]}) is None
    assert probes.cached_result(None, module, {"a": [1]}) is None


def probed(request, *results):
    """Facts of a host that was probed for something first, and for ``request`` with it."""
    called = []

    def call(module, options):
        called.append((module, json.loads(options["requests"])))
        return {"probed": [{"changed": False, "findings": []}, *results]}

    first = {"module": "first", "args": {"x": 1}}
    own = probes.together(first, [request], call)
    assert called == [("node_probe", [first, request])]
    assert (own.pop("changed"), own.pop("findings")) == (False, [])
    return own["ansible_facts"]


def test_a_probe_that_was_not_come_to_has_no_result():
    facts = probed({"module": "vllm_chat", "args": {}})
    assert probes.cached_result(facts, "vllm_chat", {}) is None


def test_a_key_is_not_kept():
    facts = probed({"module": "vllm_chat", "args": {"url": "u", "api_key": "s3cret"}}, {"results": [1]})
    assert "s3cret" not in json.dumps(facts)
    assert probes.cached_result(facts, "vllm_chat", {"url": "u", "api_key": "s3cret"}) == {"results": [1]}


@pytest.mark.parametrize(
    ("result", "taken"),
    [
        ({"changed": True, "actions": ["create"]}, True),
        ({"changed": False, "actions": []}, False),
        ({"changed": True, "failed": True}, False),
        ({"failed": True, "msg": "crashed"}, False),
        ({}, False),
    ],
)
def test_a_plan_takes_a_result_of_just_its_own_options_that_would_change_something(result, taken):
    def digest(args):
        return json.dumps(args, sort_keys=True)

    def call(_module, _options):
        return {"probed": [{"changed": False}, {"present": True, "image_ref": "name:1"}, result]}

    image = probes.result_of("vllm_image", "image_ref")
    more = [
        {"module": "vllm_image", "args": {}},
        {"module": "vllm_server", "args": {"image": image, "env": {"A": "x"}}},
    ]
    facts = probes.together({"module": "first", "args": {}}, more, call, digest)["ansible_facts"]
    known = digest({"image": "name:1", "env": {"A": "x"}})
    assert probes.planned(facts, "vllm_server", known) == (result if taken else None)
    assert probes.planned(facts, "vllm_server", digest({"image": "name:2", "env": {"A": "x"}})) is None
    assert probes.planned(facts, "vllm_server", "") is None
    assert probes.planned(None, "vllm_server", known) is None


@pytest.mark.parametrize("lost", [{"unreachable": True, "msg": "no route"}, {"failed": True, "msg": "crashed"}])
def test_a_call_without_results_is_returned_as_it_is(lost):
    assert probes.together({"module": "m", "args": {}}, [], lambda *_: lost) == lost


def test_what_leans_on_a_module_that_is_not_asked_is_not_asked_either():
    image = {"module": "vllm_image", "args": {"name": "a"}}
    server = {"module": "vllm_server", "args": {"image": probes.result_of("vllm_image", "image_ref"), "port": 8000}}
    chat = {"module": "vllm_chat", "args": {"url": "http://127.0.0.1:8000"}}
    assert probes.answerable([image, server, chat], ["preflight_host"]) == [image, server, chat]
    assert probes.answerable([chat, server, chat], ["preflight_host"]) == [chat]
