# SPDX-License-Identifier: Apache-2.0
"""What a rollout will cost: seconds of each wave, who serves meanwhile, bytes to bring, what cannot be undone. Pure.

Times are those that each node measured itself when it was changed before (``past`` of the module vllm_server, see
server/release.past). Of a node that has none, another node of the same model lends its own. What nobody knows is said
and not guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..common.units import duration, size
from ..vllm import host_variables
from .replicas import Replica, planned

#: The parts of a server's turn, in their order; of some `boot` stands after the drain.
PARTS = ("drain", "load", "verify")
#: What pending_artifact() calls the things that are brought, and the facts that know how large they are.
_BROUGHT = {"the weights": ("weights", "hf_cache_result"), "the image": ("image", "vllm_image_result")}
#: Seconds of a part that are believed.
_LONGEST = 7 * 86400
_PRUNES = {"vllm_image_prune": "images", "hf_cache_prune": "snapshots"}

Wave = dict[str, Any]


def waited(results: Iterable[Mapping[str, Any]]) -> float | None:
    """Return how long a drain waited: the sum over results of vllm_drained, also in loops; None where none waited."""
    each = [one for result in results for one in (result.get("results") or [result]) if isinstance(one, Mapping)]
    took = [float(one["elapsed"]) for one in each if one.get("elapsed") is not None]
    return round(sum(took), 3) if took else None


def of(
    hostvars: Mapping[str, Any],
    waves: Sequence[Sequence[Replica]],
    replicas: Iterable[Replica],
    rates: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what ``waves`` will cost; ``replicas`` are all of the fleet.

    ``rates`` has bytes per second of `weights` and `image` as they came last, and the seconds that the last `boot` of a
    node took. ``seconds`` is the sum over the waves
    whose time is known, and None where none is; ``unknown`` counts the others. ``first``: there was no server before.
    """
    changing = [replica for wave in waves for replica in wave]
    lent = _lent(hostvars, changing)
    serving = Counter(replica.pool for replica in replicas if replica.serves)
    every = Counter(replica.pool for replica in replicas)
    made = []
    boot = _seconds((rates or {}).get("boot"))
    for wave in waves:
        going = Counter(replica.pool for replica in wave if replica.serves)
        pools = dict.fromkeys(replica.pool for replica in wave)
        made.append(
            {
                **_wave(hostvars, wave, lent, boot),
                "replicas": [replica.label for replica in wave],
                # What a repair does is known when it is done.
                "boots": [replica.label for replica in wave if replica.sick or (replica.reboots and boot is None)],
                "serving": {pool: {"least": serving[pool] - going[pool], "of": every[pool]} for pool in pools},
            }
        )
        for replica in wave:
            serving[replica.pool] += not replica.serves and not replica.kept_out
    known = [one["seconds"] for one in made if one["seconds"] is not None]
    return {
        "waves": made,
        "seconds": round(sum(known), 3) if known else None,
        "unknown": len(made) - len(known),
        "first": not any(planned(hostvars[replica.head]).get("container") for replica in changing),
        "bring": _bring(hostvars, changing, rates or {}),
    }


def _past(hostvars: Mapping[str, Any], host: str) -> Mapping[str, Any]:
    """Return what a host measured of itself before: for the change, or when what it serves now was started."""
    found = planned(hostvars[host]) or host_variables.server_result(hostvars[host])
    past = found.get("past")
    if not isinstance(past, Mapping):
        release = found.get("release") or {}
        load = release.get("downtime") if release.get("downtime") is not None else release.get("ready")
        past = {"load": load, "same_image": True}
    # A node may say anything.
    known = {part: seconds for part in PARTS if (seconds := _seconds(past.get(part))) is not None}
    return {**known, "same_image": past.get("same_image") is True} if "load" in known else {}


def _seconds(given: Any) -> float | None:
    right = isinstance(given, (int, float)) and not isinstance(given, bool) and 0 <= given <= _LONGEST
    return float(given) if right else None


def _model(hostvars: Mapping[str, Any], host: str) -> str:
    return str(hostvars[host].get("vllm_server_model") or "")


