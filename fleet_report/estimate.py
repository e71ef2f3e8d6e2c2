# SPDX-License-Identifier: Apache-2.0
"""What a plan had estimated beside what it took, and how fast things came to nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleet_report.words import count, duration

#: Phases of a node's time line that make the parts of its turn.
_PARTS = {"drain": "drain", "boot": "boot", "down": "load", "load": "load", "failed": "load", "verify": "verify"}
#: The roles that bring something, and what.
_BRINGS = {"hf_cache": "weights", "vllm_image": "image"}


def took(node: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of the parts of a node's turn, as they were."""
    parts: dict[str, float] = {}
    for one in node["timeline"]:
        if part := _PARTS.get(one["phase"]):
            parts[part] = round(parts.get(part, 0.0) + one["to"] - one["from"], 3)
    return parts


def compared(estimate: Mapping[str, Any], nodes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an estimate (rollout/estimate.of()) with what each wave `took`, by its slowest server; empty for none.

    None of a wave that did not come, or that replaced no server.
    """
    waves: list[dict[str, Any]] = []
    by_name = {str(node["name"]): node for node in nodes}
    for wave in estimate.get("waves") or ():
        turns = [took(by_name[name]) for name in wave["replicas"] if name in by_name and by_name[name]["changed"]]
        sums = [round(sum(parts.values()), 3) for parts in turns if parts]
        waves.append({**wave, "took": max(sums, default=None)})
    return {**estimate, "waves": waves} if waves else {}


def line(report: Mapping[str, Any]) -> list[str]:
    """Say both in one line for the terminal; none where nothing was estimated or nothing replaced."""
    waves = [wave for wave in (report.get("estimate") or {}).get("waves") or () if wave["took"] is not None]
    known = [wave for wave in waves if wave["seconds"] is not None]
    if not known:
        return []
    estimated, real = (sum(wave[name] for wave in known) for name in ("seconds", "took"))
    more = f"; {count(len(waves) - len(known), 'wave')} without an estimate" if len(known) < len(waves) else ""
    return [f"Estimated {duration(estimated)} for {count(len(known), 'wave')}, took {duration(real)}{more}."]


def rates(
    events: Sequence[Mapping[str, Any]], tasks: Mapping[Any, Mapping[str, Any]], begun: Mapping[tuple[Any, str], float]
) -> dict[str, float]:
    """Return bytes per second of `weights` and `image` as they came in this run, by the slowest node; empty for none.

    Only nodes count that had nothing of it before: of the others nobody knows how much came. `boot` has the seconds of
    the longest boot.
    """
    found: dict[str, float] = _boot(events, tasks, begun)
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for one in events:
        what = _BRINGS.get(str(tasks[one["task"]].get("role"))) if one["type"] == "result" else None
        if what is None or one["status"] != "ok":
            continue
        about = seen.setdefault((what, one["host"]), {"from": begun.get((one["task"], one["host"]), one["at"])})
        about |= {"to": one["at"], "moved": about.get("moved", False) or one["changed"]}
        if (brought := one["data"].get("brought")) is not None:
            about.setdefault("had", brought["whole"])
            about["bytes"] = brought["bytes"] if brought["whole"] else 0
    for (what, _), about in seen.items():
        seconds = about["to"] - about["from"]
        if about["moved"] and about.get("had") is False and about.get("bytes") and seconds > 0:
            found[what] = min(found.get(what, float("inf")), round(about["bytes"] / seconds, 1))
    return found


def _boot(
    events: Sequence[Mapping[str, Any]], tasks: Mapping[Any, Mapping[str, Any]], begun: Mapping[tuple[Any, str], float]
) -> dict[str, float]:
    """Return the seconds of the longest boot of the role rocm that went well, with the waits after it."""
    since: dict[str, float] = {}
    longest: dict[str, float] = {}
    for one in events:
        task = tasks[one["task"]] if one["type"] == "result" and one["status"] == "ok" else {}
        if task.get("role") != "rocm" or task.get("file") != "reboot_now":
            continue
        if str(task["action"]).rpartition(".")[2] == "reboot":
            since[one["host"]] = begun.get((one["task"], one["host"]), one["at"])
        if one["host"] in since:
            longest[one["host"]] = one["at"] - since[one["host"]]
    return {"boot": round(max(longest.values()), 1)} if longest else {}
