# SPDX-License-Identifier: Apache-2.0
"""`scripts/diagnose`: a log in, a name out, without Ansible."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from test_diagnose import FIXTURES

from ansible.module_utils.vllm_fleet.diagnosis.standalone import context_of, read

LOGS = FIXTURES / "failures"
SCRIPT = FIXTURES.parents[1] / "scripts" / "diagnose"


def call(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    # -I and an empty environment: nothing of Ansible or of this project's virtual environment is found.
    python = [sys.executable, "-S", str(SCRIPT), *words]
    return subprocess.run(python, check=False, capture_output=True, text=True, input=text, env={})


def test_a_file_is_named_and_explained() -> None:
    done = call(str(LOGS / "kernel_mla.log"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("class:    kernel_unsupported\nwhy:      ")
    assert "VLLM_ROCM_USE_AITER_MLA: 0" in done.stdout
    assert "kv-cache-dtype (now fp8)" in done.stdout, "the arguments are read in the log"


def test_standard_input_and_json() -> None:
    log = (LOGS / "download_failed.log").read_text()
    done = call("--json", "-", text="".join(f"vllm-1  | {line}\n" for line in log.splitlines()))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["class"] == "download_failed"
    assert "acme/Mixed-30B" in result["cause"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["unknown.log"], 1, "class:    unknown"),
        (["healthy_survived.log"], 1, "shows no failure"),
        (["healthy_eight_gpus.log"], 1, "shows no failure"),
        (["healthy_eight_gpus.log", "--exit-code", "137"], 0, "class:    stopped_by_signal"),
        (["stalled_peer.log"], 1, "--stalled"),
        (["stalled_peer.log", "--stalled"], 0, "class:    stalled"),
        (["not_enough_gpus_ray.log"], 0, "class:    not_enough_gpus"),
    ],
)
def test_the_exit_code_says_whether_it_is_known(words: list[str], code: int, said: str) -> None:
    done = call(str(LOGS / words[0]), *words[1:])
    assert (done.returncode, said in done.stdout) == (code, True), done


def test_a_file_that_is_not_there_is_a_wrong_call() -> None:
    done = call("/none.log")
    assert done.returncode == 2
    assert "/none.log cannot be read: No such file or directory" in done.stderr


def test_the_file_of_docker_and_copied_colours_are_read() -> None:
    log = (LOGS / "kernel_mla.log").read_text()
    as_json = "".join(json.dumps({"log": f"{x}\n", "stream": "stdout", "time": "t"}) + "\n" for x in log.splitlines())
    for text in (as_json, as_json + '{"log": ', re.sub(r"^(\(.*?\))", r"^[[1;36m\1^[[0;0m", log, flags=re.M)):
        found = read(text, 1).failure
        assert found is not None
        assert found.class_ == "kernel_unsupported"


def test_what_cannot_be_read_of_the_arguments_is_left_out() -> None:
    assert context_of(["non-default args: {'model': 'a/b', 'x_y': 1}"]).args == {"x-y": 1}
    assert context_of(["non-default args: {'model': <object>}"]).args == {}
    assert read("").failure is None
