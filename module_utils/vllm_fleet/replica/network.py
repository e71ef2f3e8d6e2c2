# SPDX-License-Identifier: Apache-2.0
"""What the nodes of one server must have of the network between them, checked before anything stops.

Reads interfaces and RDMA adapters, and makes real TCP connections between the nodes: a listener that lives for seconds
on one side, a connect through the wanted interface on the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.failure import FailureClass
from ..common.refused import Refused
from ..host.ports import listeners

#: Seconds that a listener waits for its partners, and one connection may take.
LISTEN_TIME, CONNECT_TIME = 30.0, 5.0
#: SO_BINDTODEVICE of Linux, which Python's socket module does not name before 3.12.
_BIND_TO_DEVICE = 25
_EADDRINUSE = 98


@dataclass(frozen=True)
class Interface:
    """One network interface: whether it is up with a link, and its addresses."""

    name: str
    up: bool
    addresses: tuple[str, ...]


def parse_interfaces(text: str) -> dict[str, Interface]:
    """Read the output of `ip -j addr`."""
    found = {}
    for item in json.loads(text or "[]"):
        flags = item.get("flags") or []
        addresses = tuple(str(a["local"]) for a in item.get("addr_info") or [] if a.get("local"))
        found[str(item["ifname"])] = Interface(str(item["ifname"]), "UP" in flags and "LOWER_UP" in flags, addresses)
    return found


def interfaces() -> dict[str, Interface]:
    """Return this node's interfaces, by name."""
    done = subprocess.run(["ip", "-j", "addr"], capture_output=True, text=True, check=False, timeout=20)
    return parse_interfaces(done.stdout)


def check_interface(name: str, address: str, found: Mapping[str, Interface]) -> None:
    """Refuse an interface that is not there, not up, or does not carry the node's address."""
    remedy = "correct vllm_server_interface of this host (`ip addr` on the node shows them)"
    if name not in found:
        have = ", ".join(sorted(n for n in found if n != "lo")) or "none"
        raise Refused(
            FailureClass.BAD_ARGUMENT, f"there is no network interface {name} on this node; it has {have}", remedy
        )
    if not found[name].up:
        raise Refused(
            FailureClass.BAD_ARGUMENT, f"the network interface {name} is down", f"`ip link set {name} up`, or {remedy}"
        )
    if address not in found[name].addresses:
        have = ", ".join(found[name].addresses) or "no address"
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"the network interface {name} does not have this node's address {address}; it has {have}",
            f"{remedy}, or vllm_server_node_address",
        )


def check_address(address: str, found: Mapping[str, Interface]) -> None:
    """Refuse an address that this node does not have: behind a translating router its server could not listen there."""
    if not any(address in one.addresses for one in found.values()):
        have = ", ".join(a for one in found.values() if one.name != "lo" for a in one.addresses) or "none"
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"this node does not have the address {address} that its partners use; it has {have}",
            "set vllm_server_node_address of this host to its own address on the network between the nodes",
        )


def check_rdma(devices: Sequence[str], gid_index: int | None, sysfs: Path, dev: Path = Path("/dev/infiniband")) -> None:
    """Refuse RDMA adapters that are not there or have no active port, and a GID that is empty."""
    if not devices:
        return
    base = sysfs / "class/infiniband"
    have = ", ".join(sorted(p.name for p in base.glob("*"))) or "none"
    remedy = "correct vllm_server_rdma_devices of this host (`rdma link` on the node shows them)"
    if not dev.exists():
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"{dev} does not exist on this node",
            "load the RDMA drivers (ib_uverbs), or leave vllm_server_rdma_devices empty to use TCP",
        )
    for device in devices:
        ports = sorted((base / device / "ports").glob("*"))
        if not ports:
            raise Refused(
                FailureClass.BAD_ARGUMENT, f"there is no RDMA adapter {device} on this node; it has {have}", remedy
            )
        states = [_text(port / "state") for port in ports]
        if not any("ACTIVE" in state for state in states):
            raise Refused(
                FailureClass.BAD_ARGUMENT, f"the RDMA adapter {device} has no active port ({', '.join(states)})", remedy
            )
        if gid_index is not None:
            gids = [_text(port / "gids" / str(gid_index)) for port in ports]
            if not any(gid.strip("0:") for gid in gids):
                raise Refused(
                    FailureClass.BAD_ARGUMENT,
                    f"the RDMA adapter {device} has no GID at index {gid_index}",
                    "correct vllm_server_rdma_gid_index of this host (`show_gids` shows them; RoCE v2 is mostly 3)",
                )


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Place:
    """A node's place on the network between the nodes of a replica, as the inventory has it.

    ``ports`` are those that the node's server will listen on, at ``ports_address`` if that is another address.
    """

    address: str
    ports: tuple[int, ...] = ()
    ports_address: str = ""
    interface: str = ""
    rdma_devices: tuple[str, ...] = ()
    rdma_gid_index: int | None = None


def offer(place: Place, partners: int, own_pids: Callable[[], frozenset[int]], sysfs: Path) -> dict[str, Any]:
    """Check this node and listen; returns what ``partners`` others shall connect to. Raises Refused.

    ``own_pids``: processes of the server that runs now.
    """
    found = interfaces()
    check_address(place.address, found)
    if place.interface:
        check_interface(place.interface, place.address, found)
    check_rdma(place.rdma_devices, place.rdma_gid_index, sysfs)
    offered, word = listen(place.address, place.ports, partners, own_pids, place.ports_address)
    return {"offered": offered, "word": word}


