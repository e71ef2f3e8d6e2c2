# SPDX-License-Identifier: Apache-2.0
"""Differences and what exists, to the ordered actions that end in the desired state. Pure.

The order is the safety: at every boundary between two actions a run may be killed, and what then exists must lead the
next run to the same end without deleting the last container that was known to be good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from .compare import UPDATABLE, Difference
from .inspected import Inspected, ident, never_started, running
from .spec import LABEL_SERVER

#: The name under which the replaced container waits, in case it is needed again.
PREVIOUS_SUFFIX = ".previous"
#: The name under which the new container is created, while the old one still has its own.
NEXT_SUFFIX = ".next"


class Trust(IntEnum):
    """How well a container has proved itself. FAILED: its start failed and it never was ready."""

    FAILED = -1
    UNKNOWN = 0
    READY = 1
    CONFIRMED = 2


@dataclass(frozen=True)
class Existing:
    """A container that is there: Docker's id, whether its process runs, and how good it is known to be.

    A ``paused`` one runs too: it holds its port and its memory, and does not answer. An ``unused`` one was created by a
    run that was killed before it started it. ``remembered``: the node's memory could be read, or this run made it.
    """

    id: str
    running: bool
    trust: Trust = Trust.UNKNOWN
    paused: bool = False
    unused: bool = False
    remembered: bool = True

    @classmethod
    def of(cls, container: Inspected, trust: Trust, *, remembered: bool = True) -> Existing:
        """Return an inspected container, with what is known of it."""
        paused = bool(container["State"].get("Paused"))
        unused = never_started(container) and bool(_labels(container).get(LABEL_SERVER))
        return cls(ident(container), running(container), trust, paused, unused, remembered)


@dataclass(frozen=True)
class Plan:
    """What to do. ``watch``: a server is (or will be) starting or serving and its readiness decides the outcome."""

    actions: tuple[str, ...]
    watch: bool


class NothingToRestore(ValueError):
    """``state: restored`` was asked for and no previous container exists."""


class NothingToRestart(ValueError):
    """``state: restarted`` was asked for and there is no container."""


class Unsure(ValueError):
    """One of two containers would have to go, and the node's memory of which is the better one cannot be read."""


def left_over(container: Inspected | None, server: str) -> bool:
    """Whether a container named ``<server>.next`` is what a killed run left; any other belongs to someone else."""
    if container is None or not never_started(container):
        return False
    return bool(_labels(container).get(LABEL_SERVER) == server)


def _labels(container: Inspected) -> Mapping[str, str]:
    return (container.get("Config") or {}).get("Labels") or {}


def make(
    state: str,
    found: Sequence[Difference],
    current: Existing | None,
    previous: Existing | None,
    restoring: str | None = None,
    *,
    left: bool = False,
) -> Plan:
    """Plan ``state`` (started, stopped, absent, restored, restarted, confirmed).

    ``found`` are the differences of ``current`` from the desired container (without its running state), ``restoring``
    the id of a container that an interrupted ``restored`` was to bring back. ``left``: a killed run left a new
    container under its first name.
    Actions: remove_next, create (as .next where the name is taken), stop_previous, stop, remove_previous, keep (rename
    to .previous), remove, rename (.next to the name), unkeep (rename back), update, start.
    """
    made = _make(state, found, current, previous, restoring)
    # It was never started, and to create it again costs a moment.
    return Plan(("remove_next", *made.actions), made.watch) if left and state != "confirmed" else made


def _make(
    state: str,
    found: Sequence[Difference],
    current: Existing | None,
    previous: Existing | None,
    restoring: str | None,
) -> Plan:
    if state == "started":
        return _started(found, current, previous)
    if state == "stopped":
        return Plan((*_stop(current), *_stop_previous(previous)), watch=False)
    if state == "absent":
        actions = [*_stop(current), *(["remove"] if current else [])]
        actions += [*_stop_previous(previous), *(["remove_previous"] if previous else [])]
        return Plan(tuple(actions), watch=False)
    if state == "restored":
        return _restored(current, previous, restoring)
    if state == "restarted":
        if current is None:
            raise NothingToRestart
        return Plan((*_stop_previous(previous), *_stop(current), "start"), watch=True)
    if state == "confirmed":
        return Plan((), watch=False)
    raise ValueError(f"unknown state {state!r}")


