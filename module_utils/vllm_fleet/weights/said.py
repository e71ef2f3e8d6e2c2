# SPDX-License-Identifier: Apache-2.0
"""What a node says and what becomes part of a command, a path or an address on another: each value has a form, or none.

A node that is broken or in other hands may say anything. Nothing here is believed for where it came from: a value of
another form is refused, with the node's name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .layout import is_commit
from .manifest import BLOB_NAME

MAX_ADDRESSES = 16
"""Addresses that one node may name as its own."""

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}\$?")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
_FOLDER = re.compile(r"/tmp/hf_cache\.[0-9a-f]{8}\.[A-Za-z0-9]{8}")  # noqa: S108  as mktemp has made it
_EXPIRY = re.compile(r"[0-9]{12}")
_KEY = re.compile(r"(?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]{1,60} [A-Za-z0-9+/]{16,4096}={0,3}")
_AS_OWNER = re.compile(
    r"setpriv (?:--reuid [0-9]{1,10} )?--regid [0-9]{1,10} "
    r"(?:--clear-groups|--keep-groups|--groups [0-9]{1,10}(?:,[0-9]{1,10})*)"
)


class NotOfItsForm(ValueError):
    """A node said something that cannot be what it was asked for; the message is one sentence."""


def _refuse(host: str, what: str, got: object, form: str) -> NotOfItsForm:
    shown = repr(got) if len(repr(got)) <= 80 else repr(got)[:77] + "..."
    return NotOfItsForm(
        f"{host} says {shown} for {what}, expected {form}; nothing was done with it. Look at what that node runs."
    )


@dataclass(frozen=True)
class _Form:
    """What a line is, its form, and that in words."""

    what: str
    form: re.Pattern[str]
    in_words: str


_OFFERING_USER = _Form("its user", _USER, "a user's name")
_MADE = _Form("its folder", _FOLDER, "a folder in /tmp that mktemp has made")
_UNTIL = _Form("the end of its offer", _EXPIRY, "12 digits")


def _line(lines: Sequence[str], number: int, form: _Form, host: str) -> str:
    got = lines[number] if number < len(lines) else ""
    if not isinstance(got, str) or not form.form.fullmatch(got):
        raise _refuse(host, form.what, got, form.in_words)
    return got


@dataclass(frozen=True)
class Offer:
    """What a seed offers by rsync: its user, the folder of the offer, when its keys run out, what they may run."""

    user: str
    folder: str
    until: str
    command: str
    host_keys: tuple[str, ...]


def offer(lines: Sequence[str], host: str) -> Offer:
    """Parse what the offer on the seed `host` has printed. Raises NotOfItsForm."""
    user, folder, until = (_line(lines, at, form, host) for at, form in enumerate((_OFFERING_USER, _MADE, _UNTIL)))
    served = re.compile(rf"(?:sudo -n )?rsync --config={re.escape(folder)}/rsyncd\.conf --server --daemon \.")
    serve = _line(lines, 3, _Form("the command of its offer", served, "rsync with the offer's settings"), host)
    keys = []
    for line in lines[4:]:
        words = line.split(" ")
        if len(words) < 3 or words[0] != "seed" or not _KEY.fullmatch(" ".join(words[1:3])):
            raise _refuse(host, "a host key", line, "seed, a kind and a key in base64")
        keys.append(" ".join(words[:3]))
    if not keys:
        raise _refuse(host, "its host keys", list(lines[4:]), "at least one")
    return Offer(user, folder, until, serve, tuple(keys))


@dataclass(frozen=True)
class Key:
    """The folder of an SSH key that was made for one copy, and its public part."""

    folder: str
    public: str


def key(lines: Sequence[str], host: str) -> Key:
    """Parse what the making of a key on `host` has printed. Raises NotOfItsForm."""
    folder = _line(lines, 0, _MADE, host)
    got = lines[1] if len(lines) > 1 else ""
    public = " ".join(str(got).split(" ")[:2])
    if not _KEY.fullmatch(public) or "\n" in got:
        raise _refuse(host, "its public key", got, "a kind and a key in base64")
    return Key(folder, public)


def commit(found: object, host: str, wanted: str = "") -> str:
    """Return a commit that `host` names for the revision `wanted`. Raises NotOfItsForm."""
    if not isinstance(found, str) or not is_commit(found) or (is_commit(wanted) and found != wanted):
        raise _refuse(
            host, "the commit of the snapshot", found, wanted if is_commit(wanted) else "40 hexadecimal digits"
        )
    return found


def blobs(found: Iterable[object], known: Iterable[str] | None = None) -> list[str]:
    """Return the names of blobs among what a node asks for, sorted; with `known` only those."""
    names = {name for name in found if isinstance(name, str) and BLOB_NAME.fullmatch(name)}
    return sorted(names if known is None else names & set(known))


def listed(manifest: object) -> list[str]:
    """Return the names of blobs in a file list as it travels."""
    files = manifest.get("files") if isinstance(manifest, Mapping) else None
    entries = files.values() if isinstance(files, Mapping) else ()
    return blobs(entry.get("blob") for entry in entries if isinstance(entry, Mapping))


def address(found: object, host: str) -> str:
    """Return an IP address that `host` says is its own. Raises NotOfItsForm."""
    try:
        parsed = ipaddress.ip_address(found if isinstance(found, str) else "")
    except ValueError:
        raise _refuse(host, "its address", found, "an IP address") from None
    if parsed.is_unspecified or parsed.is_multicast:
        raise _refuse(host, "its address", found, "an IP address of one machine")
    return str(parsed)


def addresses(found: Iterable[object], host: str) -> list[str]:
    """Return private IP addresses that `host` says are its own. Raises NotOfItsForm."""
    own = [address(item, host) for item in found]
    if bad := [item for item in own if ipaddress.ip_address(item).is_global] or own[MAX_ADDRESSES:]:
        raise _refuse(host, "its addresses", bad[0], f"at most {MAX_ADDRESSES} of private networks")
    return own


def host_name(found: object, host: str) -> str:
    """Return an address or a name by which a host is reached. Raises NotOfItsForm."""
    try:
        return address(found, host)
    except NotOfItsForm:
        if isinstance(found, str) and _HOST.fullmatch(found):
            return found
        raise


def as_owner(words: Sequence[Any], host: str) -> list[str]:
    """Return the words by which a node's command runs as the owner of its cache, or none. Raises NotOfItsForm."""
    if words and not (all(isinstance(word, str) for word in words) and _AS_OWNER.fullmatch(" ".join(words))):
        raise _refuse(host, "the owner of its cache", list(words), "setpriv with ids")
    return list(words)
