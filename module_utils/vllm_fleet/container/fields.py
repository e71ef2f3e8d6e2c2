# SPDX-License-Identifier: Apache-2.0
"""One option's value each, read and in one spelling: sizes, devices, groups, capabilities, limits. Pure."""

from __future__ import annotations

import itertools
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)i?b?\s*$", re.I)
#: ``source[:target][:permissions]`` of a device, as `docker run --device` takes it.
_DEVICE = re.compile(r"(/[^:]*)(?::(/[^:]*))?(?::([rwm]+))?")
#: Docker's names of limits (go-units ulimit.go).
_ULIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio"),
    *("rttime", "sigpending", "stack"),
)
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
#: The largest number of a CPU that Linux can be built for.
_MAX_NUMBER = 8191
_IPC_MODES = ("host", "private", "shareable", "none")
#: What Go reads as a boolean.
_TRUE, _FALSE = frozenset({"1", "t", "true"}), frozenset({"0", "f", "false"})
#: The largest id of a group (Docker and runc use 32 bits with a sign).
_MAX_ID = 2**31 - 1
_RESTART_POLICY = re.compile(r"(no|always|unless-stopped|on-failure)|on-failure:(\d+)")
#: Linux' capabilities by their numbers (linux/capability.h; the last one came with 5.9).
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
ALL_CAPABILITIES = ("ALL",)


class SpecError(ValueError):
    """An option is wrong; the text says which, what was expected, what was got and what to do."""


@dataclass(frozen=True)
class Ulimit:
    """A resource limit; -1 is unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True)
class NodeFacts:
    """What the spec needs to know of the node.

    ``gids``: numeric ids of the groups video and render and of the device nodes' owners; None entries are left out.
    ``hf_hub_target``: where ``<hf_cache>/hub`` really is when it is a symbolic link, which a container could not
    follow. ``groups``: numeric ids of those groups that the options name, as far as the node has them.
    """

    gids: tuple[int, ...] = ()
    hf_hub_target: str | None = None
    groups: Mapping[str, int] = field(default_factory=dict)


#: AMD's and vLLM's documented `docker run` line for ROCm, plus what the engine asks for on start:
#: docs.vllm.ai installation/gpu (rocm) and rocm.docs.amd.com vLLM inference pages; nofile from vLLM 0.32.0
#: utils/system_utils.py:255; memlock unlimited for RDMA and pinned memory.
ROCM_DEVICES = ("/dev/dri", "/dev/kfd")
ROCM_IPC_MODE = "host"
ROCM_CAPABILITIES = ("SYS_PTRACE",)
ROCM_SECURITY_OPTS = ("seccomp=unconfined",)
ROCM_ULIMITS = (Ulimit("memlock", -1, -1), Ulimit("nofile", 65535, 65535))


def parse_size(value: object, option: str) -> int | None:
    """Read a size such as ``16g`` or ``16GiB`` into bytes; None stays None."""
    if value is None or value == "":
        return None
    match = _SIZE.match(str(value))
    if not match:
        raise SpecError(f"{option}: expected a size such as 16g, got {value!r}")
    return int(float(match.group(1)) * _UNITS[match.group(2).lower()])


def security_options(given: Sequence[object]) -> list[str]:
    """Write security options in one way: ``name=value``, for Docker keeps the spelling that it was given."""
    words = set()
    for item in map(str, given):
        name, equals, value = (item if "=" in item else item.replace(":", "=", 1)).partition("=")
        if name == "no-new-privileges":
            if value.lower() in _FALSE:
                continue  # as if it were not there
            value = "true" if not equals or value.lower() in _TRUE else value
            equals = "="
        words.add(f"{name}{equals}{value}")
    return sorted(words)


def parse_numbers(text: object, option: str) -> tuple[int, ...]:
    """Read numbers as Docker and Linux write sets of CPUs, such as ``0-3,8``. Raises SpecError."""
    found: set[int] = set()
    for part in str(text).split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last > _MAX_NUMBER:
            raise SpecError(f"{option}: expected numbers such as 0-3,8, got {str(text)!r}")
        found |= set(range(first, last + 1))
    return tuple(sorted(found))


def numbers_text(numbers: Iterable[int]) -> str:
    """Write numbers in the same way, the shortest: 0, 1, 2, 3 and 8 are ``0-3,8``."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def parse_device(text: str) -> str:
    """Read ``source[:target][:permissions]``; see :func:`device` for what it gives."""
    match = _DEVICE.fullmatch(text)
    if not match:
        raise SpecError(f"devices: expected /dev/name[:/path/in/the/container][:rwm], got {text!r}")
    return device(match[1], match[2] or match[1], match[3] or "rwm")


def device(source: str, target: str, permissions: str) -> str:
    """Write a device in one way: by its path alone where the container has it there with all permissions."""
    source, target = posixpath.normpath(source), posixpath.normpath(target)
    permissions = "".join(one for one in "rwm" if one in permissions)
    return source if (target, permissions) == (source, "rwm") else f"{source}:{target}:{permissions}"


