# SPDX-License-Identifier: Apache-2.0
"""Who gets which GPUs, and which CPUs, of a node that several servers share. Pure.

What a set costs depends on the machine alone. So the least of all sets that are free stays the least when other servers
take theirs, and the answer is the same whichever servers were placed before (tests/unit/host/test_share.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..container.fields import SpecError, numbers_text, parse_numbers

#: Up to so many sets are all compared. On a larger machine those of neighbouring units are, before any others.
ALL_SETS = 3000


@dataclass(frozen=True)
class Kind:
    """What is shared: ``GPU`` or ``CPU``, and the variable that asks for it."""

    name: str
    option: str


GPU, CPU = Kind("GPU", "vllm_server_gpus"), Kind("CPU", "vllm_server_cpus")


class NoPlace(ValueError):
    """A server gets no place: why, and what to do about it, each as the part of a sentence.

    ``short``: there are too few of that kind.
    """

    def __init__(self, why: str, remedy: str, short: Kind | None = None) -> None:
        """Take both."""
        super().__init__(f"{why}; {remedy}")
        self.why, self.remedy, self.short = why, remedy, short


@dataclass(frozen=True)
class Unit:
    """One GPU or partition of one, or one CPU as Linux counts them.

    ``device`` is what units are parts of: a GPU's PCI address, a core. ``links`` is how far others are, by index: more
    is farther. ``against`` is what speaks against it: who holds memory of it and is no server, or that it is sick.
    """

    index: int
    numa: int | None = None
    device: str = ""
    links: Mapping[int, int] = field(default_factory=dict)
    against: str = ""


@dataclass(frozen=True)
class Wish:
    """How many units a server wants; of a list which ones."""

    count: int
    listed: tuple[int, ...] | None = None

    def met_by(self, units: Collection[int]) -> bool:
        """Return whether a set of units is what is wanted."""
        return len(units) == self.count and (self.listed is None or set(units) == set(self.listed))


@dataclass(frozen=True)
class Server:
    """A server of the node: its wish (None: none), and the units that it ``has``, which it keeps where it may.

    Units that it ``holds`` no other gets: those of its containers, and of what was written down. ``described``: a host
    of the inventory describes it.
    """

    name: str
    wish: Wish | None = None
    has: tuple[int, ...] = ()
    holds: frozenset[int] = frozenset()
    described: bool = True


def wish(value: Any, kind: Kind) -> Wish | None:
    """Return what a variable asks for: a count, a list of indices, or text such as `0-3,8`; None for null.

    Raises NoPlace.
    """
    if value is None or value == "":
        return None
    expected = (
        f"{kind.option}: expected a count of 1 or more, a list of {kind.name}s such as [0, 1], or text such as 0-3"
    )
    wrong = NoPlace(f"{expected}, got {value!r}", "correct it")
    if isinstance(value, (bool, float, Mapping)):
        raise wrong
    if isinstance(value, int) or (isinstance(value, str) and value.strip().isdigit()):
        if int(value) < 1:
            raise wrong
        return Wish(int(value))
    words = [str(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else [str(value)]
    try:
        listed = [number for word in words for number in parse_numbers(word, kind.option)]
    except SpecError:
        raise wrong from None
    if not listed or len(set(listed)) < len(listed):
        raise wrong
    return Wish(len(listed), tuple(sorted(listed)))


def place(kind: Kind, units: Sequence[Unit], servers: Sequence[Server], own: str) -> tuple[int, ...]:
    """Return the units of the server ``own``, by their indices. Raises NoPlace.

    ``servers`` are all of the node: described ones in the order of the inventory, then those that are only there.
    """
    machine = _Machine(units)
    found = _all(machine, servers)
    mine = found[own]
    if mine is not None:
        return mine
    raise _Sentences(kind, machine, servers, found).refusal(next(one for one in servers if one.name == own))


def _all(machine: _Machine, servers: Sequence[Server]) -> dict[str, tuple[int, ...] | None]:
    """Return what each described server with a wish gets; None for one that gets no place."""
    found: dict[str, tuple[int, ...] | None] = {}
    there = frozenset(machine.indices)
    asking = [(server, server.wish) for server in servers if server.described and server.wish]
    counts: list[tuple[int, Server, Wish, tuple[int, ...]]] = []
    for server, wanted in asking:
        has = tuple(index for index in server.has if index in there and not _held(servers, server) & {index})
        if wanted.met_by(has):
            found[server.name] = has
        elif wanted.listed is None:
            counts.append((-wanted.count, server, wanted, has))
    for server, wanted in asking:
        if server.name not in found and wanted.listed is not None:
            rivals = (set(other.listed or ()) for one, other in asking if one is not server)
            open_to_it = (there - _held(servers, server) - _given(found)).difference(*rivals)
            found[server.name] = wanted.listed if set(wanted.listed) <= open_to_it else None
    for _, server, wanted, had in sorted(counts, key=lambda one: one[0]):
        taken = _held(servers, server) | _given(found)
        free = [index for index in machine.indices if index not in taken]
        # What a record alone says that it has, another may have got.
        has = tuple(index for index in had if index not in taken)
        if len(has) >= wanted.count:
            found[server.name] = machine.best(has, wanted.count)
        else:
            found[server.name] = machine.best([index for index in free if index not in has], wanted.count, has)
    return found


def _held(servers: Sequence[Server], own: Server) -> frozenset[int]:
    """Return what the others hold."""
    return frozenset().union(*(server.holds for server in servers if server is not own))


def _given(found: Mapping[str, tuple[int, ...] | None]) -> frozenset[int]:
    """Return what was given already."""
    return frozenset(index for indices in found.values() for index in indices or ())


class _Machine:
    """A node's units, and what sets of them cost."""

    def __init__(self, units: Sequence[Unit]) -> None:
        first: dict[tuple[int, str], int] = {}
        for unit in units:
            key = (_numa(unit), unit.device)
            first[key] = min(unit.index, first.get(key, unit.index))
        # Parts of one device side by side, devices of one NUMA node side by side.
        order = sorted(units, key=lambda unit: (_numa(unit), first[_numa(unit), unit.device], unit.index))
        self.units = {unit.index: unit for unit in order}
        self.indices = list(self.units)
        self._at = {index: at for at, index in enumerate(self.indices)}
        known = [weight for unit in units for weight in unit.links.values()]
        self._far = 2 * max(known, default=0)

    def best(self, pool: Sequence[int], count: int, base: Sequence[int] = ()) -> tuple[int, ...] | None:
        """Return the best ``count`` units: ``base`` and more of ``pool``; None where there are too few.

        What something speaks against is avoided where that is possible.
        """
        more = count - len(base)
        pool = sorted(pool, key=self._at.__getitem__)
        quiet = [index for index in pool if not self.units[index].against]
        for those in (quiet, pool):
            if len(those) >= more:
                return tuple(sorted({*base, *self._cheapest(those, more, base)}))
        return None

    def _cheapest(self, pool: Sequence[int], more: int, base: Sequence[int]) -> Sequence[int]:
        # Whether all sets are compared may depend on nothing that others take or give.
        if math.comb(len(self.indices) - len(base), more) <= ALL_SETS:
            return min(itertools.combinations(pool, more), key=lambda extra: self._cost([*base, *extra]))
        if base:
            near = {self._group(index) for index in base}, {_numa(self.units[index]) for index in base}
            return sorted(pool, key=lambda index: self._nearness(index, *near))[:more]
        free = set(pool)
        windows = (self.indices[at : at + more] for at in range(len(self.indices) - more + 1))
        whole = [window for window in windows if free.issuperset(window)]
        if whole:
            return min(whole, key=self._cost)
        for group in (self._group, lambda index: _numa(self.units[index]), lambda _: 0):
            together: dict[Any, list[int]] = {}
            for index in pool:
                together.setdefault(group(index), []).append(index)
            enough = [found[:more] for found in together.values() if len(found) >= more]
            if enough:
                return min(enough, key=lambda found: [self._at[index] for index in found])
        return pool[:more]

    def _nearness(self, index: int, devices: Collection[Any], numas: Collection[int]) -> tuple[bool, bool, int]:
        return _numa(self.units[index]) not in numas, self._group(index) not in devices, self._at[index]

    def _group(self, index: int) -> Any:
        unit = self.units[index]
        return (_numa(unit), unit.device or index)

    def _cost(self, chosen: Sequence[int]) -> tuple[Any, ...]:
        """What speaks against them, NUMA nodes, devices, links, alignment, width, and at last the lowest indices."""
        units = [self.units[index] for index in chosen]
        places = sorted(self._at[index] for index in chosen)
        width = places[-1] - places[0] + 1
        aligned = width == len(places) and places[0] % len(places) == 0
        # Without links, as of CPUs, no pair of hundreds need be looked at.
        pairs = itertools.combinations(units, 2) if self._far else ()
        links = sum(
            max(one.links.get(other.index, self._far), other.links.get(one.index, self._far)) for one, other in pairs
        )
        return (
            sum(1 for unit in units if unit.against),
            len({_numa(unit) for unit in units}),
            len({self._group(unit.index) for unit in units}),
            links,
            not aligned,
            width,
            places,
        )


