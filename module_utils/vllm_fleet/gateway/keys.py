# SPDX-License-Identifier: Apache-2.0
"""Which clients get in: gateway_keys as the map that HAProxy looks a key's hash up in. Pure.

A line of the map is `SHA-256 NAME|REQUESTS PER MINUTE|CONCURRENT|,POOL,POOL,`; 0 is no limit, `*` every pool.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..common.secrets import unsendable
from ..vllm.host_variables import LOOPBACK, WILDCARDS
from .fronts import asked

# Without the separators of the map and of HAProxy's command line.
NAME = re.compile(r"[A-Za-z0-9_.@:-]{1,60}")
LIMITS = ("requests_per_minute", "concurrent")
FIELDS = ("name", "key", "models", *LIMITS)
# HAProxy counts up to here.
MOST = 2**31 - 1
FLEET = "fleet"


def problems(keys: Sequence[Mapping[str, Any]], pools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with gateway_keys, as sentences that show no key. ``pools`` are those of pools_behind."""
    found: list[str] = []
    served = sorted({name for pool in pools for name in asked(pool)})
    names = [str(entry.get("name") or "") for entry in keys]
    secrets = [str(entry.get("key") or "") for entry in keys]
    for number, (entry, name, secret) in enumerate(zip(keys, names, secrets, strict=True), 1):
        who = f"gateway_keys: {name}" if name else f"gateway_keys: entry {number}"
        if not NAME.fullmatch(name):
            found.append(f"{who} needs a name of letters, digits and _.@:- alone, at most 60 of them.")
        elif names.index(name) < number - 1:
            found.append(f"{who} is there twice: give each key a name of its own.")
        if not secret or unsendable(secret):
            found.append(
                f"{who} has no key, or one that no header can carry: use printable ASCII without blanks "
                "(`openssl rand -hex 32` gives such a key)."
            )
        elif secrets.index(secret) < number - 1:
            found.append(f"{who} has the key of {names[secrets.index(secret)]}: give each client a key of its own.")
        found.extend(f"{who} has {field}, which means nothing here: known are {', '.join(FIELDS)}."
                     for field in entry if field not in FIELDS)  # fmt: skip
        for limit in LIMITS:
            if not _is_limit(entry.get(limit)):
                found.append(f"{who} has {limit} {entry[limit]!r}: give a whole number of at least 1, or leave it out.")
        models = entry.get("models")
        if models is not None and (isinstance(models, str) or not isinstance(models, Sequence) or not models):
            found.append(f"{who} needs a list of models that are served, or none for all of them.")
            continue
        found.extend(
            f"{who} may use {model}, which no host of group vllm serves; served are {', '.join(served) or 'none'}."
            for model in models or []
            if model not in served
        )
    return found


def _is_limit(value: Any) -> bool:
    """Whether a limit is left out, or a count that HAProxy can compare."""
    text = "1" if value is None else str(value)
    return text.isascii() and text.isdigit() and 1 <= int(text) <= MOST


def digest(key: str) -> str:
    """Return a key's SHA-256 as HAProxy's `sha2(256),hex` writes it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest().upper()


def key_map(
    secrets: Mapping[str, str], pools: Sequence[Mapping[str, Any]], keys: Sequence[Mapping[str, Any]], before: str = ""
) -> str:
    """Return the text of the map. Without ``keys`` each server's own key opens its pool, and its other generations.

    ``secrets`` are the servers' keys by backend. ``before`` is the map that the gateway has: who could use a generation
    that is kept goes on to.
    """
    lines: dict[str, str] = {}
    if keys:
        could = {key: value.rpartition("|")[2] for key, value in _entries(before).items()}
        for entry in keys:
            limits = [str(int(entry.get(limit) or 0)) for limit in LIMITS]
            wanted, held = entry.get("models"), could.get(digest(str(entry["key"])), "")
            may = [
                pool["name"]
                for pool in pools
                if (wanted and set(asked(pool)).intersection(wanted))
                or (pool.get("kept") and (held == "*" or f",{pool['name']}," in held))
            ]
            value = "|".join([str(entry["name"]), *limits, f",{','.join(may)}," if wanted else "*"])
            lines[digest(str(entry["key"]))] = value
    else:
        opened: dict[str, list[str]] = {}
        for pool in pools:
            if secrets[pool["name"]]:
                opened.setdefault(digest(secrets[pool["name"]]), []).extend(
                    other["name"] for other in pools if other is pool or _is_akin(pool, other)
                )
        lines = {key: f"{FLEET}|0|0|,{','.join(dict.fromkeys(names))}," for key, names in opened.items()}
    return "".join(f"{key} {value}\n" for key, value in sorted(lines.items()))


def _is_akin(pool: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two pools are generations of one: one of them is kept, and they share a name."""
    one, two = ({each["name"], *each.get("heirs", ())} for each in (pool, other))
    return (
        bool(pool.get("kept") or other.get("kept"))
        and bool(one & two)
        and bool(set(asked(pool)).intersection(asked(other)))
    )


def changes(before: str, after: str) -> list[str]:
    """Return what a new map changes, as sentences without a key: `alice: added`, `bob: limits 60|4 instead of 0|0`."""
    old, new = _entries(before), _entries(after)
    found = []
    for key in sorted({*old, *new}, key=lambda key: (new.get(key, old.get(key, "")), key)):
        was, now = old.get(key), new.get(key)
        if was is None or now is None:
            name = (now or was or "").partition("|")[0]
            found.append(f"{name}: {'added' if was is None else 'removed'}")
        elif was != now:
            found.append(f"{now.partition('|')[0]}: {now} instead of {was}")
    return found


def _entries(text: str) -> dict[str, str]:
    return {line.partition(" ")[0]: line.partition(" ")[2] for line in text.splitlines()}


def doors(
    hostvars: Mapping[str, Any], fronts: Iterable[Mapping[str, Any]], keys: Sequence[Mapping[str, Any]], bind: str
) -> list[dict[str, Any]]:
    """Return where a gateway listens, as `host` and `port` on itself, with a `key` that must open it.

    The key is empty where a front has a pool that is open to all.
    """
    host = LOOPBACK if bind in ("*", *WILDCARDS) and bind != "::" else {"::": "::1"}.get(bind, bind)
    found = []
    for front in fronts:
        names = {name for pool in front["pools"] for name in asked(pool)}
        fitting = [entry["key"] for entry in keys if not entry.get("models") or names.intersection(entry["models"])]
        own = [hostvars[pool["head"]].get("vllm_server_api_key") for pool in front["pools"]]
        key = next(iter(fitting if keys else own), "") if front["closed"] else ""
        found.append({"host": host, "port": front["port"], "key": str(key)})
    return found
