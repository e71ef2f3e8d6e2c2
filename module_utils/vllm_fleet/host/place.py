# SPDX-License-Identifier: Apache-2.0
"""The place of a server on a node that it shares: found from what is there, and written down before it is taken.

Each server has a record in its own folder (``<state_dir>/<name>/place.json``). All placing of a node goes through one
lock, so two servers that are placed at the same time see each other's records. Containers count, too: of a server
whose record is gone, of one that has moved and whose old container goes on, and of one that no host describes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..common import durable
from ..container.fields import numbers_text, parse_numbers
from ..container.inspected import Inspected, cpuset, ident, renders
from ..container.plan import NEXT_SUFFIX, PREVIOUS_SUFFIX
from ..container.spec import LABEL_SERVER
from . import gpu_health, share, topology
from .share import CPU, GPU, Kind, NoPlace, Server, Unit

#: Of the record's layout.
FORMAT = 1
RECORD, LOCK = "place.json", "place.lock"
#: Variables by which a user chooses GPUs.
BY_HAND = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
#: Seconds to wait for the lock; placing takes a fraction of one.
LOCK_WAIT = 30.0
#: Bytes of a GPU that its driver and idle programs may hold, as preflight_idle_vram.
IDLE_VRAM = 5_000_000_000


@dataclass(frozen=True)
class Asker:
    """A server of the node and what it asks for, as the variables have it. ``rocm``: it computes on GPUs."""

    name: str
    gpus: Any = None
    cpus: Any = None
    rocm: bool = True

    @classmethod
    def from_option(cls, given: Mapping[str, Any]) -> Asker:
        """Return one of the option `neighbours`."""
        rocm = str(given.get("accelerator") or "rocm") == "rocm"
        return cls(str(given["name"]), given.get("gpus"), given.get("cpus"), rocm)

    def wish(self, kind: Kind) -> share.Wish | None:
        """Return its wish for a kind. Raises NoPlace."""
        return share.wish(self.gpus if kind is GPU else self.cpus, kind) if self.rocm or kind is CPU else None


@dataclass(frozen=True)
class Asked:
    """What is asked for: the server's own wish, and all servers that the inventory has on the node, in its order.

    ``by_hand`` names options with which the user has chosen GPUs already.
    """

    own: Asker
    neighbours: tuple[Asker, ...]
    state_dir: Path
    sysfs: Path
    by_hand: str = ""

    @property
    def shared(self) -> bool:
        """Whether there is anything to find: a wish, or a neighbour."""
        return any(value not in (None, "") for value in (self.own.gpus, self.own.cpus)) or len(self.neighbours) > 1

    @property
    def all(self) -> tuple[Asker, ...]:
        """All that are described, the server itself among them."""
        found = tuple(self.own if one.name == self.own.name else one for one in self.neighbours)
        return found if self.own in found else (*found, self.own)


@dataclass(frozen=True)
class Place:
    """What a server got: indices of GPUs and their render nodes, CPUs and the cores that they make; None is no wish."""

    gpus: tuple[int, ...] | None = None
    renders: tuple[str, ...] = ()
    cpus: tuple[int, ...] | None = None
    cores: tuple[tuple[int, ...], ...] = ()
    numa: tuple[int, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return `place` of a result: GPUs, CPUs such as 0-3,8, and NUMA nodes."""
        cpus = numbers_text(self.cpus) if self.cpus is not None else None
        return {"gpus": None if self.gpus is None else list(self.gpus), "cpus": cpus, "numa": list(self.numa)}


def chosen_by_hand(env: Mapping[str, Any], given: Any) -> str:
    """Return the option by which a user has chosen GPUs: a variable of ``env``, or ``given`` devices; empty if none."""
    if given is not None:
        return "vllm_server_devices"
    return next((f"{one} in vllm_server_env" for one in BY_HAND if env.get(one) not in (None, "")), "")


def devices(place: Place) -> list[str]:
    """Return the devices of a container that sees the GPUs of a place, and no others."""
    return ["/dev/kfd", *(f"/dev/dri/{render}" for render in place.renders)]


def find(asked: Asked, containers: Sequence[Inspected], gpus: Sequence[Mapping[str, Any]]) -> Place | None:
    """Return the server's place; None where it asks for none. Raises NoPlace, durable.Unreadable.

    ``containers`` are all of this project on the node, ``gpus`` its GPUs as rocm_info has them.
    """
    own = asked.own
    check(asked)
    wishes = {kind: own.wish(kind) for kind in (GPU, CPU)}
    if not any(wishes.values()):
        return None
    node = _Node(asked, containers, gpus)
    found = {kind: node.place(kind) for kind, wish in wishes.items() if wish}
    numa: set[int] = set()
    for kind, chosen in found.items():
        numa |= set(share.numa_nodes(node.units(kind), chosen))
    mine = found.get(CPU)
    cores: dict[tuple[int | None, str], list[int]] = {}
    for unit in node.units(CPU) if mine else ():
        if unit.index in (mine or ()):
            cores.setdefault((unit.numa, unit.device), []).append(unit.index)
    return Place(
        gpus=found.get(GPU),
        renders=node.renders(found.get(GPU) or ()),
        cpus=mine,
        cores=tuple(tuple(sorted(threads)) for threads in cores.values()),
        numa=tuple(sorted(numa)),
    )