def reach(partners: Sequence[Mapping[str, Any]], interface: str) -> dict[str, Any]:
    """Connect to every partner; returns those that were reached. Raises Refused where one was not."""
    wrong = connect(partners, interface)
    if wrong:
        raise Refused(
            FailureClass.COLLECTIVE_INIT,
            f"this node {wrong[0]}",
            "open these ports, and all above 1024, between the nodes of the replica; correct vllm_server_interface or "
            "vllm_server_node_address",
            wrong,
        )
    return {"reached": [{"host": partner["host"]} for partner in partners]}


# -- connections -----------------------------------------------------------------------------------------------


def listen(
    address: str, ports: Sequence[int], partners: int, own_pids: Callable[[], frozenset[int]], ports_address: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """Listen on ``ports`` of ``ports_address`` (else of ``address``) and on one of ``address`` that the kernel picks.

    In a process that ends by itself. Returns what each partner shall try ({address, port, own}: held by the server that
    runs now) and the word it will hear. Raises Refused for a port that another program holds.
    """
    word = secrets.token_hex(8)
    name = f"\0vllm-fleet-replica-{address}-{','.join(map(str, ports))}"
    _dismiss(name)
    with contextlib.ExitStack() as open_sockets:
        control = open_sockets.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        control.bind(name)
        control.listen(8)
        sockets: list[socket.socket] = []
        offered: list[dict[str, Any]] = []
        for where, port in [*((ports_address or address, port) for port in ports), (address, 0)]:
            made = _bound_or_own(where, port, own_pids)
            if made is not None:
                sockets.append(open_sockets.enter_context(made))
            offered.append({"address": where, "port": made.getsockname()[1] if made else port, "own": made is None})
        _serve(sockets, control, word, partners * len(sockets))
    return offered, word


def _bound_or_own(address: str, port: int, own_pids: Callable[[], frozenset[int]]) -> socket.socket | None:
    """Listen; None where the container that is about to be replaced does. Raises Refused."""
    try:
        return _bound(address, port)
    except OSError as exc:
        if exc.errno != _EADDRINUSE:
            raise Refused(
                FailureClass.BAD_ARGUMENT,
                f"cannot listen on {address}:{port} ({exc.strerror})",
                "correct vllm_server_node_address or vllm_server_master_addr: an address of this node",
            ) from None
    holders = listeners(address, port)
    if holders and holders.keys() <= own_pids():
        return None
    who = next((f"{name} (pid {pid})" for pid, name in holders.items()), "another program")
    raise Refused(
        FailureClass.PORT_TAKEN,
        f"port {port} on {address} is already taken by {who}",
        "stop that program, or choose another port (vllm_server_master_port; the next one is used too)",
    )


def _bound(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(128)
    except OSError:
        made.close()
        raise
    return made


def _dismiss(name: str) -> None:
    """End the listener that an earlier check left waiting for partners which never came; returns when it is gone."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(CONNECT_TIME)
        link.connect(name)
        link.recv(1)


def _serve(sockets: Sequence[socket.socket], control: socket.socket, word: str, wanted: int) -> None:
    """Answer ``wanted`` connections with ``word`` from a process of its own, until LISTEN_TIME or a dismissal."""
    if os.fork():
        with contextlib.suppress(ChildProcessError):
            os.wait()
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        end = time.monotonic() + LISTEN_TIME
        with selectors.DefaultSelector() as selector:
            for one in (*sockets, control):
                selector.register(one, selectors.EVENT_READ)
            while wanted > 0 and (left := end - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.fileobj is control:
                        for one in sockets:
                            one.close()  # before the one who dismisses hears that this is over
                        return
                    link = key.fileobj.accept()[0]  # type: ignore[union-attr]
                    with contextlib.suppress(OSError), link:
                        link.sendall(word.encode())
                    wanted -= 1
    finally:
        os._exit(0)


def connect(partners: Sequence[Mapping[str, Any]], interface: str) -> list[str]:
    """Connect to every port that every partner offers; gives a sentence for each that does not work.

    ``partners``: {host, address, word, offered: [{address, port, own}]}. Through ``interface`` where one is given.
    """
    jobs = [(p, o) for p in partners for o in p["offered"]]
    with ThreadPoolExecutor(max_workers=min(32, len(jobs) or 1)) as pool:
        return [text for text in pool.map(lambda job: _try(job[0], job[1], interface), jobs) if text]


def _try(partner: Mapping[str, Any], offer: Mapping[str, Any], interface: str) -> str:
    address, port = str(offer["address"]), int(offer["port"])
    if address != partner["address"]:
        interface = ""  # the ranks may meet on another network; only collectives keep to the interface
    through = f" through {interface}" if interface else ""
    where = f"{partner['host']} at {address}:{port}{through}"
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as link:
        link.settimeout(CONNECT_TIME)
        try:
            if interface:
                link.setsockopt(socket.SOL_SOCKET, _BIND_TO_DEVICE, interface.encode() + b"\0")
            link.connect((address, port))
            # A port of the server that still runs has nothing to say to a stranger; that it opens is all.
            heard = str(partner["word"]) if offer["own"] else link.recv(64).decode(errors="replace")
        except OSError as exc:
            what = "no answer (a firewall?)" if isinstance(exc, TimeoutError) else (exc.strerror or str(exc))
            return f"cannot reach {where}: {what}"
    if heard != partner["word"]:
        return f"something else than the node answers for {where}"
    return ""
