# SPDX-License-Identifier: Apache-2.0
"""Which servers go back after a failed rollout (rollout_on_failure), and what is said of both directions. Pure.

At localhost, `rollout_undo` has what begin() returns, from before the first server goes back; `rollout_plan` is the
plan of the way back then. A host has `rollout_undo_problem` where it cannot go back at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..vllm import host_variables
from . import messages
from .replicas import labels, outcome

ROLLBACK = "rollback"
LOST = "It was lost on the way."
#: What a user calls a failure of which the other servers go back.
VARIABLE = "rollout_on_failure"


def _here(hostvars: Mapping[str, Any], name: str) -> Any:
    try:
        return hostvars["localhost"].get(name)
    except KeyError:
        return None


def wanted(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> bool:
    """Return whether servers are to go back after a failure: as soon as one of the hosts says so."""
    return any(str(hostvars[host].get(VARIABLE) or "") == ROLLBACK for host in hosts)


def begun(hostvars: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what begin() noted in this run; empty where nothing goes back."""
    return _here(hostvars, "rollout_undo") or {}


def failures(hostvars: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """Return the hosts that failed or were lost in their wave; not those that it left alone."""
    found = []
    for host in (*on_trial(hostvars, plan), *(plan.get("hosts") or ())):
        end = outcome(hostvars[host])
        touched = end.get("state", "replaced") != "replaced" and not (end["state"] == "failed" and "serving" not in end)
        found += [host] if touched else []
    return found


def hosts(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts that go back: those of the waves that are done, and those that an earlier run of the same
    rollout brought, which is not finished (`trial` in what vllm_server found). Empty unless too many failed.
    """
    plan = _here(hostvars, "rollout_plan") or {}
    if begun(hostvars) or not plan.get("hosts") or not wanted(hostvars, plan["hosts"]) or _other(hostvars, plan):
        return []
    failed = failures(hostvars, plan)
    most = max(int(hostvars[host].get("rollout_max_failures") or 0) for host in plan["hosts"])
    if len(host_variables.replicas(hostvars, failed)) <= most:
        return []
    done = [host for host in plan["hosts"] if _has_new(outcome(hostvars[host]))]
    return [*on_trial(hostvars, plan), *done]


def _other(hostvars: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Return whether the run brings no release: a repair, a restart, a rollback."""
    marks = ("restart_asked", "__rollback_known")
    asked = any(hostvars[host].get(mark) for host in plan["hosts"] for mark in marks)
    return asked or _here(hostvars, "repair_plan") is not None


def _has_new(end: Mapping[str, Any]) -> bool:
    """Return whether a host serves the new release after its wave: also one that did not pass its soak."""
    return end.get("state") == "replaced" or bool(end.get("soak"))


def on_trial(hostvars: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """Return the hosts of the run that need no change and have a release of a rollout that is not finished."""
    changed = set(plan.get("hosts") or ())
    return [
        host
        for host in plan.get("play") or ()
        if host not in changed and host_variables.server_result(hostvars[host]).get("trial")
    ]


def begin(hostvars: Mapping[str, Any], candidates: Iterable[str]) -> dict[str, Any]:
    """Return what is noted before the first server goes back: the plan, who goes back, and because of whom.

    Of the ``candidates`` (hosts()) those go back whose node has the note that their release is on trial: a server that
    was only restarted in its wave has none. One whose node could not be asked is told at the end (no_look()).
    """
    plan = _here(hostvars, "rollout_plan") or {}
    failed = failures(hostvars, plan)
    touched = {host for host in plan.get("hosts") or () if outcome(hostvars[host]).get("state")}
    candidates = list(candidates)
    return {
        "plan": dict(plan),
        "hosts": [
            host for host in candidates if (hostvars[host].get("__rollout_trial") or {}).get("age", 0) is not None
        ],
        "done": [host for host in candidates if host not in failed],
        "failed": failed,
        "causes": {host: str(outcome(hostvars[host]).get("msg") or "") for host in failed},
        "untouched": [host for host in plan.get("hosts") or () if host not in touched],
    }


def no_look(hostvars: Mapping[str, Any], host: str) -> str:
    """Return why it is not known whether a host's release is on trial; empty where it is known."""
    found = hostvars[host].get("__rollout_trial") or {}
    return "" if "age" in found else f"its node could not be asked ({found.get('msg') or 'no answer'})"


def going(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts whose records say how they go back."""
    return [host for host in begun(hostvars).get("hosts") or () if not hostvars[host].get("rollout_undo_problem")]


def waves(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts that go back, in the order of the waves; none where nothing can."""
    plan = _here(hostvars, "rollout_plan") or {}
    noted = begun(hostvars)
    # Where no host can go back, or the gateways could not be asked, the plan is still that of the rollout that failed.
    planned = noted and plan != noted.get("plan") and not plan.get("problems")
    return list(plan.get("hosts") or ()) if planned else []


def settled(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts whose release is no trial any more: all of a rollout that has succeeded, or what went back."""
    plan = _here(hostvars, "rollout_plan") or {}
    back = [host for host in waves(hostvars) if outcome(hostvars[host]).get("state") == "replaced"]
    if begun(hostvars):
        return back
    if plan.get("problems") or not plan.get("play"):
        return []
    ended = not failures(hostvars, plan) and all(
        outcome(hostvars[host]).get("state") == "replaced" for host in plan.get("hosts") or ()
    )
    own = [host for host in plan.get("hosts") or () if wanted(hostvars, [host]) or hostvars[host].get("rollout_soak")]
    return [*on_trial(hostvars, plan), *own] if ended else []


def stuck(hostvars: Mapping[str, Any]) -> dict[str, str]:
    """Return the hosts that should have gone back and did not, and why; empty where the way back came to its end."""
    noted = begun(hostvars)
    plan = _here(hostvars, "rollout_plan") or {}
    problems = " ".join(map(str, plan.get("problems") or ()))
    same = set(plan.get("unchanged") or ())
    found = {}
    for host in noted.get("hosts") or ():
        end = outcome(hostvars[host])
        if end.get("state") == "replaced" or (host in same and not hostvars[host].get("rollout_undo_problem")):
            continue
        why = hostvars[host].get("rollout_undo_problem") or end.get("msg") or problems
        found[host] = str(why or "its turn did not come").strip()
    return found


def told(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts of the waves, of both directions."""
    noted = begun(hostvars)
    plan = _here(hostvars, "rollout_plan") or {}
    first = (noted.get("plan") or {}).get("hosts", ())
    return [*first, *noted.get("hosts", ()), *on_trial(hostvars, plan), *(plan.get("hosts") or ())]


def says(hostvars: Mapping[str, Any]) -> str:
    """Return which servers went back and which did not, in one line; empty where nothing was to go back."""
    noted = begun(hostvars)
    if not noted:
        return ""
    left = stuck(hostvars)
    back = [host for host in noted["hosts"] if host not in left]
    because = messages.names(labels(hostvars, noted["failed"]))
    said = []
    if back:
        said.append(f"Rolled back, because {because} failed: {_serving(hostvars, back)}.")
    for host, why in left.items():
        said.append(
            f"Not rolled back: {host}, which {_serves(hostvars, host)}: {why.removeprefix(f'{host}: ').rstrip('.')}."
        )
    return " ".join(said)


def _serving(hostvars: Mapping[str, Any], back: list[str]) -> str:
    """Return hosts with the releases that they serve again."""
    by: dict[object, list[str]] = {}
    for host in back:
        target = ((hostvars[host].get("__rollback_known") or {}).get("target") or {}).get("release")
        by.setdefault(target if isinstance(target, int) else None, []).append(host)
    return "; ".join(
        f"{messages.names(members)} serve{'s' if len(members) == 1 else ''} "
        f"{'their old releases' if release is None else f'release {release}'} again"
        for release, members in by.items()
    )


def _serves(hostvars: Mapping[str, Any], host: str) -> str:
    end = outcome(hostvars[host])
    if end.get("state") == "failed" and end.get("serving") is False:
        return "serves nothing"
    return "still serves the new release"


def verdict(hostvars: Mapping[str, Any], host: str, max_failures: int) -> str:
    """Return what a host failed with in a run that took others back: its cause, how far the run came, the way back."""
    noted = begun(hostvars)
    end = outcome(hostvars[host])
    cause = str(hostvars[host].get("rollout_undo_problem") or end.get("msg") or noted["causes"].get(host) or LOST)
    cause = cause.strip().removeprefix(f"{host}: ")
    if host in stuck(hostvars):
        return f"{host}: it could not be rolled back, and {_serves(hostvars, host)}: {cause}"
    said = messages.verdict(
        host,
        cause,
        labels(hostvars, noted["done"]),
        labels(hostvars, noted["untouched"]),
        max_failures,
    )
    return f"{said} {says(hostvars)}"
