# SPDX-License-Identifier: Apache-2.0
"""Several modules asked in one process: each as its own process would be, and answers taken only where nothing is to be done."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.common import batch

ROOT = Path(__file__).resolve().parents[3]
#: What the actions put into one survey.
ASKED = ("preflight_host", "docker_engine", "vllm_image", "hf_snapshot", "vllm_server", "vllm_chat")

MODULE = """
from __future__ import annotations
from ansible.module_utils.basic import AnsibleModule
def main():
    module = AnsibleModule(argument_spec={"say": {"required": True}, "secret": {"no_log": True}}, supports_check_mode=True)
    if module.params["say"] == "crash":
        raise ValueError("oh")
    if module.params["say"] == "fail":
        module.fail_json(msg="no")
    module.exit_json(changed=module.params["say"] == "change", dry=module.check_mode, said=[module.params["say"], module.params["secret"]])
if __name__ == "__main__":
    main()
"""

SURVEY = """
import json, runpy, sys
runpy.run_path(sys.argv[1])
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible.module_utils.vllm_fleet.common import batch
with patch_module_args({"questions": "x"}):
    basic._load_params()
    before = basic._ANSIBLE_ARGS
    answers = batch.ask_all(sys.argv[2], basic)
    assert basic._ANSIBLE_ARGS == before
print(json.dumps(answers))
"""


def survey(tmp_path, *asked):
    (tmp_path / "m.py").write_text(MODULE)
    text = batch.pack([{"module": "m", **one} for one in asked], lambda name: str(tmp_path / f"{name}.py"))
    command = [sys.executable, "-c", SURVEY, str(ROOT / "tests/conftest.py"), text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_each_is_asked_as_its_own_process_would_be(tmp_path):
    one, two = survey(tmp_path, {"args": {"say": "a", "secret": "s3"}}, {"args": {"say": "b"}})
    assert (one["changed"], one["dry"], one["said"]) == (False, True, ["a", "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"])
    assert (two["dry"], two["said"]) == (True, ["b", None])
    assert "invocation" not in one


def test_after_an_engine_that_is_not_right_no_image_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_ask", lambda name, _: {"right": False} if name == "docker_engine" else {})
    text = json.dumps(
        [{"module": m, "args": {}, "source": ""} for m in ("preflight_host", "docker_engine", "vllm_image")]
    )
    basic = type("basic", (), {"_ANSIBLE_ARGS": b'{"ANSIBLE_MODULE_ARGS": {}}'})
    assert batch.ask_all(text, basic) == [{}, {"right": False}]


@pytest.mark.parametrize(("say", "told"), [("change", {"changed": True}), ("fail", {"failed": True, "msg": "no"})])
def test_after_one_that_has_something_to_do_none_is_asked(tmp_path, say, told):
    answers = survey(tmp_path, {"args": {"say": say}}, {"args": {"say": "a"}})
    assert len(answers) == 1
    assert answers[0].items() >= told.items()


def test_one_that_crashes_or_is_asked_wrongly_has_failed(tmp_path):
    crashed = survey(tmp_path, {"args": {"say": "crash"}})[0]
    assert (crashed["failed"], crashed["msg"]) == (True, "m: ValueError: oh")
    assert 'raise ValueError("oh")' in crashed["exception"] or "in main" in crashed["exception"]
    assert "missing required arguments: say" in survey(tmp_path, {"args": {}})[0]["msg"]


@pytest.mark.parametrize(
    ("module", "answer", "taken"),
    [
        ("docker_engine", {"right": True}, True),
        ("docker_engine", {"right": False}, False),
        ("vllm_image", {"present": True, "changed": False}, True),
        ("vllm_image", {"present": True, "changed": True}, False),
        ("vllm_image", {"present": False}, False),
        ("hf_snapshot", {"complete": True}, True),
        ("hf_snapshot", {"complete": False}, False),
        ("hf_snapshot", {"complete": True, "failed": True}, False),
        ("vllm_chat", {"results": []}, True),
        ("vllm_chat", {"failed": True, "results": []}, False),
    ],
)
def test_an_answer_is_taken_where_nothing_is_to_be_done(module, answer, taken):
    facts = asked({"module": module, "args": {"a": [1], "b": None}}, answer)
    assert batch.settled(module, answer) is taken
    assert batch.answer_to(facts, module, {"a": [1]}) == (answer if taken else None)
    # Only for just this question.
    assert batch.answer_to(facts, module, {"a": [2]}) is None
    assert batch.answer_to(facts, "other", {"a": [1]}) is None
    assert batch.answer_to(None, module, {"a": [1]}) is None


def asked(question, answer):
    """Facts of a host that was asked something first, and ``question`` with it."""
    first = {"module": "first", "args": {}}
    here = lambda _: __file__  # noqa: E731
    told = batch.survey(first, [question], here, lambda _: {"answers": [{"changed": False}, answer]})
    assert told.pop("changed") is False
    return told["ansible_facts"]


def test_a_key_is_not_kept():
    facts = asked({"module": "vllm_chat", "args": {"url": "u", "api_key": "s3cret"}}, {"results": [1]})
    assert "s3cret" not in json.dumps(facts)
    assert batch.answer_to(facts, "vllm_chat", {"url": "u", "api_key": "s3cret"}) == {"results": [1]}


def test_a_node_that_does_not_answer_is_told_as_it_is():
    lost = {"unreachable": True, "msg": "no route"}
    assert batch.survey({"module": "m", "args": {}}, [], lambda _: __file__, lambda _: lost) == lost


def imports(path):
    """What a module's file takes from this project's module_utils."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ansible.module_utils.vllm_fleet"):
            rest = (node.module or "").removeprefix("ansible.module_utils.vllm_fleet").lstrip(".")
            inside = {f"{rest}.{name.name}" for name in node.names}
            found |= {rest} if "." in rest else inside
    return found


def test_what_the_asked_modules_import_is_sent_with_the_survey():
    wanted = set().union(*(imports(ROOT / "library" / f"{name}.py") for name in ASKED))
    assert wanted <= imports(ROOT / "library/node_survey.py")
    assert imports(ROOT / "library/node_survey.py") - wanted == {"common.batch"}