def check(asked: Asked) -> None:
    """Refuse wishes that cannot be, whatever the node has. Raises NoPlace."""
    own = asked.own
    if not own.rocm and own.gpus not in (None, ""):
        remedy = "take it away, or set vllm_server_accelerator: rocm"
        raise NoPlace(f"{GPU.option} of {own.name} is set, and the server computes on CPUs", remedy)
    own.wish(CPU)
    if own.wish(GPU) is not None and asked.by_hand:
        said = f"{GPU.option} of {own.name} is set together with {asked.by_hand}"
        raise NoPlace(f"{said}, and each would choose GPUs", "take one of them away")
    rivals = [one.name for one in asked.neighbours if one.rocm and one.name != own.name]
    if own.rocm and own.wish(GPU) is None and rivals and not asked.by_hand:
        said = f"{GPU.option} of {own.name} is not set, so it takes all GPUs of its node, and {rivals[0]} is there, too"
        raise NoPlace(said, f"set {GPU.option} of each server to a count or a list (docs/servers-per-node.md)")


class _Node:
    """What the node has, and who has it."""

    def __init__(self, asked: Asked, containers: Sequence[Inspected], gpus: Sequence[Mapping[str, Any]]) -> None:
        self.asked, self.containers, self.gpus = asked, containers, gpus
        #: The containers of each server that run or may be started: not those that were replaced.
        self.of: dict[str, list[Inspected]] = {}
        for container in containers:
            name, server = str(container["Name"]).lstrip("/"), server_of(container)
            if name in (server, server + NEXT_SUFFIX):
                self.of.setdefault(server, []).append(container)

    def units(self, kind: Kind) -> list[Unit]:
        """Return the node's units of a kind."""
        return self._gpu_units if kind is GPU else self._cpu_units

    @cached_property
    def _gpu_units(self) -> list[Unit]:
        return topology.gpu_units(self.asked.sysfs, self.gpus, self._against())

    @cached_property
    def _cpu_units(self) -> list[Unit]:
        # A tree of files is another machine's.
        allowed = os.sched_getaffinity(0) if str(self.asked.sysfs) == "/sys" else None
        return topology.cpu_units(self.asked.sysfs, allowed)

    def _against(self) -> dict[int, str]:
        """Return what speaks against a GPU: its errors, or who holds memory of it and is no server of this project."""
        ours, found = {ident(container) for container in self.containers}, {}
        health = gpu_health.read(self.asked.sysfs)
        for one in self.gpus:
            holders = one.get("holders") or []
            foreign = [holder for holder in holders if holder.get("container") not in ours]
            mine = sum(holder.get("bytes") or 0 for holder in holders if holder not in foreign)
            held = max(sum(holder.get("bytes") or 0 for holder in foreign), (one.get("vram_used") or 0) - mine)
            who = [f"pid {holder['pid']} ({str(holder.get('command') or 'unknown')[:40]})" for holder in foreign]
            said = [" and ".join(who) or "memory that no process holds"] if held > IDLE_VRAM else []
            counted = health.get(str(one.get("pci")))
            said += [f"{counted.uncorrectable} uncorrectable errors"] if counted and counted.uncorrectable else []
            if said:
                found[int(one["index"])] = " and ".join(said)
        return found

    def renders(self, chosen: Sequence[int]) -> tuple[str, ...]:
        """Return the render nodes of GPUs. Raises NoPlace where one has none."""
        by_index = {int(one["index"]): one.get("render") for one in self.gpus}
        for index in chosen:
            if not by_index.get(index):
                raise NoPlace(f"GPU {index} has no render node in /sys", "see `dmesg | grep amdgpu` on the node")
        return tuple(str(by_index[index]) for index in chosen)

    def place(self, kind: Kind) -> tuple[int, ...]:
        """Return the server's own units of a kind. Raises NoPlace, durable.Unreadable."""
        described = self.asked.all
        names = {one.name for one in described}
        servers = [self._server(one, kind, described=True) for one in described]
        servers += [self._server(Asker(name), kind, described=False) for name in sorted(self.of.keys() - names)]
        return share.place(kind, self.units(kind), servers, self.asked.own.name)

    def _server(self, asker: Asker, kind: Kind, *, described: bool) -> Server:
        wish = None
        # One that is wrong is refused at its own host.
        with contextlib.nullcontext() if asker.name == self.asked.own.name else contextlib.suppress(NoPlace):
            wish = asker.wish(kind)
        there = self.of.get(asker.name) or []
        record = read(self.asked.state_dir, asker.name) if described or there else None
        recorded = self._indices(kind, record) if record else None
        held = [self._of_container(kind, container) for container in there]
        has = held[0] if recorded is None and held else recorded or frozenset()
        holds = frozenset().union(*held)
        if recorded and (there or (wish and wish.met_by(recorded))):
            holds |= recorded
        if there and record and record.get("before"):
            holds |= self._indices(kind, record["before"]) or frozenset()
        return Server(asker.name, wish, tuple(sorted(has)), holds, described)

    def _indices(self, kind: Kind, written: Mapping[str, Any]) -> frozenset[int] | None:
        """Return what a record has of a kind, as far as it is still there; None where it has nothing of that kind."""
        if kind is CPU:
            given = written.get("cpus")
            return frozenset(parse_numbers(given, "cpus")) & {u.index for u in self.units(CPU)} if given else None
        given = written.get("renders")
        return self._with(given) if given else None

    def _with(self, nodes: Sequence[str]) -> frozenset[int]:
        return frozenset(int(one["index"]) for one in self.gpus if one.get("render") in nodes)

    def _of_container(self, kind: Kind, container: Inspected) -> frozenset[int]:
        if kind is CPU:
            # One that may run anywhere has no CPU for itself.
            given = cpuset(container)
            return (
                frozenset(parse_numbers(given, "cpuset")) & {u.index for u in self.units(CPU)} if given else frozenset()
            )
        nodes = renders(container)
        return frozenset(unit.index for unit in self.units(GPU)) if nodes is None else self._with(nodes)