def _lent(hostvars: Mapping[str, Any], changing: Iterable[Replica]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return for each model the host whose times others may borrow: the slowest, and of the same image if one is."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for replica in changing:
        for host in replica.hosts:
            past = _past(hostvars, host)
            if past.get("load") is None:
                continue
            best = found.get(_model(hostvars, host))
            if best is None or _rank(past) > _rank(best[1]):
                found[_model(hostvars, host)] = (host, past)
    return found


def _rank(past: Mapping[str, Any]) -> tuple[bool, float]:
    return bool(past.get("same_image")), float(past["load"])


def _wave(
    hostvars: Mapping[str, Any],
    wave: Iterable[Replica],
    lent: Mapping[str, tuple[str, Mapping[str, Any]]],
    boot: float | None,
) -> Wave:
    """Return the seconds of a wave by its slowest server, and whose times they are."""
    slowest: Wave = {"seconds": None, "parts": {}}
    said: dict[str, Any] = {"unknown": [], "lent": {}, "other_image": []}
    for replica in wave:
        each = [_past(hostvars, host) for host in replica.hosts]
        own = [past for past in each if past.get("load") is not None]
        if not own and (borrowed := lent.get(_model(hostvars, replica.head))):
            said["lent"][replica.label] = borrowed[0]
            own = [borrowed[1]]
        if not own:
            said["unknown"].append(replica.label)
            continue
        if not all(past.get("same_image") for past in own):
            said["other_image"].append(replica.label)
        # What is restarted where nobody waits for its requests is not drained; what no record has, is left out.
        parts = {
            part: max(known) for part in PARTS if (known := [float(p[part]) for p in own if p.get(part) is not None])
        }
        if replica.silent or not replica.serves:
            parts.pop("drain", None)
        if replica.reboots and boot is not None:
            drain = {"drain": parts.pop("drain")} if "drain" in parts else {}
            parts = {**drain, "boot": boot, **parts}
        seconds = round(sum(parts.values()), 3)
        if slowest["seconds"] is None or seconds > slowest["seconds"]:
            slowest = {"seconds": seconds, "parts": parts}
    return {**slowest, **said}


def _bring(hostvars: Mapping[str, Any], changing: Iterable[Replica], rates: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what comes to nodes first: `what`, `hosts`, `bytes` to each and `seconds`, None where not known."""
    found: dict[str, dict[str, Any]] = {}
    for replica in changing:
        for host, first in replica.pending.items():
            if first not in _BROUGHT:
                continue
            what, fact = _BROUGHT[first]
            about = hostvars[host].get(fact) or {}
            bytes_ = _number(about.get("room")) or _number(about.get("bytes")) or 0
            one = found.setdefault(what, {"what": what, "hosts": [], "bytes": None, "seconds": None})
            one["hosts"].append(host)
            one["bytes"] = max(one["bytes"] or 0, int(bytes_)) or None
    for what, one in found.items():
        rate = _number(rates.get(what))
        if one["bytes"] and rate:
            one["seconds"] = round(one["bytes"] / rate, 1)
    return list(found.values())


def _number(given: Any) -> float:
    right = isinstance(given, (int, float)) and not isinstance(given, bool) and 0 < given < 1e15
    return float(given) if right else 0.0


def irreversible(
    hostvars: Mapping[str, Any], waves: Iterable[Sequence[Replica]], undescribed: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return what of a run rollback.yml cannot take back, as sentences without a full stop."""
    said = []
    changing = [replica for wave in waves for replica in wave]
    drivers = [host for replica in changing for host, why in replica.reboots.items() if "driver" in why]
    if drivers:
        said.append(f"{', '.join(drivers)}: the driver that is loaded now is gone after the reboot")
    for node, one in undescribed.items():
        if host_variables.truth(hostvars[one["by"]].get("rollout_remove_undescribed")):
            said.append(f"{node}: {', '.join(one['servers'])} and its records are removed")
    hosts = [host for replica in changing for host in replica.hosts]
    for variable, what in _PRUNES.items():
        if pruned := [host for host in hosts if host_variables.truth(hostvars[host].get(variable))]:
            said.append(f"{', '.join(pruned)}: {what} that nothing uses are deleted ({variable})")
    return said


def lines(found: Mapping[str, Any], cannot_be_undone: Sequence[str]) -> list[str]:
    """Return the estimate in words, a line for each wave; nothing where there are no waves."""
    if not found["waves"]:
        return []
    said = [_wave_line(number, wave) for number, wave in enumerate(found["waves"], 1)]
    if found["seconds"] is not None and len(said) > 1:
        least = f", and {found['unknown']} of unknown length" if found["unknown"] else ""
        said.append(f"All waves: about {duration(found['seconds'])}{least}.")
    for one in found["bring"]:
        many = f"{size(one['bytes'])} each" if one["bytes"] else "of a size that is not known yet"
        took = f", about {duration(one['seconds'])} at the last rate" if one["seconds"] else ""
        said.append(f"Before the waves: {one['what']} to {', '.join(one['hosts'])}, {many}{took}.")
    undone = "; ".join(cannot_be_undone)
    if undone:
        return [*said, f"Cannot be undone: {undone}."]
    return said if found["first"] else [*said, "playbooks/rollback.yml takes all of it back."]


def _wave_line(number: int, wave: Mapping[str, Any]) -> str:
    line = f"Wave {number}, {' and '.join(wave['replicas'])}: "
    if wave["seconds"] is None:
        line += "its time is not known, no record has one"
    else:
        parts = ", ".join(f"{part} {duration(seconds)}" for part, seconds in wave["parts"].items())
        line += f"about {duration(wave['seconds'])} ({parts})"
        if wave["unknown"]:
            line += f", {' and '.join(wave['unknown'])} not known"
        line += "".join(f", {label} by the record of {host}" for label, host in wave["lent"].items())
        if wave["other_image"]:
            line += f", {' and '.join(wave['other_image'])} by a record of another image"
    if wave["boots"]:
        line += f", and the boot of {' and '.join(wave['boots'])}, whose time is not known"
    serving = [f"{one['least']} of {one['of']} of {pool}" for pool, one in wave["serving"].items()]
    return f"{line}; {' and '.join(serving)} serve meanwhile."
