# SPDX-License-Identifier: Apache-2.0
"""How a swarm is set up and what its programs print, as values: commands, units, torrents, progress.

The engines are the distribution's own: `mktorrent` makes the torrent, `opentracker` introduces the peers to each other,
`aria2c` moves and checks the pieces. Options and output formats are those of mktorrent 1.1, opentracker of 2021 to 2024
and aria2 1.36 and 1.37 (their manual pages, and recorded output in the unit tests).
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .manifest import BLOB_NAME

PIECE_EXPONENTS = (18, 26)
"""256 KiB to 64 MiB a piece: a peer passes on whole pieces only, and every piece costs 20 bytes of torrent."""

PIECES = 4096
"""Pieces a torrent should have about: enough to overlap receiving and sending, few enough for a small torrent."""

DISK_FULL = 9
"""aria2's exit code for a disk without room (EXIT STATUS in its manual)."""

MAX_PEERS = 256

_READOUT = re.compile(
    r"\[#[0-9a-f]+ (?:SEED\([^)]*\)|(?P<done>\d+)B?/(?P<total>\d+)B?(?:\(\d+%\))?)"
    r"(?: CN:(?P<peers>\d+))?(?: SD:\d+)?(?: DL:(?P<rate>\d+)B?)?(?: UL:(?P<up>\d+)B?(?:\(\d+B?\))?)?"
)
_ERROR = re.compile(r"errorCode=(\d+) (.*)")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


#: What is in a torrent besides its files; others would name more addresses (web seeds, more trackers).
_KEYS = (b"announce", b"created by", b"creation date", b"info")


class SwarmError(Exception):
    """The swarm cannot work on this node; the message is one sentence's end: what, where, and what to do."""


def unit(name: str, part: str) -> str:
    """Return the unit of one part (tracker, peer, lease) of the swarm `name`."""
    return f"vllm-fleet-swarm-{name[:12]}-{part}"