def _restored(current: Existing | None, previous: Existing | None, restoring: str | None) -> Plan:
    if previous is None and current is not None and current.id == restoring:
        return Plan(_start(current), watch=True)
    if previous is None:
        raise NothingToRestore
    return Plan((*_stop(current), *(("remove",) if current else ()), "unkeep", "start"), watch=True)


def _started(found: Sequence[Difference], current: Existing | None, previous: Existing | None) -> Plan:
    # Somebody started the waiting one by hand, or Docker did after a reboot (policy `always`): one server at a time.
    quiet = _stop_previous(previous)
    if current is None:
        return Plan(("create", *quiet, "start"), watch=True)
    if all(d.name in UPDATABLE for d in found):
        return Plan((*quiet, *(["update"] if found else []), *_start(current)), watch=True)
    # Created first: what Docker does not take, it refuses while the old one serves.
    return Plan(("create", *quiet, *_stop(current), *_put_aside(current, previous), "rename", "start"), watch=True)


def _put_aside(current: Existing, previous: Existing | None) -> tuple[str, ...]:
    """Make room for the new container, keeping the better of the two that are there."""
    if current.trust is Trust.FAILED or current.unused:
        # Nothing to fall back to: it would only be started to fail once more, after as long a wait as the first time;
        # and of one that never ran nothing is known, while the one that waits did run.
        return ("remove",)
    if previous is None:
        return ("keep",)
    if not previous.remembered:
        raise Unsure
    if previous.trust > current.trust:
        # The current one never got as far as the one that waits (an interrupted or failed change): that one stays.
        return ("remove",)
    return ("remove_previous", "keep")


def _stop(current: Existing | None) -> list[str]:
    return ["stop"] if current and current.running else []


def _stop_previous(previous: Existing | None) -> list[str]:
    return ["stop_previous"] if previous and previous.running else []


def _start(current: Existing) -> tuple[str, ...]:
    return () if current.running and not current.paused else ("start",)


def bring_back(current: Existing | None, previous: Existing | None, stopped: str) -> Plan:
    """Plan how a server comes back that a killed run stopped, where no new one was started in its place.

    ``stopped`` is its id. The plan is empty where something runs, or where another hand has been here since.
    """
    start: tuple[str, ...] = ()
    if not (current and current.running) and not (previous and previous.running):
        if current and current.id == stopped:
            start = ("start",)
        elif (current is None or current.unused) and previous and previous.trust is not Trust.FAILED:
            start = (*(["remove"] if current else []), "unkeep", "start")
    return Plan(start, watch=bool(start))


def on_failure(previous: Existing | None, current: Existing | None) -> Plan:
    """Plan what follows a failed start: the previous container back when it is the better one, else a quiet stop.

    Of two that never proved themselves the previous is the better one: it ran before this change. One that is known to
    fail is no better than anything. A container that was itself confirmed and now fails is left to its restart policy:
    it is still the best there is. So is one of which the node's memory cannot be read: no container is removed then.
    """
    if previous and current and not current.remembered:
        return Plan((), watch=False)
    useful = previous is not None and previous.trust is not Trust.FAILED
    if useful and previous and (current is None or current.trust <= Trust.UNKNOWN or previous.trust > current.trust):
        stop = ("stop", "remove") if current else ()
        return Plan((*stop, "unkeep", "start"), watch=True)
    if current is not None and current.trust is not Trust.CONFIRMED:
        return Plan(("stop",), watch=False)
    return Plan((), watch=False)
