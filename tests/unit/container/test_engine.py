# SPDX-License-Identifier: Apache-2.0
"""What Docker's trouble becomes, with the SDK's client given by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import requests
from docker.errors import APIError

from ansible.module_utils.vllm_fleet.container import spec
from ansible.module_utils.vllm_fleet.container.engine import Engine, EngineError, Ran
from ansible.module_utils.vllm_fleet.container.mounts import ENGINE_CACHE
from ansible.module_utils.vllm_fleet.server import recover
from ansible.module_utils.vllm_fleet.server.options import ServerOptions
from ansible.module_utils.vllm_fleet.server.outcome import Outcome
from ansible.module_utils.vllm_fleet.server.run import RunContext

IMAGE = spec.Image("vllm:1", "sha256:" + "1" * 64)


def refused(status):
    """Docker's answer with an error, which is an OSError to Python."""
    answer = requests.Response()
    answer.status_code = status
    return APIError("refused", response=answer, explanation="no such thing")


class Api:
    """Docker's client, in which one call raises and a program ends with ``code``."""

    def __init__(self, call="", error=None, code=0):
        self.call, self.error, self.code, self.answers = call, error, code, {}

    def __getattr__(self, name):
        answers = {"create_container": {"Id": "c"}, "wait": {"StatusCode": self.code}, **self.answers}

        def do(*_, **given):
            if name == self.call:
                raise self.error
            if name == "logs":
                return [b"--", b"help"] if given["stdout"] else b"why"
            return answers.get(name)

        return do


def engine(*args, **named):
    made = Engine.__new__(Engine)
    made._sdk_client, made._socket = Api(*args, **named), None
    return made


@pytest.mark.parametrize("error", [refused(500), requests.ConnectionError("gone")], ids=["refused", "gone"])
def test_a_question_that_docker_does_not_answer_is_no_fault_of_a_disk(error):
    with pytest.raises(EngineError, match="list containers"):
        engine("containers", error).running()
    with pytest.raises(EngineError, match="network mine"):
        engine("networks", error).network_exists("mine")


def test_a_diagnosis_goes_without_the_names_of_containers(tmp_path):
    """It is made before the old server is put back, which must not wait for it."""
    options = ServerOptions(state_dir=str(tmp_path), sysfs_root=str(tmp_path))
    context = RunContext(options, engine("containers", refused(500)), "node7")
    recover.diagnose(context, Outcome("exited", 0.0, exit_code=1), "ValueError: why\n")
    assert "why" in context.state.failure.cause


def test_a_diagnosis_names_the_nodes_folder_of_the_compilers_cache(tmp_path):
    made = engine()
    made._sdk_client.answers = {
        "inspect_container": {"Id": "c", "Name": "/vllm", "Mounts": [{"Source": "/srv/c", "Destination": ENGINE_CACHE}]}
    }
    context = RunContext(ServerOptions(state_dir=str(tmp_path), rocm=False), made, "node7")
    log = 'Traceback (most recent call last):\n  File "/x/torch/_inductor/codecache.py", line 1, in load\nEOFError\n'
    recover.diagnose(context, Outcome("exited", 0.0, exit_code=1), log)
    assert context.state.failure.class_ == "compile_cache"
    assert "Remove /srv/c on the node" in context.state.failure.remedy


@pytest.mark.parametrize(
    ("api", "answer"),
    [
        ({}, Ran(0, "--help", "why")),
        ({"code": 2}, Ran(2, "--help", "why")),
        ({"call": "start", "error": refused(400)}, Ran(127, "", "no such thing")),  # no such program in the image
        ({"call": "start", "error": refused(500)}, Ran(None)),
        ({"call": "wait", "error": requests.ReadTimeout("slow")}, Ran(None)),
    ],
    ids=["printed", "failed", "no program", "engine", "slow"],
)
def test_a_program_that_is_too_slow_has_given_no_answer(api, answer):
    assert engine(**api).run_once(IMAGE, ["vllm"], timeout=1.0) == answer


def test_the_servers_of_a_node_are_listed_without_the_sdk(monkeypatch):
    rows = [
        {"Id": "1", "Names": ["/vllm-a"], "State": "running", "Labels": {spec.LABEL_SERVER: "vllm-a"}},
        {"Id": "2", "Names": ["/vllm-a.previous"], "State": "exited", "Labels": {spec.LABEL_SERVER: "vllm-a"}},
    ]
    made = engine()
    made._sdk_client = None
    made._socket = SimpleNamespace(
        list_with_label=lambda label: rows if label == f"{spec.LABEL_MANAGED}=true" else [],
        container=lambda name: None if name == "2" else {"Id": name},
    )
    monkeypatch.setattr(Engine, "_client", lambda *_: pytest.fail("its import takes as long as a whole probe"))
    assert made.servers() == {"vllm-a": "running"}
    assert made.managed() == [{"Id": "1"}], "the other one was removed in between"