def piece_exponent(total: int) -> int:
    """Return the exponent of two of the piece length in bytes for a torrent of `total` bytes."""
    low, high = PIECE_EXPONENTS
    return min(high, max(low, (max(1, total) // PIECES - 1).bit_length()))


def mktorrent_argv(name: str, announce: str, total: int, folder: str, output: str) -> list[str]:
    """Return the command that makes a private torrent called `name` of everything in `folder`."""
    size = str(piece_exponent(total))
    return ["mktorrent", "-p", "-d", "-v", "-l", size, "-n", name, "-a", announce, "-o", output, folder]


def aria2_argv(
    torrent: str, folder: str, address: str, port: int, *, seed: str, select: Sequence[int] = (), rate: int = 0
) -> list[str]:
    """Return aria2's command for one peer that listens at `address` and `port` only.

    `seed` is no (it receives, then seeds), made (the torrent was made of these very files just now) or held (it has
    the files, to be checked against the torrent first). `select` are the indices from 1 of the files it wants;
    `rate` bounds what it sends, in bytes per second, 0 for no bound.
    """
    argv = ["aria2c", "--no-conf=true", f"--torrent-file={torrent}", f"--dir={folder}", "--follow-torrent=false"]
    argv += [f"--interface={address}", f"--listen-port={port}", "--disable-ipv6=true", "--async-dns=false"]
    argv += ["--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--enable-peer-exchange=false"]
    argv += ["--seed-ratio=0", f"--bt-max-peers={MAX_PEERS}", "--bt-request-peer-speed-limit=10240M"]
    # The tracker's own interval is half an hour: a peer that comes back must be heard of sooner.
    argv += ["--bt-tracker-interval=10", "--bt-tracker-connect-timeout=5", "--bt-tracker-timeout=10"]
    argv += ["--file-allocation=none", "--auto-save-interval=5", "--allow-overwrite=true", "--disk-cache=64M"]
    argv += ["--enable-color=false", "--human-readable=false", "--summary-interval=1", "--console-log-level=notice"]
    argv += [f"--max-upload-limit={rate}"]
    if seed == "made":
        argv.append("--bt-seed-unverified=true")
    else:
        # aria2 would leave instead of seeding with bt-hash-check-seed off.
        argv += ["--check-integrity=true", "--bt-hash-check-seed=true"]
    if select:
        argv.append("--select-file=" + ranges(select))
    return argv


def ranges(numbers: Sequence[int]) -> str:
    """Return numbers as aria2 takes them: 1-3,7."""
    out: list[list[int]] = []
    for number in sorted(set(numbers)):
        if out and out[-1][1] == number - 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in out)


def tracker_argv(address: str, port: int, folder: str, whitelist: str) -> list[str]:
    """Return opentracker's command: TCP at `address` only, and only torrents that `whitelist` in `folder` names."""
    return ["opentracker", "-i", address, "-p", str(port), "-d", folder, "-w", whitelist]


def service_argv(
    name: str,
    argv: Sequence[str],
    *,
    seconds: int,
    log: str,
    writable: str = "",
    peers: Sequence[str] = (),
    dynamic: bool = False,
) -> list[str]:
    """Return the command that starts `argv` as the transient unit `name`, ended after `seconds` at the latest.

    It sees the file system read-only except `writable`, has no right but to read and write others' files there and to
    become another user, and speaks with this machine and `peers` alone.
    A program that dies by a signal is started again and finds its pieces; one that gives up, or whose time is over, is
    not (`on-abnormal` would count the end of RuntimeMaxSec, a `timeout`, as a reason too).
    """
    properties = [
        f"RuntimeMaxSec={seconds}",
        "ProtectSystem=strict",
        "PrivateTmp=yes",
        "NoNewPrivileges=yes",
        "RestrictAddressFamilies=AF_INET AF_UNIX",
        "LimitNOFILE=65536",
        "Restart=on-abort",
        "RestartSec=1",
        f"StandardOutput=append:{log}",
        f"StandardError=append:{log}",
        "IOSchedulingClass=best-effort",
        "IOSchedulingPriority=7",
        "Nice=5",
        "IPAddressDeny=any",
        *(f"IPAddressAllow={address}" for address in ("localhost", *peers)),
    ]
    if dynamic:
        properties += ["DynamicUser=yes", "ProtectHome=yes"]
    else:
        properties.append("CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_SETUID CAP_SETGID")
    if writable:
        properties.append(f"ReadWritePaths={writable}")
    command = ["systemd-run", "--quiet", "--collect", f"--unit={name}"]
    return command + [f"--property={item}" for item in properties] + ["--", *argv]


def lease_argv(name: str, units: Sequence[str], seconds: int) -> list[str]:
    """Return the command that stops `units` in `seconds`, unless the timer unit `name` is stopped before."""
    command = ["systemd-run", "--quiet", "--collect", f"--unit={name}", f"--on-active={seconds}"]
    return [*command, "--timer-property=AccuracySec=1s", "--", "systemctl", "stop", *units]


# Torrents


@dataclass(frozen=True)
class Torrent:
    """A parsed torrent: its info-hash (40 hexadecimal digits) and its files with sizes in bytes, in order.

    `name` is the folder of the files, `announce` the tracker.
    """

    info_hash: str
    files: tuple[tuple[str, int], ...]
    name: str = ""
    announce: str = ""

    def select(self, wanted: Sequence[str]) -> list[int]:
        """Return the indices from 1 of the files in `wanted`; raise SwarmError when it lacks one."""
        index = {name: number for number, (name, _size) in enumerate(self.files, 1)}
        try:
            return [index[name] for name in wanted]
        except KeyError as error:
            raise SwarmError(f"the torrent has no blob {error.args[0]}; run again") from error

    def size(self, wanted: Sequence[str]) -> int:
        """Return the bytes of the files in `wanted`."""
        sizes = dict(self.files)
        return sum(sizes.get(name, 0) for name in set(wanted))


def _decode(data: bytes, at: int, spans: dict[bytes, tuple[int, int]]) -> tuple[Any, int]:
    """Decode one bencoded value at `at`: (value, end); `spans` gets the place of each outermost key's value."""
    kind = data[at : at + 1]
    if kind == b"i":
        end = data.index(b"e", at)
        return _whole(data[at + 1 : end]), end + 1
    if kind == b"l":
        items, at = [], at + 1
        while data[at : at + 1] != b"e":
            item, at = _decode(data, at, {})
            items.append(item)
        return items, at + 1
    if kind == b"d":
        found, at = {}, at + 1
        while data[at : at + 1] != b"e":
            key, at = _decode(data, at, {})
            found[key], end = _decode(data, at, {})
            spans[key] = (at, end)
            at = end
        return found, at + 1
    colon = data.index(b":", at)
    size = _whole(data[at:colon])
    if not 0 <= size <= len(data) - colon - 1:
        # Less than nothing would lead back to what was read, for ever.
        raise ValueError(f"a text of {size} bytes")
    end = colon + 1 + size
    return data[colon + 1 : end], end


def _whole(digits: bytes) -> int:
    if not re.fullmatch(rb"-?[0-9]{1,19}", digits):
        raise ValueError(f"{digits[:20]!r} is no number")
    return int(digits)


_BLOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _blob(path: list[bytes]) -> str:
    """Return the name of a file of a torrent: one word in its folder."""
    if len(path) != 1 or not _BLOB.fullmatch(path[0].decode()):
        raise ValueError(f"{path[:3]!r} is no name of a blob")
    return path[0].decode()


def read_torrent(data: bytes) -> Torrent:
    """Parse a torrent of several files in one folder; raise SwarmError when it is none."""
    spans: dict[bytes, tuple[int, int]] = {}
    try:
        found, end = _decode(data, 0, spans)
        info = found[b"info"]
        files = tuple((_blob(item[b"path"]), int(item[b"length"])) for item in info[b"files"])
        name, announce = info.get(b"name", b"").decode(), found.get(b"announce", b"").decode()
        low, high = spans[b"info"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise SwarmError(f"the torrent cannot be read ({error!r}); run again") from error
    # It came from another node: what else could name a file or an address is not in one that mktorrent has made.
    odd = [key.decode("utf-8", "replace") for key in found if key not in _KEYS]
    odd += [file for file, size in files if size < 0]
    if odd or end != len(data) or len({file for file, _size in files}) != len(files):
        raise SwarmError(
            f"the torrent has {odd[0] if odd else 'more in it'!r}, and files of one folder alone were to be in it"
        )
    # BitTorrent names a torrent by SHA-1; what arrives is checked by its sha256 besides.
    return Torrent(hashlib.sha1(data[low:high], usedforsecurity=False).hexdigest(), files, name, announce)


def check(torrent: Torrent, name: str, announce: str) -> None:
    """Raise SwarmError unless a torrent is of blobs, and has that name and that tracker."""
    if odd := [file for file, _size in torrent.files if not BLOB_NAME.fullmatch(file)]:
        raise SwarmError(f"the torrent has {odd[0][:80]!r}, and blobs alone were to be in it")
    if (torrent.name, torrent.announce) != (name, announce):
        raise SwarmError(
            f"the torrent is of {torrent.name[:60]!r} with the tracker {torrent.announce[:80]!r}, expected {name} with "
            f"{announce}; the seed has made another one"
        )


# Progress


@dataclass(frozen=True)
class Progress:
    """What a peer reports: bytes it has, of how many, bytes a second in and out, peers it is connected to.

    `first` are the bytes it had before it received any in this run, `None` as long as that is being checked.
    """

    done: int = 0
    total: int = 0
    rate: int = 0
    up: int = 0
    peers: int = 0
    first: int | None = None
    seeding: bool = False
    code: int = 0
    error: str = ""

    @property
    def eta(self) -> int | None:
        """Return the seconds left at this rate, None when nothing moves."""
        return -(-(self.total - self.done) // self.rate) if self.rate and self.total else None


def read_progress(log: str, total: int) -> Progress:
    """Return the state of a peer from aria2's console output (as `aria2_argv`asks for it); it wants `total` bytes."""
    now = Progress(total=total)
    first: int | None = None
    for line in _ESCAPES.sub("", log).splitlines():
        if error := _ERROR.search(line):
            # Trouble with the tracker is no trouble for peers that know each other, so it only counts at the end.
            now = Progress(now.done, total, 0, now.up, now.peers, first, now.seeding, int(error[1]), error[2].strip())
            continue
        found = _READOUT.match(line.strip())
        if not found or "Checksum" in line:
            continue
        up, peers = int(found["up"] or 0), int(found["peers"] or 0)
        if found["done"] is None:
            first = total if first is None else first
            now = Progress(total, total, 0, up, peers, first, True, now.code, now.error)
            continue
        if not int(found["total"]):
            continue
        done = int(found["done"])
        first = done if first is None else first
        now = Progress(done, total, int(found["rate"] or 0), up, peers, first, False, now.code, now.error)
    return now


def is_private(address: str) -> bool:
    """Return whether an IPv4 address is of a network that the Internet does not reach."""
    try:
        return not ipaddress.IPv4Address(address).is_global
    except ValueError:
        return False