def _numa(unit: Unit) -> int:
    return -1 if unit.numa is None else unit.numa


_REMOVE = "remove it first (playbooks/teardown.yml with an inventory that describes it), then run again"


@dataclass(frozen=True)
class _Sentences:
    """Says why a server gets no place; ``found`` is what the others get."""

    kind: Kind
    machine: _Machine
    servers: Sequence[Server]
    found: Mapping[str, tuple[int, ...] | None]

    def refusal(self, own: Server) -> NoPlace:
        """Return why ``own``, which has a wish, gets no place, with the map of the node."""
        option, name, listed = self.kind.option, self.kind.name, own.wish.listed if own.wish else None
        picture = f"{name}s of this node: {self.map()}"
        if own.wish and listed is None:
            free = [index for index in self.machine.indices if not self.users(index, without=own.name)]
            many = f"{own.wish.count} {name}{'' if own.wish.count == 1 else 's'}"
            said = f"{len(free)} of {len(self.machine.indices)} {'is' if len(free) == 1 else 'are'} free"
            why = f"{option} of {own.name} asks for {many}, and {said}. {picture}"
            return NoPlace(why, self._how_to_free(own), short=self.kind)
        absent = [index for index in listed or () if index not in self.machine.units]
        if absent:
            said = f"{option} of {own.name} names {name} {numbers_text(absent)}, which this node does not have"
            return NoPlace(f"{said}. {picture}", "correct the list, or see what became of it (`dmesg` on the node)")
        for one in self.servers:
            both = set(listed or ()) & set(one.wish.listed or () if one.wish and one.described else ())
            if one.name != own.name and both:
                said = f"{option} of {own.name} and of {one.name} both name {name} {numbers_text(both)}"
                return NoPlace(f"{said}. {picture}", "give each server its own")
        taken = ((index, user) for index in listed or () for user in self.users(index, without=own.name))
        index, user = next(taken)
        if not user.described:
            said = f"{name} {index} is used by {user.name}, which no host of the inventory describes"
            return NoPlace(f"{said}. {picture}", _REMOVE)
        if index in (self.found.get(user.name) or ()):
            said = f"{option} of {own.name} names {name} {index}, which {user.name} has and keeps"
            return NoPlace(f"{said}. {picture}", f"choose others, or give {user.name} a list ({option}) without it")
        said = f"{name} {index} is still used by {user.name}"
        return NoPlace(
            f"{said}. {picture}", f"replace that first (--limit with the host of {user.name}), then run again"
        )

    def _how_to_free(self, own: Server) -> str:
        others = [one for one in self.servers if one.name != own.name]
        stray = [one.name for one in others if not one.described and one.holds]
        if stray:
            return f"no host of the inventory describes {', '.join(stray)}: {_REMOVE}"
        leaving = [one.name for one in others if one.holds - set(self.found.get(one.name) or ())]
        if leaving:
            return f"replace {', '.join(leaving)} first (--limit with that host), then run again"
        return "ask for fewer, or take a server off this node"

    def users(self, index: int, *, without: str = "") -> list[Server]:
        """Return the servers that have a unit, or are to get it."""
        return [
            one
            for one in self.servers
            if one.name != without and (index in one.holds or index in (self.found.get(one.name) or ()))
        ]

    def map(self) -> str:
        """Return who has what, such as `GPU 0-1 vllm-chat, GPU 2 free`."""
        said: dict[str, list[int]] = {}
        for index in sorted(self.machine.indices):
            words = [one.name if one.described else f"{one.name} (not described)" for one in self.users(index)]
            if self.machine.units[index].against:
                words.append(self.machine.units[index].against)
            said.setdefault(" and ".join(words) or "free", []).append(index)
        return ", ".join(f"{self.kind.name} {numbers_text(indices)} {who}" for who, indices in said.items())


def numa_nodes(units: Iterable[Unit], chosen: Collection[int]) -> list[int]:
    """Return the NUMA nodes of chosen units, as far as they are known."""
    return sorted({unit.numa for unit in units if unit.index in chosen and unit.numa is not None})