def server_of(container: Inspected) -> str:
    """Return the name of the server that a container was made for."""
    name = str(container["Name"]).lstrip("/")
    noted = ((container.get("Config") or {}).get("Labels") or {}).get(LABEL_SERVER)
    return str(noted or name.removesuffix(NEXT_SUFFIX).removesuffix(PREVIOUS_SUFFIX))


# -- what is written down


@contextlib.contextmanager
def locked(state_dir: Path, wait: float = LOCK_WAIT) -> Iterator[None]:
    """Hold the node's lock of all places. The kernel drops it with the process. Raises NoPlace, OSError."""
    durable.make_folders(state_dir, 0o700)
    path, deadline = state_dir / LOCK, time.monotonic() + wait
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    said = f"another run holds {path} for more than {wait:.0f} seconds"
                    raise NoPlace(said, "see what it waits for, and run again") from None
                time.sleep(0.05)  # flock has no timed wait
        yield


def read(state_dir: Path, name: str) -> dict[str, Any] | None:
    """Return a server's record; None without one. Raises durable.Unreadable."""
    path = state_dir / name / RECORD
    found = durable.read(path)
    if found is None:
        return None
    sets = [found, found.get("before") or {}]
    try:
        if found["format"] != FORMAT:
            raise ValueError
        for one in sets:
            if one.get("cpus"):
                parse_numbers(one["cpus"], "cpus")
            [str(render) for render in one.get("renders") or ()]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise durable.Unreadable(0, "is damaged, or of another version", str(path)) from None
    return found


def record(
    place: Place, current: Inspected | None, old: Mapping[str, Any] | None, everything: Sequence[str]
) -> dict[str, Any]:
    """Return what is to be written of a place.

    ``before`` is what the server's ``current`` container has, if that is something else: it goes back there if its new
    container fails. That of the ``old`` record stays, as long as nothing was good since. ``everything`` are the render
    nodes of the node.
    """
    gpus = sorted(place.renders) if place.gpus is not None else None
    made = {"format": FORMAT, **place.facts(), "renders": gpus}
    had: dict[str, Any] = {}
    if current is not None:
        nodes = renders(current)
        had = {"renders": sorted(everything) if nodes is None else nodes, "cpus": cpuset(current)}
    if had == {"renders": gpus or [], "cpus": made["cpus"]}:
        had = {}
        if old and all(old.get(name) == made[name] for name in ("renders", "cpus")):
            had = dict(old.get("before") or {})
    return {**made, "before": had if any(had.values()) else None}


def write(state_dir: Path, name: str, made: Mapping[str, Any] | None) -> None:
    """Write a server's record, or (None) take it away; nothing where it is so already. Raises OSError."""
    path = state_dir / name / RECORD
    with contextlib.suppress(durable.Unreadable):  # what cannot be read is not so already
        if durable.read(path) == made:
            return
    if made is None:
        path.unlink(missing_ok=True)
        return
    durable.make_folders(path.parent, 0o700)
    durable.write(path, json.dumps(made, indent=1, sort_keys=True).encode() + b"\n")


def settle(state_dir: Path, name: str) -> None:
    """Give free what the server had before: its new container is good. Raises OSError."""
    found = read(state_dir, name)
    if found and found.get("before"):
        with locked(state_dir):
            write(state_dir, name, {**found, "before": None})
