# SPDX-License-Identifier: Apache-2.0
"""The figures of a new release against those of the release before and of its peers: the verdict, and the table. Pure.

``figures`` are what vllm_measure returned: `answers` and `load`, each with the digest `of` what was asked. What a node
sent is data: a figure that is no number counts as none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..vllm import host_variables
from . import messages
from .replicas import outcome, pool_of

#: The limits that rollout_gate may have. Of times the factor is the most, of rates and answers the least.
SPEEDS = ("ttft", "itl", "tokens_per_second")
LIMITS = (*SPEEDS, "answers")
#: A difference of less than these seconds is none, whatever its factor: no client notices it.
FLOOR = {"ttft": 0.02, "itl": 0.002}
#: What a reader calls a figure.
NAMES = {
    "ttft": "time to first token",
    "itl": "inter-token latency",
    "tokens_per_second": "tokens per second",
    "answers": "right answers",
}


@dataclass(frozen=True)
class Row:
    """One figure: of the new release, of the release before, of the peers; the factor against ``against``."""

    name: str
    new: float | None
    before: float | None
    peers: float | None
    limit: float
    over: bool
    against: str
    #: Largest distance of the runs from their median, as a share of it.
    noise: float | None

    @property
    def factor(self) -> float | None:
        """How many times the new figure is what it was compared with."""
        base = {"before": self.before, "peers": self.peers}.get(self.against)
        return self.new / base if self.new is not None and base else None


def measured_speeds(limits: Mapping[str, Any] | None) -> bool:
    """Return whether these limits need a load."""
    return any((limits or {}).get(name) is not None for name in SPEEDS)


def judge(
    host: str,
    new: Mapping[str, Any],
    before: Mapping[str, Any],
    peers: Mapping[str, Mapping[str, Any]],
    limits: Mapping[str, Any],
    *,
    release: int | None = None,
) -> dict[str, Any]:
    """Return `wrong`, one sentence (empty: the release passes), and `says`, the table.

    A speed is compared with that of the release before on the same node; where there is none, with the median of peers
    alike. It is over its limit where all of its runs are, so that noise alone fails nothing. The share of right answers
    is compared with both, for it does not depend on the machine. ``peers``: figures by host, with `alike`: whether its
    machine is of the same kind.
    """
    rows = [
        _answers(new, before, peers, float(limits[name]))
        if name == "answers"
        else _speed(name, new, before, peers, limits)
        for name in LIMITS
        if limits.get(name) is not None
    ]
    wrong = [_sentence(row, new, before, release) for row in rows if row.over]
    failed = _errors(new)
    if failed:
        wrong.append(failed)
    return {
        "wrong": f"{host}: {'; '.join(wrong)}." if wrong else "",
        "says": _table(host, rows, (new, before), peers, release),
    }


# --- one figure ---------------------------------------------------------------------------------------------------


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def _part(figures: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = figures.get(name)
    return found if isinstance(found, Mapping) else {}


def _runs(figures: Mapping[str, Any], name: str) -> list[float]:
    found = [_number(one.get(name)) for one in _all_runs(figures)]
    return [one for one in found if one]


def _all_runs(figures: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    runs = _part(figures, "load").get("runs")
    return [one for one in runs if isinstance(one, Mapping)] if isinstance(runs, list) else []


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.median(values) if values else None


def _same(new: Mapping[str, Any], other: Mapping[str, Any], part: str) -> bool:
    """Return whether both have been asked the same."""
    mine, theirs = _part(new, part).get("of"), _part(other, part).get("of")
    return bool(mine) and mine == theirs


def _speed(
    name: str,
    new: Mapping[str, Any],
    before: Mapping[str, Any],
    peers: Mapping[str, Mapping[str, Any]],
    limits: Mapping[str, Any],
) -> Row:
    runs, limit = _runs(new, name), float(limits[name])
    old = _median(_runs(before, name)) if _same(new, before, "load") else None
    others = [
        median
        for one in peers.values()
        if one.get("alike") and _same(new, one, "load") and (median := _median(_runs(one, name)))
    ]
    beside = _median(others)
    against = "before" if old else "peers" if beside else ""
    base = old or beside
    median = _median(runs)
    noise = max(abs(one - median) for one in runs) / median if median else None
    over = bool(base) and bool(runs) and all(_over(name, one, base or 0.0, limit) for one in runs)
    return Row(name, median, old, beside, limit, over, against, noise)


def _over(name: str, value: float, base: float, limit: float) -> bool:
    if name == "tokens_per_second":
        return value < base * limit
    return value > base * limit and value - base > FLOOR[name]


def _share(figures: Mapping[str, Any]) -> float | None:
    found = _part(figures, "answers")
    asked, right = _number(found.get("asked")), _number(found.get("right"))
    return right / asked if asked and right is not None else None


def _answers(
    new: Mapping[str, Any], before: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]], limit: float
) -> Row:
    share = _share(new)
    old = _share(before) if _same(new, before, "answers") else None
    beside = _median(
        one for each in peers.values() if _same(new, each, "answers") and (one := _share(each)) is not None
    )
    under = {
        kind: share is not None and base is not None and share < base * limit
        for kind, base in (("before", old), ("peers", beside))
    }
    first = "before" if old is not None else "peers" if beside is not None else ""
    against = "peers" if under["peers"] and not under["before"] else first
    return Row("answers", share, old, beside, limit, any(under.values()), against, None)


def agreement(new: Mapping[str, Any], before: Mapping[str, Any]) -> float | None:
    """Return the share of questions to which both releases gave the same answer, to the letter; None: not known."""
    if not _same(new, before, "answers"):
        return None
    mine, theirs = (_part(_part(one, "answers"), "each") for one in (new, before))
    same = [name for name, answer in mine.items() if isinstance(answer, list) and answer == theirs.get(name)]
    return len(same) / len(mine) if mine else None


def _errors(new: Mapping[str, Any]) -> str:
    failed, sent = (sum(int(_number(one.get(key)) or 0) for one in _all_runs(new)) for key in ("errors", "requests"))
    return f"{failed} of {sent} requests of rollout_gate_load ended with an error" if failed else ""


# --- in words -----------------------------------------------------------------------------------------------------


def _sentence(row: Row, new: Mapping[str, Any], before: Mapping[str, Any], release: int | None) -> str:
    with_what = f"release {release} on this node" if row.against == "before" else "its peers"
    if row.name == "answers":
        base = row.before if row.against == "before" else row.peers
        asked, right = (int(_number(_part(new, "answers").get(name)) or 0) for name in ("asked", "right"))
        return (
            f"{right} of {asked} known answers are right, {round((base or 0) * asked)} with {with_what} "
            f"(factor {_short(row.factor)}, rollout_gate.answers wants {row.limit:g})"
        )
    base = row.before if row.against == "before" else row.peers
    return (
        f"{NAMES[row.name]} is {_value(row.name, row.new)}, {_value(row.name, base)} with {with_what} "
        f"(factor {_short(row.factor)}, rollout_gate.{row.name} is {row.limit:g})"
    )


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "answers":
        return f"{value:.0%}"
    return f"{value:.1f}/s" if name == "tokens_per_second" else f"{value * 1000:.1f} ms"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(
    host: str,
    rows: Sequence[Row],
    both: tuple[Mapping[str, Any], Mapping[str, Any]],
    peers: Iterable[str],
    release: int | None,
) -> str:
    new, before = both
    peers = list(peers)
    head = (
        "figure",
        "new",
        f"release {release}" if before and release else "before",
        "peers",
        "factor",
        "limit",
        "noise",
    )
    lines = [head] + [
        (
            NAMES[row.name],
            _value(row.name, row.new),
            _value(row.name, row.before),
            _value(row.name, row.peers),
            _short(row.factor) + (" !" if row.over else ""),
            f"{row.limit:g}",
            "-" if row.noise is None else f"{row.noise:.0%}",
        )
        for row in rows
    ]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    beside = f"peers: {messages.names(peers)}" if peers else "no peers yet"
    same = agreement(new, before)
    more = "" if same is None else f"; {same:.0%} of the answers are the same to the letter"
    if not any(row.against for row in rows):
        more += "; nothing to compare with, the figures are kept for the next release"
    return f"{host}, the new release ({beside}{more})\n{text}"


# --- who is compared ----------------------------------------------------------------------------------------------


def peers_of(hostvars: Mapping[str, Any], fleet: Iterable[str], host: str) -> dict[str, dict[str, Any]]:
    """Return the figures that this run has of other servers of the same model, by host; `alike`: on the same GPUs.

    Of those that have failed since, none.
    """
    mine, found = hostvars[host], {}
    for other in fleet:
        figures = hostvars[other].get("rollout_figures") if other != host and other in hostvars else None
        if figures and outcome(hostvars[other]).get("state") != "failed" and pool_of(hostvars[other]) == pool_of(mine):
            found[other] = {**figures, "alike": _machine(hostvars[other]) == _machine(mine)}
    return found


def _machine(variables: Mapping[str, Any]) -> tuple[str, str, str]:
    kind = variables.get("vllm_server_gpu") or variables.get("preflight_gpu_found") or ""
    return (
        str(variables.get("vllm_server_accelerator") or "rocm"),
        str(kind),
        str(variables.get("vllm_server_gpus") or ""),
    )


def new_release(result: Mapping[str, Any] | None) -> bool:
    """Return whether a server is about to be replaced by another one, by what vllm_server returned of its plan."""
    found = result or {}
    return bool(found.get("differences")) and "create" in (found.get("actions") or ())


def wants(variables: Mapping[str, Any]) -> bool:
    """Return whether a server that was just verified is held against the release before: a new one, not a rollback."""
    found = host_variables.server_result(variables)
    rolled_back = variables.get("__rollback_known") is not None
    return bool(variables.get("rollout_gate")) and not found.get("confirmed") and not rolled_back
