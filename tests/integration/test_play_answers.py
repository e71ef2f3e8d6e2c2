# SPDX-License-Identifier: Apache-2.0
"""What a node was probed for before is the result where a task allows it, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import play

ARGS = {"url": "http://127.0.0.1:9", "model": "m", "timeout": 1, "requests": [{"name": "one", "prompt": "x"}]}
BEFORE = {"changed": False, "results": ["of before"]}
KEPT = {"module": "vllm_chat", "args": ARGS, "result": BEFORE}


CASES: dict[str, tuple[bool, list[dict[str, Any]], bool]] = {
    "taken": (True, [KEPT], True),
    "not wanted": (False, [KEPT], False),
    "none": (True, [], False),
    "crashed": (True, [{**KEPT, "result": {"failed": True, "msg": "vllm_chat: ValueError: crashed"}}], False),
    "half": (True, [{**KEPT, "result": {"changed": False}}], False),
    "of another configuration": (True, [{**KEPT, "args": {**ARGS, "model": "another"}}], False),
}


def test_a_cached_result_is_taken_or_the_module_called(tmp_path: Path) -> None:
    """A template, as in the role: after a change or a boot the plan's result would be one of the server before."""
    tasks: list[dict[str, Any]] = []
    for number, (wanted, kept, _) in enumerate(CASES.values()):
        chat = {**ARGS, "use_cached_result": "{{ wanted }}"}
        tasks += [
            {"name": "Keep", "ansible.builtin.set_fact": {"vllm_fleet_probe_results": kept, "cacheable": True}},
            {"name": "Verify", "vllm_chat": chat, "register": f"verified{number}", "failed_when": False}
            | {"vars": {"wanted": wanted}},
        ]
    names = [f"verified{number}" for number in range(len(CASES))]
    facts = play.run(tmp_path, tasks, {}, facts=names).ok().facts
    for name, (case, (_, _, taken)) in zip(names, CASES.items(), strict=True):
        verified = facts[name]
        assert (verified.get("results") == ["of before"]) is taken, case
        assert ("refused" in verified.get("msg", "")) is not taken, (case, verified)


def test_a_node_gets_all_that_probes_import(tmp_path: Path) -> None:
    """Ansible packs what it finds imported; of what is missing a probe on the node would say ModuleNotFoundError."""
    nowhere = "/nonexistent/docker.sock"
    requests = {
        "preflight_host": {"accelerator": "cpu", "docker_socket": nowhere, "clock": False},
        "docker_engine": {"state": "probed", "socket": nowhere},
        "vllm_image": {"state": "found", "name": "vllm", "source": "pull", "tag": "v1", "socket": nowhere},
        "hf_snapshot": {"state": "verified", "repo_id": "org/m", "cache": str(tmp_path)},
        "vllm_server": {"image": "vllm:1", "model": "org/m", "docker_host": f"unix://{nowhere}"},
        "vllm_chat": ARGS,
    }
    told = {
        "preflight_host": "findings",
        "docker_engine": "right",
        "vllm_image": "present",
        "hf_snapshot": "complete",
        "vllm_server": "failure",
        "vllm_chat": "results",
    }
    loop = [json.dumps([{"module": module, "args": args}]) for module, args in requests.items()]
    task = {"name": "Probe", "node_probe": {"requests": "{{ item }}"}, "loop": "{{ texts }}", "register": "all"}
    found = play.run(tmp_path, [task], {"texts": loop}, facts=["all"]).ok().facts["all"]["results"]
    for (module, key), one in zip(told.items(), found, strict=True):
        assert key in one["probed"][0], (module, one)
