# SPDX-License-Identifier: Apache-2.0
"""One node's part in a swarm: its address, its transient units, what they report, and the end of all of it.

Everything lives in transient units and below /run, so a reboot leaves nothing, and each unit has a last moment of its
own. The lease ends them earlier: every call of a run that still goes on renews it, so they stop a while after the
last call when the controller was interrupted and no later call stopped them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common import received
from ..common.detached import JOBS
from ..common.exchange import Deadline, addresses
from ..common.job import Job, fingerprint
from . import torrent as torrents
from .files import allocated_below, make_folder, remove, write_text
from .manifest import BLOB_NAME
from .owner import Owner, acting_as, owner_of
from .said import MAX_ADDRESSES
from .torrent import SwarmError

RUN = Path("/run/vllm-fleet")
CONNECT_TIMEOUT = 5.0
#: Seconds for one call of systemd, which may wait until a unit has stopped (TimeoutStopSec is 90 by default).
PATIENCE = 120.0
"""Seconds for a TCP connection inside one network; a closed port that drops packets costs as long."""

START_TIMEOUT = 30.0
"""Seconds within which a tracker or a seed must listen; they need one."""

TAIL = 32768
POLL = 0.2
"""Seconds between two looks at aria2's output, which comes every second."""


@dataclass
class Settings:
    """One node's settings for the swarm `name` (a commit): ports, time limits in seconds, upload bytes a second.

    `team` are the addresses of the nodes that take part: its units speak with no other.
    """

    name: str
    port: int
    tracker_port: int
    max_runtime: int = 6 * 3600
    lease: int = 120
    upload_limit: int = 0
    team: tuple[str, ...] = ()
    run: Path = field(init=False)

    def __post_init__(self) -> None:
        """Name the folder for everything that must not outlive the swarm."""
        self.run = RUN / f"swarm-{self.name[:12]}"

    @property
    def share(self) -> Path:
        """Folder of links to the blobs that a seed has."""
        return self.run / "share"

    @property
    def torrent(self) -> Path:
        """Return the torrent's file."""
        return self.run / f"{self.name}.torrent"

    @property
    def log(self) -> Path:
        """Return aria2's output."""
        return self.run / "peer.log"

    def unit(self, part: str) -> str:
        """Return the unit of one part."""
        return torrents.unit(self.name, part)