def capability_names(names: Sequence[object]) -> list[str]:
    """Write capabilities in one way, as ``SYS_PTRACE``; what stands beside ``ALL`` is in it."""
    found = {str(name).upper().removeprefix("CAP_") for name in names}
    return list(ALL_CAPABILITIES) if "ALL" in found else sorted(found)


def parse_restart_policy(value: str) -> str:
    """Read Docker's restart policy; ``on-failure`` may have a number of attempts behind a colon."""
    match = _RESTART_POLICY.fullmatch("no" if value == "False" else value)  # YAML reads a bare no as false
    if not match:
        raise SpecError(
            f"restart_policy: expected no, always, unless-stopped, on-failure or on-failure:<attempts>, got {value!r}"
        )
    attempts = int(match[2] or 0)
    return match[1] or ("on-failure" + (f":{attempts}" if attempts else ""))


def parse_ulimit(value: str) -> Ulimit:
    """Read ``name=soft[:hard]``; ``-1`` and ``unlimited`` mean no limit."""
    name, equals, numbers = value.partition("=")
    soft, _, hard = numbers.partition(":")
    try:
        if not name or not equals:
            raise ValueError
        low = -1 if soft == "unlimited" else int(soft)
        high = low if not hard else (-1 if hard == "unlimited" else int(hard))
    except ValueError:
        raise SpecError(f"ulimits: expected name=soft[:hard], got {value!r}") from None
    name = name.lower()
    if name not in _ULIMITS:
        raise SpecError(f"ulimits: expected one of {', '.join(_ULIMITS)}, got {name!r}")
    if high != -1 and not 0 <= low <= high:
        raise SpecError(f"ulimits: {name}: expected a soft limit that is not above the hard one, got {value!r}")
    return Ulimit(name, low, high)


def capabilities(given: Sequence[str]) -> tuple[str, ...]:
    """Return capabilities in one spelling. Raises SpecError for one that Linux does not have."""
    names = capability_names(given)
    unknown = [name for name in names if name not in (*CAPABILITIES, *ALL_CAPABILITIES)]
    if unknown:
        import difflib  # noqa: PLC0415  only for this sentence

        near = difflib.get_close_matches(unknown[0], CAPABILITIES, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise SpecError(
            f"capabilities: expected names such as SYS_PTRACE (man 7 capabilities), got {unknown[0]!r}{hint}"
        )
    return tuple(names)


def groups(wanted: Sequence[str] | None, node: NodeFacts, *, rocm: bool) -> tuple[str, ...]:
    """Return numeric ids: a name would be looked up in the image, where it may be missing or mean another group."""
    given = ([str(gid) for gid in node.gids] if rocm else []) if wanted is None else wanted
    missing = [one for one in given if not _is_number(one) and one not in node.groups]
    if missing:
        raise SpecError(
            f"groups: expected groups of this node, by name or number (`getent group`), got {', '.join(missing)}"
        )
    large = [one for one in given if _is_number(one) and int(one) > _MAX_ID]
    if large:
        raise SpecError(f"groups: expected a number up to {_MAX_ID}, got {', '.join(large)}")
    return tuple(sorted({str(int(one) if _is_number(one) else node.groups[one]) for one in given}))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def ulimits(given: Sequence[str] | None, *, rocm: bool) -> tuple[Ulimit, ...]:
    """Return limits by their names. Raises SpecError for two of one name."""
    if given is None:
        return ROCM_ULIMITS if rocm else ()
    found = sorted({parse_ulimit(v) for v in given}, key=lambda u: u.name)
    for one, other in itertools.pairwise(found):
        if one.name == other.name:
            raise SpecError(f"ulimits: expected one limit for {one.name}, got two")
    return tuple(found)


def devices(given: Sequence[str]) -> tuple[str, ...]:
    """Return devices in one spelling. Raises SpecError for two at one path of the container."""
    found = sorted({parse_device(d) for d in given})
    places = [d.split(":")[1] if ":" in d else d for d in found]
    for place in places:
        if places.count(place) > 1:
            both = " and ".join(d for d, at in zip(found, places, strict=True) if at == place)
            raise SpecError(f"devices: expected one device at {place}, got {both}")
    return tuple(found)


def ipc_mode(given: str | None) -> str | None:
    """Docker itself looks at it only when it starts the container."""
    if given and given not in _IPC_MODES and not given.startswith("container:"):
        raise SpecError(f"ipc_mode: expected {', '.join(_IPC_MODES)} or container:<name>, got {given!r}")
    return given


def security_opts(given: Sequence[str]) -> tuple[str, ...]:
    """Return security options in one spelling. Raises SpecError for a seccomp profile that Docker cannot read."""
    found = security_options(given)
    for item in found:
        name, _, value = item.partition("=")
        if name == "seccomp" and value not in ("", "unconfined", "builtin") and not _is_json(value):
            raise SpecError(
                "security_opts: seccomp: expected unconfined or the profile itself as JSON (only the docker command "
                f"reads a path), got {value[:60]!r}"
            )
    return tuple(found)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
