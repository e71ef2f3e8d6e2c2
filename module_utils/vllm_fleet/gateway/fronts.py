# SPDX-License-Identifier: Apache-2.0
"""At which ports a gateway listens, and which pools are behind each. Pure.

A model of gateway_ports has a port of its own. gateway_port is the address of all models, if one of them has no other.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..vllm.host_variables import WILDCARDS, bracketed, truth

# One segment after the other, without escapes and without dots that climb. The end says whether more may follow.
SEGMENTS = r"(/[A-Za-z0-9_:@~-][A-Za-z0-9._:@~-]*)+"
# A name with these would end the quotes that it stands in, in the configuration or in a body.
NO_ALIAS = re.compile(r"[\x00-\x1f\x7f-\x9f'\"\\]")
BALANCES = ("prefix", "session", "leastconn")


def local_port(port: int, offset: int) -> int:
    """Return the port on loopback that belongs to a front's port."""
    return port + offset if port + offset < 65536 else port - offset


def fronts(
    pools: list[dict[str, Any]], port: int, ports: Mapping[str, int], offset: int, problems: list[str]
) -> list[dict[str, Any]]:
    """Return the fronts of a gateway, give each pool its `port` and `local_port`, add what is wrong to ``problems``.

    A front is `name`, `port`, `local_port`, `pools`, whether all of them are `closed`, and the pool that gets what
    names no known model (`default`; empty where that would be a guess).
    """
    shared = [pool for pool in pools if pool["model"] not in ports]
    for pool in pools:
        pool["port"] = int(ports.get(pool["model"], port))
        pool["local_port"] = local_port(pool["port"], offset)
    made = [_front(f"front-{pool['name']}", [pool], pool["name"], offset) for pool in pools if pool not in shared]
    if shared:
        name = f"front-{shared[0]['name']}" if len(shared) == 1 else "front-all-models"
        behind = [*shared, *(pool for pool in pools if pool not in shared)]
        made.insert(0, _front(name, behind, shared[0]["name"] if len(shared) == 1 else "", offset))
    _refuse_twice(made, problems)
    problems.extend(
        f"gateway_ports names {model}, which no host of group vllm serves; served are "
        f"{', '.join(pool['model'] for pool in pools) or 'none'}."
        for model in ports
        if model not in {pool["model"] for pool in pools}
    )
    return made


def _front(name: str, pools: Sequence[Mapping[str, Any]], default: str, offset: int) -> dict[str, Any]:
    port = pools[0]["port"]
    closed = all(pool["closed"] for pool in pools)
    return {
        "name": name,
        "port": port,
        "local_port": local_port(port, offset),
        "pools": pools,
        "closed": closed,
        "default": default,
    }


def _refuse_twice(made: Iterable[Mapping[str, Any]], problems: list[str]) -> None:
    """A port has one front."""
    taken: dict[int, str] = {}
    for front in made:
        model = front["pools"][0]["model"]
        numbers = (front["port"], front["local_port"])
        number = next((one for one in numbers if one in taken), None)
        if number is not None:  # of two fronts on one port their ports on loopback are one, too
            problems.append(
                f"{taken[number]} and {model} would both be on port {number} of the gateway: give each its own in "
                f"gateway_ports, such as {{{model}: {number + 1}}}, or leave both out of it to share gateway_port."
            )
        taken |= dict.fromkeys(numbers, model) | taken


def asked(pool: Mapping[str, Any]) -> list[str]:
    """Return the names of a pool that a request may have: of its model, of its adapters, and aliases of these."""
    return [*served(pool), *pool.get("aliases", [])]


def served(pool: Mapping[str, Any]) -> list[str]:
    """Return the names of a pool that its servers know: of its model, and of its adapters."""
    return [*pool["names"], *pool.get("adapters", [])]


def same_names(pools: Sequence[Mapping[str, Any]], split: Iterable[str] = ()) -> list[str]:
    """Return which pools cannot be told apart, as sentences: by their backend, or by a name that a request may have and
    that ``split`` does not share out.
    """
    backends = [pool["base"] for pool in pools]
    found = [
        f"{pool['model']} and another model are both {pool['base']} to HAProxy: give one another served-model-name."
        for pool in pools
        if backends.count(pool["base"]) > 1
    ]
    for number, pool in enumerate(pools):
        for other in pools[:number]:
            found.extend(
                f"{other['model']} and {pool['model']} both serve the name {name}, so a request could mean either: "
                "take it out of one served-model-name, give each model its own port in gateway_ports, or give each a "
                "share in gateway_split."
                for name in sorted({*served(pool)}.intersection(served(other)))
                if pool["port"] == other["port"] and name not in split
            )
    return found