def _run(argv: Sequence[str], what: str) -> str:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=PATIENCE
        )
    except OSError as error:
        raise SwarmError(f"{what} cannot be started ({argv[0]}: {error.strerror})") from error
    except subprocess.TimeoutExpired as error:
        raise SwarmError(
            f"{what}: {argv[0]} did not end within {PATIENCE:g} s; look at `systemctl list-jobs`"
        ) from error
    if done.returncode:
        raise SwarmError(f"{what} did not start: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def lacking(programs: Sequence[str]) -> list[str]:
    """Return those of `programs` that this node does not have. Raises SwarmError where no swarm can run at all."""
    if os.geteuid() != 0:
        raise SwarmError(f"a swarm's units need root, the task runs as user id {os.geteuid()}; run with become")
    if not Path("/run/systemd/system").is_dir():
        raise SwarmError("a swarm runs in systemd's transient units, and systemd does not run here")
    return [program for program in programs if not shutil.which(program)]


def insist_on(programs: Sequence[str], because: str) -> None:
    """Raise SwarmError when one of `programs` is lacking; `because` is what installing it failed with."""
    if missing := lacking(programs):
        why = f" ({because.strip().splitlines()[0][:200]})" if because.strip() else ""
        raise SwarmError(f"{', '.join(missing)} not installed, and apt did not change that{why}; install by hand")


# Addresses


def _is_local(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _source_toward(target: str) -> str:
    """Return the address from which this node would reach `target`; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def own_address(asked: str, hint: str, toward: str) -> str:
    """Return the IPv4 address that this node's part of the swarm is bound to.

    That is `asked` where the user gave one; else the one that `toward` (the seed) is reached from; else `hint` (what
    Ansible connects to) if the node itself has it; else that of the default route. One that the user did not give
    must be private. Raises SwarmError when there is none such.
    """
    if asked:
        if not _is_local(asked):
            raise SwarmError(f"hf_cache_swarm_address {asked} is no IPv4 address of this node; correct it")
        return asked
    try:
        found = addresses(hint, None, Deadline(CONNECT_TIMEOUT), socket.AF_INET) if hint else []
        hinted = str(found[0][4][0]) if found else ""
    except (OSError, UnicodeError):
        hinted = ""
    candidates = [_source_toward(toward) if toward else "", hinted, _source_toward("192.0.2.1")]
    own = [item for item in candidates if item and not item.startswith("127.") and _is_local(item)]
    for address in own:
        if torrents.is_private(address):
            return address
    raise SwarmError(
        f"no private IPv4 address for the swarm was found (looked at {', '.join(own) or 'none'}); "
        "give one in hf_cache_swarm_address"
    )


def own_addresses() -> list[str]:
    """Return the private IPv4 addresses of this node: from which of them it will speak is known when it does."""
    try:
        lines = _run(["ip", "-4", "-o", "address", "show", "scope", "global"], "ip").splitlines()
    except SwarmError:
        return []
    found = [line.split()[3].partition("/")[0] for line in lines if len(line.split()) > 3]
    # One is left for the address that it is bound to, which is named beside these.
    return [address for address in found if torrents.is_private(address)][: MAX_ADDRESSES - 1]


def reachable(address: str, port: int) -> str:
    """Return an empty string when `address` accepts on `port`, otherwise why not."""
    try:
        with socket.create_connection((address, port), timeout=CONNECT_TIMEOUT):
            return ""
    except TimeoutError:
        return "timed out"
    except OSError as error:
        return error.strerror or str(error)


def _check_free(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen()
        except OSError as error:
            raise SwarmError(f"port {port} at {address} cannot be used ({error.strerror}); choose another") from error


# Units


def _state(unit: str) -> dict[str, str]:
    keys = ("ActiveState", "SubState", "Result", "ExecMainStatus", "ExecMainCode")
    argv = ["systemctl", "show", unit, *[f"--property={key}" for key in keys]]
    lines = _run(argv, "systemctl").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def alive(unit: str) -> bool:
    """Return whether a unit runs, or is about to again."""
    return _state(unit)["ActiveState"] in ("active", "activating", "reloading")


def _systemctl(verb: str, unit: str) -> None:
    """Ask systemd for what it may refuse: a unit that is not there is as good as stopped."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["systemctl", verb, unit], capture_output=True, check=False, timeout=PATIENCE)


def renew_lease(settings: Settings) -> None:
    """Put off the moment at which the units are stopped for lack of further calls."""
    timer = settings.unit("lease")
    _systemctl("stop", f"{timer}.timer")
    units = [settings.unit("peer"), settings.unit("tracker")]
    _run(torrents.lease_argv(timer, units, settings.lease), "the swarm's lease")


def stop(settings: Settings) -> bool:
    """Stop every unit of the swarm and remove its files; return whether there was anything."""
    units = [f"{settings.unit('lease')}.timer", settings.unit("peer"), settings.unit("tracker")]
    there = settings.run.exists()
    if Path("/run/systemd/system").is_dir():
        there = any(alive(name) for name in units) or there
        # One by one: a unit that is not there makes systemctl leave without the others.
        for name in units:
            _systemctl("stop", name)
            _systemctl("reset-failed", name)
    shutil.rmtree(settings.run, ignore_errors=True)
    with contextlib.suppress(OSError):
        RUN.rmdir()  # unless another swarm has something there
    return there


def origins(folder: Path, blobs: Sequence[str]) -> dict[str, Path]:
    """Return the real paths of `blobs` in `folder`, links followed; raise SwarmError for an absent one.

    Which blobs are asked for is what other nodes have said: nothing but a blob's name is taken for one.
    """
    if bad := [blob for blob in blobs if not BLOB_NAME.fullmatch(blob)]:
        raise SwarmError(f"{bad[0]!r} is no blob's name (40 or 64 hexadecimal digits)")
    with acting_as(owner_of(folder)):
        found = {blob: (folder / blob).resolve() for blob in blobs}
        for blob, origin in found.items():
            if not origin.is_file():
                raise SwarmError(f"blob {blob} is not in {folder}")
    return found


def link_blobs(settings: Settings, found: Mapping[str, Path], owner: Owner) -> None:
    """Make the folder that is shared: links to the blobs. It is `owner`'s, who shares them."""
    share = settings.share / settings.name
    shutil.rmtree(settings.share, ignore_errors=True)
    share.mkdir(parents=True)
    for blob, origin in found.items():
        (share / blob).symlink_to(origin)
    _open_to(settings, owner)


def _open_to(settings: Settings, owner: Owner) -> None:
    """Let the one whose cache it is read what root has put into the swarm's folder, and write beside what is shared."""
    for path in (RUN, settings.run):
        path.chmod(0o755)
    if settings.torrent.exists():
        settings.torrent.chmod(0o644)
    if settings.share.is_dir():
        os.chown(settings.share, owner.uid, owner.gid)


def hashing(settings: Settings, argv: Sequence[str], blobs: Sequence[str]) -> bool:
    """Return whether the mktorrent of a run that was interrupted is still at this very torrent; end it at another one.

    It opens its output before it hashes: with the folder gone it would end well and leave nothing.
    """
    folder = Path(JOBS).expanduser() / f"torrent-{settings.name}"
    job = Job(folder) if folder.is_dir() else None
    running = job.running() if job else None
    if job is None or running is None:
        return False
    share = settings.share / settings.name
    shared = {path.name for path in share.iterdir()} if share.is_dir() else set()
    if running[1] == fingerprint(argv, None, {}) and shared == set(blobs):
        return True
    job.stop(running[0])
    return False


def start_seed(settings: Settings, address: str, owner: Owner) -> torrents.Torrent:
    """Start tracker and first seed, of the torrent that was made; return when both listen. Raises SwarmError."""
    torrent = torrents.read_torrent(settings.torrent.read_bytes())
    for port in (settings.tracker_port, settings.port):
        _check_free(address, port)
    (settings.run / "whitelist").write_text(torrent.info_hash + "\n", encoding="ascii")
    argv = torrents.tracker_argv(address, settings.tracker_port, str(settings.run), "whitelist")
    log = str(settings.run / "tracker.log")
    command = torrents.service_argv(
        settings.unit("tracker"),
        argv,
        seconds=settings.max_runtime,
        log=log,
        peers=(*settings.team, address),
        dynamic=True,
    )
    renew_lease(settings)
    _run(command, "the tracker")
    _save(settings, {"seed": True})
    _open_to(settings, owner)
    _start_peer(settings, address, settings.share, owner, seed="made")
    for part, port in (("tracker", settings.tracker_port), ("peer", settings.port)):
        _await_listening(settings, part, address, port)
    return torrent


def _start_peer(
    settings: Settings, address: str, folder: Path, owner: Owner, *, seed: str, select: Sequence[int] = ()
) -> None:
    argv = torrents.aria2_argv(
        str(settings.torrent), str(folder), address, settings.port, seed=seed, select=select, rate=settings.upload_limit
    )
    command = torrents.service_argv(
        settings.unit("peer"),
        [*owner.command, *argv],
        seconds=settings.max_runtime,
        log=str(settings.log),
        writable=str(folder),
        peers=(*settings.team, address),
    )
    _run(command, "aria2")


def _await_listening(settings: Settings, part: str, address: str, port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    why = ""
    while time.monotonic() < deadline:
        why = reachable(address, port)
        if not why:
            return
        if not alive(settings.unit(part)):
            break
        time.sleep(POLL)
    raise SwarmError(
        f"the {part} does not listen at {address}:{port} ({why}): {_tail(settings.run / f'{part}.log', 300)}"
    )


def join(
    settings: Settings,
    torrent: bytes,
    address: str,
    owner: Owner,
    *,
    seed: str,
    staging: Path | None,
    wanted: Sequence[str],
) -> int:
    """Start a peer that receives `wanted` into `staging`, or with None one that seeds what was linked.

    It runs as `owner`, whose cache it is. `seed` is the address of the first seed, which must be reachable. Returns the
    bytes wanted. Raises SwarmError.
    """
    for port, what in ((settings.tracker_port, "tracker"), (settings.port, "seed")):
        if why := reachable(seed, port):
            raise SwarmError(f"TCP port {port} ({what}) of {seed} cannot be reached from {address} ({why})")
    _check_free(address, settings.port)
    parsed = torrents.read_torrent(torrent)
    torrents.check(parsed, settings.name, f"http://{seed}:{settings.tracker_port}/announce")
    settings.run.mkdir(parents=True, exist_ok=True)
    settings.torrent.write_bytes(torrent)
    _open_to(settings, owner)
    renew_lease(settings)
    if staging is None:
        _save(settings, {"seed": True})
        _start_peer(settings, address, settings.share, owner, seed="held")
        return 0
    total = parsed.size(wanted)
    with acting_as(owner):
        landing, before = _land(staging, settings.name, parsed.info_hash)
    _save(
        settings, {"total": total, "moved": time.monotonic(), "done": -1, "before": min(total, before), "first": None}
    )
    _start_peer(settings, address, landing, owner, seed="no", select=parsed.select(wanted))
    return total


def _land(staging: Path, name: str, info_hash: str) -> tuple[Path, int]:
    """Make the folder for what comes; return the real one above it and the bytes that are there of earlier."""
    make_folder(staging)
    staging = staging.resolve()  # a hub may be a link; the unit's writable path is the real one
    control, note = staging.parent / f"{name}.aria2", staging.parent / f"{name}.torrent-hash"
    _clear_of_others([control, *_below(staging)])
    try:
        known = received.content(note, len(info_hash)) == info_hash.encode()
    except OSError:
        known = False
    if not known:
        # Hashing finds the pieces that are there; a control file of other pieces would be refused.
        remove(control)
        write_text(note, info_hash)
    return staging.parent, allocated_below(staging)


def _below(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # aria2 will say what it cannot do there
        return []


def _clear_of_others(paths: Iterable[Path]) -> None:
    """Remove what aria2 could not write to: what root received there, in folders that are the user's all the same.

    A folder of root's that is not empty cannot be removed by the user: it is put out of the way.
    """
    for path in paths:
        if os.access(path, os.W_OK, effective_ids=True):
            continue
        try:
            remove(path)
        except OSError:
            with contextlib.suppress(OSError):
                if path.name == ".rsync-partial":
                    path.rename(path.with_name(f"{path.name}.{os.urandom(3).hex()}"))


# Following


def _save(settings: Settings, state: dict[str, Any]) -> None:
    (settings.run / "state.json").write_text(json.dumps(state), encoding="ascii")


def _tail(path: Path, count: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - count))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return "no output"


def follow(settings: Settings, seconds: float, stall: float) -> dict[str, Any]:
    """Watch the peer until it has everything, gives up or stands still, at most `seconds`.

    Returns finished, failure (empty, or the end of a sentence), failure_class, done, total, received, rate, peers and
    eta: bytes, bytes a second and seconds.
    """
    deadline = time.monotonic() + seconds
    try:
        state = json.loads((settings.run / "state.json").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return {"finished": False, "failure": "it is not in the swarm (any more)", "failure_class": "unknown"}
    renew_lease(settings)
    if state.get("seed"):
        gone = "" if alive(settings.unit("peer")) else f"the seed ended: {_tail(settings.log, 300)}"
        return {"finished": False, "failure": gone, "failure_class": "unknown" if gone else "", "seed": True}
    renewed = time.monotonic()
    while True:
        if time.monotonic() - renewed > settings.lease / 4:
            renew_lease(settings)
            renewed = time.monotonic()
        running = alive(settings.unit("peer"))
        now = torrents.read_progress(_tail(settings.log, TAIL), state["total"])
        if state["first"] is None and now.first is not None:
            # aria2 first says what it has after up to a second of receiving; more than was on the disk it had not.
            state["first"] = min(now.first, state["before"])
        if now.done > state["done"] or now.first is None:
            state |= {"done": max(now.done, state["done"]), "moved": time.monotonic()}
        failure, kind = _failure(settings, now, running, time.monotonic() - state["moved"], stall)
        if now.seeding or failure or time.monotonic() >= deadline:
            break
        time.sleep(POLL)
    _save(settings, state)
    return {
        "finished": now.seeding,
        "failure": "" if now.seeding else failure,
        "failure_class": "" if now.seeding else kind,
        "done": now.done,
        "total": state["total"],
        "received": max(0, now.done - (state["first"] or 0)),
        "rate": now.rate,
        "peers": now.peers,
        "eta": now.eta,
        "checking": now.first is None and state["first"] is None,
    }


def _failure(settings: Settings, now: torrents.Progress, running: bool, still: float, stall: float) -> tuple[str, str]:
    if not running:
        ended = _state(settings.unit("peer"))
        code = int(ended.get("ExecMainStatus") or 0) or now.code
        if code == torrents.DISK_FULL or "No space left" in now.error:
            return "the disk got full; make room and run again, what has arrived is kept", "disk_full"
        return (
            f"aria2 ended ({ended.get('Result')}, exit code {code}): {now.error or _tail(settings.log, 200)}",
            "unknown",
        )
    if still > stall:
        return (
            f"nothing has arrived for {round(still)} s at {now.done} of {now.total} bytes, with {now.peers} peer(s); "
            "the peers that had the rest are gone or out of reach. Run again: what has arrived is kept",
            "unknown",
        )
    return "", ""
