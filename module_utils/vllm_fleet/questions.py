"""Several modules of this project asked in one process on the node, and what their tasks make of the answers.

A module costs a node an SSH session, sudo and a start of Python before it does anything, 0.2 s of its processor, and
the controller a quarter of that. So what is known to be asked is asked at once, in check mode; the task that would ask
takes the answer where it says that there is nothing to do, and asks for itself otherwise.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Name of the fact that holds the answers of a host: a list of {module, args, answer}.
FACT = "vllm_fleet_answers"
#: Options that are not kept, for a fact is shown with -v. In one run a host has one key.
SECRET = ("api_key",)
#: What of a module's answer must be true besides that it neither failed nor would change anything.
RIGHT = {"docker_engine": "right", "vllm_image": "present", "hf_snapshot": "complete"}


def pack(questions: Sequence[Mapping[str, Any]], find: Callable[[str], str]) -> str:
    """Write questions ({module, args, check_mode}) with the sources of their modules, whose paths ``find`` gives.

    One text, so that whoever logs a module's options takes it for one secret.
    """
    return json.dumps([{**q, "source": Path(find(q["module"])).read_text(encoding="utf-8")} for q in questions])


def ask_all(text: str, basic: Any) -> list[dict[str, Any]]:
    """Ask one after the other, up to the first that failed or would change something; gives their answers.

    ``basic``: Ansible's module of that name, through which a module gets its options.
    """
    given = basic._ANSIBLE_ARGS
    common = {k: v for k, v in json.loads(given)["ANSIBLE_MODULE_ARGS"].items() if k.startswith("_ansible_")}
    answers: list[dict[str, Any]] = []
    try:
        for question in json.loads(text):
            mode = {"_ansible_check_mode": question.get("check_mode", True)}
            options = {**common, **question["args"], **mode}
            basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode()
            answers.append(_ask(question["module"], question["source"]))
            if answers[-1].get("failed") or answers[-1].get("changed"):
                break
    finally:
        basic._ANSIBLE_ARGS = given
    return answers


def _ask(name: str, source: str) -> dict[str, Any]:
    """Run a module as its own process would, up to its exit, and read what it printed."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            exec(compile(source, f"{name}.py", "exec", dont_inherit=True), {"__name__": "__main__"})  # noqa: S102  our own
        answer: dict[str, Any] = json.loads(said.getvalue())
    except Exception as exc:  # noqa: BLE001  the module's own task will meet it, and tell it whole
        return {"failed": True, "msg": f"{name}: {type(exc).__name__}: {exc}"}
    answer.pop("invocation", None)
    return answer


def kept(questions: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put questions and answers together as the fact has them."""
    pairs = zip(questions, answers, strict=False)
    return [{"module": q["module"], "args": _shown(q["args"]), "answer": dict(a)} for q, a in pairs]


def answer_to(kept_answers: Any, module: str, args: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give the answer to just this question, if it says that there is nothing to do."""
    for row in kept_answers or []:
        answer = row["answer"]
        if row["module"] != module or _plain(row["args"]) != _plain(_shown(args)):
            continue
        if not answer.get("failed") and not answer.get("changed") and answer.get(RIGHT.get(module, ""), True):
            return dict(answer)
    return None


def _shown(args: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if name not in SECRET}


def _plain(args: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in args.items() if v is not None}, sort_keys=True, default=str)
