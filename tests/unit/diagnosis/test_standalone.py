# SPDX-License-Identifier: Apache-2.0
"""`scripts/diagnose`: a log in, a name out, without Ansible."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
import time

import pytest
from test_diagnose import FIXTURES

from ansible.module_utils.vllm_fleet.diagnosis import standalone
from ansible.module_utils.vllm_fleet.diagnosis.standalone import context_of, read, text_of

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


@pytest.mark.parametrize(
    ("words", "text", "said"),
    [
        (["/none.log"], "", "/none.log cannot be read: No such file or directory"),
        (["/tmp"], "", "/tmp cannot be read: Is a directory"),
        (["-"], " \n", "docker logs vllm 2>&1"),
        (["-"], "", "docker inspect --format '{{.State.Error}}' vllm"),
        (["-"], "\x1f\x8b\x08", "zcat"),
    ],
)
def test_what_is_no_log_is_a_wrong_call(words: list[str], text: str, said: str) -> None:
    done = call(*words, text=text)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_a_log_in_another_encoding(encoding: str) -> None:
    log = "ü\n" + (LOGS / "kernel_mla.log").read_text().replace("…", "...")
    found = read(text_of(io.BytesIO(log.encode(encoding, errors="replace"))), 1).failure
    assert found is not None
    assert found.class_ == "kernel_unsupported"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_of_a_log_of_any_size_the_beginning_and_the_end_are_read(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("_HEAD", 2000), ("_TAIL", 20000), ("_CHUNK", 4000)):
        monkeypatch.setattr(standalone, name, size)
    lines = [f"line {number} ü" for number in range(40_000)]
    kept = text_of(io.BytesIO("\n".join(lines).encode(encoding))).split("\n")
    assert (kept[0], kept[-1]) == (lines[0], lines[-1])
    assert 500 < len(kept) < 6000
    assert set(kept) <= set(lines), "no line is cut, and no two are one"
    few = "\n".join(lines[:600]).encode(encoding)
    assert text_of(io.BytesIO(few)).split("\n") == lines[:600]


#: What a program, or somebody who may write to its log, may print.
HOSTILE = {
    "one line": "A" * 5_000_000 + "\n",
    "control characters": "\0" * 500_000 + "\x1b[" * 100_000 + "\n",
    "a title without an end": "\x1b]0;" + "x" * 100_000 + "\n",
    "no JSON": '{"log":' + "[" * 100_000 + "\n",
    "nested arguments": "non-default args: {'a': " + "[" * 9000 + "]" * 9000 + "}\n",
    "a chain": (
        "RuntimeError: a\n\nDuring handling of the above exception\n\nTraceback (most recent call last):\n" * 5000
    ),
    "starts": "(APIServer pid=1) INFO 05-05 10:10:10 [u.py:1] non-default args: {'model': 'a'}\n" * 20_000,
    "bytes": random.Random(1).randbytes(500_000).decode(errors="replace") + "\n",  # noqa: S311  to be repeatable
}
LAST = """Traceback (most recent call last):
  File "/x/aiter/ops/moe.py", line 1, in run
RuntimeError: it \u202ereads\u202c \x1b[31mwrong\x9b \x07
"""


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_in_a_log_hides_the_reason_or_takes_long(what: str) -> None:
    began = time.process_time()
    found = read(HOSTILE[what] + LAST, 1).failure
    assert time.process_time() - began < 5
    assert found is not None
    assert found.class_ == "kernel_unsupported"
    assert "it reads wrong" in found.cause
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e]", "".join([found.cause, found.remedy, *found.evidence]))


@pytest.mark.parametrize(
    "part", ["a", "A_", "0", "a: ", "hf_a", "--api-key ", "no x ", "please set ", "://", "(", "1 is "]
)
def test_the_time_of_an_error_grows_with_its_length_alone(part: str) -> None:
    """No pattern tries each beginning with each end: 20 different errors, each as long as is searched."""
    head = 'Traceback (most recent call last):\n  File "/x/y.py", line 1, in run\nValueError: '
    log = "".join(f"{head}{(part * 4000)[:3900]} {number}\n" for number in range(20))
    began = time.process_time()
    assert read(log, 1).failure is not None
    assert time.process_time() - began < 3


def test_the_file_of_docker_and_copied_colours_are_read() -> None:
    log = (LOGS / "kernel_mla.log").read_text()
    as_json = "".join(json.dumps({"log": f"{x}\n", "stream": "stdout", "time": "t"}) + "\n" for x in log.splitlines())
    for text in (as_json, as_json + '{"log": ', re.sub(r"^(\(.*?\))", r"^[[1;36m\1^[[0;0m", log, flags=re.M)):
        found = read(text, 1).failure
        assert found is not None
        assert found.class_ == "kernel_unsupported"


@pytest.mark.parametrize("before", ["", "Error response from daemon: ", "docker: Error response from daemon: "])
def test_the_answer_of_docker_is_read_where_the_container_has_no_log(before: str) -> None:
    why = 'error gathering device information while adding custom device "/dev/kfd": no such file or directory'
    found = read(f"{before}{why}\n").failure
    assert found is not None
    assert found.class_ == "driver_missing"


@pytest.mark.parametrize(
    "line", ["Killed", "INFO 05-05 10:10:10 [u.py:1] vLLM API server version 0.32.0", "Restarting"]
)
def test_a_single_line_of_another_kind_is_a_log(line: str) -> None:
    assert read(f"{line}\n").failure is None


def test_what_cannot_be_read_of_the_arguments_is_left_out() -> None:
    assert context_of(["non-default args: {'model': 'a/b', 'x_y': 1}"]).args == {"x-y": 1}
    assert context_of(["non-default args: {'model': <object>}"]).args == {}
    assert read("").failure is None