def splits(
    pools: Iterable[Mapping[str, Any]], split: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Return for each name of ``split`` the pools and the number of a throw from 0 to 99 that each begins below."""
    by_model = {pool["model"]: pool["name"] for pool in pools if not pool.get("kept")}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, shares in split.items():
        below = 0
        for model, share in shares.items() if isinstance(shares, Mapping) else ():
            if model in by_model and _is_share(share):
                below += int(share)
                found.setdefault(name, []).append({"pool": by_model[model], "below": below})
    return found


def odd_splits(pools: Sequence[Mapping[str, Any]], split: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with gateway_split, as sentences."""
    found: list[str] = []
    for name, shares in split.items():
        if not isinstance(shares, Mapping):
            found.append(
                f"gateway_split: {name} needs its models with a share each, such as {{org/old: 90, org/new: 10}}."
            )
            continue
        serving = [pool["model"] for pool in pools if name in pool["names"]]
        found.extend(
            f"gateway_split: {model} does not serve {name}; {', '.join(serving) or 'none'} does: add it to its "
            "served-model-name."
            for model in shares
            if model not in serving
        )
        if not all(map(_is_share, shares.values())) or sum(map(int, shares.values())) != 100:
            found.append(f"gateway_split: the shares of {name} are not whole numbers that add up to 100.")
    return found


def aliases(pools: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return for each name that ``pools`` serve its aliases in ``given``, which is gateway_aliases."""
    known = {name for pool in pools for name in served(pool)}
    found: dict[str, list[str]] = {}
    for alias, model in given.items():
        if str(model) in known:
            found.setdefault(str(model), []).append(str(alias))
    return found


def odd_aliases(pools: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with gateway_aliases, as sentences."""
    known = [name for pool in pools for name in served(pool)]
    found = []
    for alias, model in given.items():
        if not alias or NO_ALIAS.search(str(alias)) or NO_ALIAS.search(str(model)):
            found.append(
                f"gateway_aliases: {alias!r} or {model!r} has quotes, a backslash or control characters, or nothing at "
                "all: use another name."
            )
        elif str(alias) in known:
            found.append(
                f"gateway_aliases: {alias} is the name of a model that is served, so a request could mean either: "
                "take it out of gateway_aliases, or out of served-model-name or lora-modules."
            )
        elif str(model) not in known:
            found.append(
                f"gateway_aliases: {alias} stands for {model}, which no host of group vllm serves; served are "
                f"{', '.join(sorted(set(known))) or 'none'}."
            )
    return found


def _is_share(share: Any) -> bool:
    return str(share).isascii() and str(share).isdigit()


def path_pattern(paths: Iterable[str]) -> str:
    """Return the expression for the paths that a gateway lets pass: those below /v1/, and ``paths`` (with a slash at
    the end: everything below).
    """
    more = [re.escape(path[:-1]) + SEGMENTS + "/?" if path.endswith("/") else re.escape(path) for path in paths]
    return f"^({'|'.join([f'/v1{SEGMENTS}/?', *more])})$"


def odd_paths(paths: Iterable[Any]) -> list[str]:
    """Return which of gateway_paths are no paths, as sentences."""
    return [
        f"gateway_paths has {path!r}: give a path such as /tokenize, or /v2/ for all that is below it, without escapes."
        for path in paths
        if not re.fullmatch(f"{SEGMENTS}/?", str(path))
    ]


def listing(pools: Iterable[Mapping[str, Any]]) -> str:
    """Return the answer of /v1/models at an address of several models, as vLLM words it."""
    roots: dict[str, str] = {}
    for pool in pools:
        for name in asked(pool):
            roots.setdefault(name, pool["model"])
    data = [
        {"id": name, "object": "model", "created": 0, "owned_by": "vllm", "root": root, "parent": None}
        for name, root in roots.items()
    ]
    return json.dumps({"object": "list", "data": data})


def known_models(pools: Iterable[Mapping[str, Any]]) -> str:
    """Return the names that a request may have, for a sentence inside of JSON."""
    return json.dumps(", ".join(dict.fromkeys(name for pool in pools for name in asked(pool))))[1:-1]


def form_field(names: Iterable[str]) -> str:
    """Return the expression that finds one of ``names`` as the field `model` of a form, as uploads of sound have it."""
    return rf'name="?model"?\r\n([^\r\n]+\r\n)*\r\n({"|".join(map(re.escape, names))})\r\n'


def odd_http2(http2: Any, certificate: Any) -> list[str]:
    """Return what is wrong with gateway_http2, as sentences."""
    if not truth(http2) or certificate:
        return []
    return [
        "gateway_http2 is true, but there is no gateway_certificate, and clients agree on HTTP/2 only within TLS: set "
        "gateway_certificate, or gateway_http2: false."
    ]


def server_ids(names: Iterable[str]) -> dict[str, int]:
    """Return a number for each server that depends on its name alone: a consistent hash places servers by it.

    Where two names meet, the one that is later in the alphabet moves on by one.
    """
    found: dict[str, int] = {}
    for name in sorted(names):
        number = zlib.crc32(name.encode()) % (2**31 - 2) + 1
        while number in found.values():
            number = number % (2**31 - 2) + 1
        found[name] = number
    return found


def urls(
    made: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], *, name: str, bind: str, vip: str, tls: bool
) -> list[str]:
    """Return where clients ask a gateway, one text for each front; of several the model behind those with one.

    ``variables`` are the gateway's own, ``name`` is its host, ``vip`` the shared address with its prefix, or empty.
    """
    own = str(variables.get("gateway_address") or variables.get("ansible_host") or name)
    host = vip.partition("/")[0] or (own if bind in ("*", *WILDCARDS) else bind)
    return [
        f"{'https' if tls else 'http'}://{bracketed(host)}:{front['port']}/v1"
        + (f" ({front['pools'][0]['model']})" if len(made) > 1 and len(front["pools"]) == 1 else "")
        for front in made
    ]
