# SPDX-License-Identifier: Apache-2.0
"""Several modules of this project asked in one process on the node, and what their tasks make of the answers.

A module costs a node an SSH session, sudo and a start of Python before it does anything, 0.2 s of its processor, and
the controller a quarter of that. So what is known to be asked is asked at once, in check mode; the task that would ask
takes the answer where it says that there is nothing to do, and asks for itself otherwise.
"""

from __future__ import annotations

import contextlib
import io
import json
import traceback
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
    """Write questions ({module, args}) with the sources of their modules, whose paths ``find`` gives.

    One text, so that whoever logs a module's options takes it for one secret.
    """
    return json.dumps([{**q, "source": Path(find(q["module"])).read_text(encoding="utf-8")} for q in questions])


def ask_all(text: str, basic: Any) -> list[dict[str, Any]]:
    """Ask one after the other, in check mode, up to the first that has something to do; gives their answers.

    What comes after that one may find another node: an engine whose data moves, an image that is pulled.

    ``basic``: Ansible's module of that name, through which a module gets its options.
    """
    given = basic._ANSIBLE_ARGS
    common = {k: v for k, v in json.loads(given)["ANSIBLE_MODULE_ARGS"].items() if k.startswith("_ansible_")}
    answers: list[dict[str, Any]] = []
    try:
        for question in json.loads(text):
            options = {**common, **question["args"], "_ansible_check_mode": True}
            basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode()
            answers.append(_ask(question["module"], question["source"]))
            if not settled(question["module"], answers[-1]):
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
    except Exception as exc:  # noqa: BLE001  whatever a module may raise
        return {"failed": True, "msg": f"{name}: {type(exc).__name__}: {exc}", "exception": traceback.format_exc()}
    answer.pop("invocation", None)
    return answer


def settled(module: str, answer: Mapping[str, Any]) -> bool:
    """Whether an answer says that there is nothing to do."""
    return not answer.get("failed") and not answer.get("changed") and bool(answer.get(RIGHT.get(module, ""), True))


def survey(
    first: Mapping[str, Any], more: Sequence[Mapping[str, Any]], find: Callable[[str], str], call: Callable[[str], Any]
) -> dict[str, Any]:
    """Ask ``first`` and, with it, ``more``: gives the first's answer, with the others' as a fact.

    ``call`` runs the module `node_survey` with the packed questions; what it gives without answers is given as it is.
    """
    told: dict[str, Any] = call(pack([first, *more], find))
    if not told.get("answers"):
        return told
    own, *others = told["answers"]
    pairs = zip(more, others, strict=False)
    rows = [{"module": q["module"], "args": _shown(q["args"]), "answer": answer} for q, answer in pairs]
    return {**own, "ansible_facts": {FACT: rows}}


def answer_to(facts: Mapping[str, Any] | None, module: str, args: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give what the host's ``facts`` have as the answer to just this question, if there is nothing to do."""
    for row in (facts or {}).get(FACT) or []:
        same = row["module"] == module and _plain(row["args"]) == _plain(_shown(args))
        if same and settled(module, row["answer"]):
            return dict(row["answer"])
    return None


def _shown(args: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if name not in SECRET and value is not None}


def _plain(args: Mapping[str, Any]) -> str:
    return json.dumps(args, sort_keys=True, default=str)
