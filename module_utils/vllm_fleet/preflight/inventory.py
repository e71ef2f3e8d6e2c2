# SPDX-License-Identifier: Apache-2.0
"""Checks of the inventory alone: variables for which no node has to be probed. Pure.

Values in, findings out. Runs on the controller. ``values`` maps a variable's name to its value; one that cannot be had
(a vault variable that is not defined, say) is an :class:`Unset` with the reason. A variable that is not there is not
set at all.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..common import maintenance
from ..common.finding import Finding
from ..common.secrets import kind, scrub, unsendable
from ..container.spec import LOOPBACK
from ..vllm import adapters, host_variables, release_data, releases
from ..vllm.cli import flag_name

#: The variables that the checks read; the controller fetches these.
VARIABLES = (
    "vllm_server_model",
    "vllm_server_variant",
    "vllm_server_features",
    "vllm_server_revision",
    "vllm_server_args",
    "vllm_server_env",
    "vllm_server_adapters",
    "vllm_server_bind",
    "vllm_server_port",
    "vllm_server_api_key",
    "vllm_server_allow_unauthenticated",
    "vllm_server_replica",
    "vllm_image_tag",
    "vllm_image_digest",
    "vllm_image_allow_latest",
    "hf_cache_path",
    "hf_token",
    "rollout_waves",
    "vllm_watchdog_enabled",
    "vllm_watchdog_silence",
    "vllm_watchdog_restarts",
    "vllm_watchdog_port",
)

#: What all hosts of one replica must have in common: they are one server.
OF_A_REPLICA = (
    *("vllm_server_model", "vllm_server_variant", "vllm_server_features", "vllm_server_revision"),
    "vllm_server_adapters",
)

__all__ = [
    "EVERYWHERE",
    "OF_A_REPLICA",
    "VARIABLES",
    "Unset",
    "judge",
    "published",
    "replica",
    "wave",
    "wave_list",
    "waves",
]

#: Some that vLLM 0.32.0 answers without a key (its own help of --api-key says so); the first computes like /v1.
OPEN_PATHS = ("/invocations", "/tokenize", "/scale_elastic_ep", "/metrics")
EVERYWHERE = "*"  # default of gateway_bind
_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


@dataclass(frozen=True)
class Unset:
    """A variable whose value cannot be templated; ``reason`` says why."""

    reason: str


def judge(values: Mapping[str, Any]) -> list[Finding]:
    """Return the findings on one host's variables."""
    # A value that cannot be templated is reported once, and not judged as if it were empty.
    lost = [_lost(name, value.reason) for name, value in values.items() if isinstance(value, Unset)]
    unknown = {name for name, value in values.items() if isinstance(value, Unset)}
    known = {name: value for name, value in values.items() if name not in unknown}
    checks = {
        "vllm_server_model": _model,
        "vllm_image_tag": _tag,
        "hf_cache_path": _cache,
        "vllm_server_bind": _bind,
        "vllm_server_port": _port,
        "vllm_server_args": _utilization,
        "vllm_server_env": _key_in_env,
        "vllm_server_adapters": _adapters,
        "vllm_server_api_key": _key,
        "hf_token": lambda values: _key(values, "hf_token"),
        "vllm_watchdog_silence": _watchdog,
    }
    leans_on = {
        "vllm_server_adapters": "vllm_server_args",
        "vllm_image_tag": "vllm_image_digest",
        "vllm_server_bind": "vllm_server_api_key",
    }
    judged = [
        check(known) for name, check in checks.items() if name not in unknown and leans_on.get(name) not in unknown
    ]
    return [*lost, *(one for one in (*judged, _variables(known)) if one is not None)]


def published(values: Mapping[str, Any], gateways: Mapping[str, Any]) -> Finding | None:
    """Judge a server without a key that gateways without gateway_keys stand in front of, with what each listens on."""
    if isinstance(values.get("vllm_server_api_key"), Unset) or _text(values.get("vllm_server_api_key")):
        return None
    name, bind = next(((name, bind) for name, bind in gateways.items() if bind not in LOOPBACK), ("", None))
    if not name or host_variables.truth(values.get("vllm_server_allow_unauthenticated")):
        return None
    remedy = (
        "set the key (from vault), gateway_keys, gateway_bind: 127.0.0.1, or vllm_server_allow_unauthenticated: true"
    )
    got = f"none, and {name} would publish the server on {bind}"
    return Finding("refused", "vllm_server_api_key", "a key behind a gateway", got, remedy)


def replica(name: str, hosts: Mapping[str, Mapping[str, Any]]) -> Finding:
    """Return the findings on the hosts of one replica, which load one model together."""
    what = f"replica {name}"
    wanted = "one model on all its hosts"
    for variable in OF_A_REPLICA:
        by_value: dict[str, list[str]] = {}
        for host, values in hosts.items():
            by_value.setdefault(_text(values.get(variable)), []).append(host)
        if len(by_value) > 1:
            got = "; ".join(f"{', '.join(names)}: {value or 'none'}" for value, names in by_value.items())
            remedy = f"give these hosts the same {variable}, or another vllm_server_replica"
            return Finding("refused", what, wanted, got, remedy)
    return Finding("ok", what, wanted, next((_text(one.get(OF_A_REPLICA[0])) for one in hosts.values()), ""))


def resting(why: str) -> Finding:
    """Return the finding on a server in maintenance, which a run leaves out; ``why`` as maintenance.look() says it."""
    remedy = "it is left out; playbooks/start.yml ends that"
    return Finding("warning", "maintenance", "", f"in maintenance{maintenance.shown(why)}", remedy)


def wave(given: Any) -> tuple[int, int]:
    """Return a wave as (number of servers, percentage of all), one of them zero. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+)\s*(%?)\s*", str(given))
    number = int(match[1]) if match and not isinstance(given, bool) else 0
    if not match or number < 1 or (match[2] and number > 100):
        raise ValueError(f"{given!r} is no wave")
    return (0, number) if match[2] else (number, 0)


def wave_list(given: Any) -> list[Any]:
    """Return the waves as they were written; a single one needs no brackets."""
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def waves(given: Any) -> Finding:
    """Return the findings on a list of waves: numbers of servers, or percentages of all; the last one is repeated."""
    what, wanted = "rollout_waves", "waves that add up"
    example = "for example [1, '25%', '100%']: a canary, a quarter, the rest"
    entries = wave_list(given)
    if not entries:
        return Finding("refused", what, wanted, "an empty list", f"give numbers and percentages, {example}")
    for place, entry in enumerate(entries, 1):
        try:
            _, percent = wave(entry)
        except ValueError:
            got = f"{scrub(repr(entry))} in {_list(entries)}"
            return Finding(
                "refused", what, wanted, got, f"a wave is 1 or more servers, or 1% to 100% of them, {example}"
            )
        if percent == 100 and place < len(entries):
            got = f"{_list(entries)}, where nothing is left after {entry}"
            remedy = f"put {entry} last, or leave out the {len(entries) - place} after it"
            return Finding("refused", what, wanted, got, remedy)
    return Finding("ok", what, wanted, _list(entries))


def _list(given: Sequence[Any]) -> str:
    return scrub(f"[{', '.join(str(one) for one in given)}]")


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, Unset) else str(value)


def shadowed(folder: str, names: Iterable[str]) -> list[Finding]:
    """Judge the ``names`` in a folder of variables: of a folder and a file for one group Ansible reads the folder.

    ansible-core 2.19 plugins/vars/host_group_vars.py: a folder is found before a file of the same name.
    """
    names = set(names)
    found = []
    for name in sorted(names):
        stem, dot, ending = name.rpartition(".")
        if dot and ending in ("yml", "yaml", "json") and stem in names:
            got = f"it and the folder {stem} beside it, of which Ansible reads the folder alone"
            remedy = f"move it to {folder}/{stem}/main.{ending}"
            found.append(Finding("refused", f"{folder}/{name}", "to be read", got, remedy))
    return found


def orphans(folder: str, names: Iterable[str], known: Iterable[str]) -> list[Finding]:
    """Judge the ``names`` in a folder of variables: nobody reads one that is not of a group, or host, in ``known``.

    Several inventories may share a folder, so it is a warning; a slip of a known name is refused.
    """
    known, whose = set(known), "group" if folder == "group_vars" else "host"
    found = []
    for name in sorted(names):
        stem, dot, ending = name.rpartition(".")
        stem, ending = (stem, f".{ending}") if dot and ending in ("yml", "yaml", "json") else (name, "")
        # Ansible reads none with another ending, and none of an editor.
        if stem in known or (not ending and "." in name) or name.startswith(".") or name.endswith("~"):
            continue
        near = next(iter(difflib.get_close_matches(stem, known, n=1, cutoff=0.8)), "")
        # node3 is no slip of node2.
        slip = bool(near) and re.sub(r"\d", "", near) != re.sub(r"\d", "", stem)
        remedy = (
            f"rename it to {folder}/{near}{ending}" if slip else "rename it, or take it away if no inventory has one"
        )
        got = f"no {whose} {stem}: nobody reads it"
        found.append(Finding("refused" if slip else "warning", f"{folder}/{name}", f"a {whose}'s name", got, remedy))
    return found


def _lost(name: str, reason: str) -> Finding:
    secret = name in ("vllm_server_api_key", "hf_token")
    wanted = "a secret" if secret else "a value"
    remedy = (
        "define it in the inventory's vault (ansible-vault) and pass its password, or set it to an empty text"
        if secret
        else "define it in the inventory, or correct the variable's name"
    )
    return Finding("refused", name, wanted, reason, remedy)


def _model(values: Mapping[str, Any]) -> Finding:
    model = _text(values.get("vllm_server_model"))
    what, wanted = "vllm_server_model", "an exact model id or an absolute path"
    example = "as in the model's address on the Hub (deepseek-ai/DeepSeek-V3.1), or an absolute path on the node"
    if not model:
        return Finding("refused", what, wanted, "not set", f"set the exact id {example}")
    # A name of digits alone is a number that was not meant for it.
    if re.fullmatch(r"[\d.]+", model) or isinstance(values.get("vllm_server_model"), (bool, int, float)):
        return Finding(
            "refused", what, wanted, f"{model}, which is no id such as org/name", f"give the exact id {example}"
        )
    if not model.startswith("/") and not _MODEL.fullmatch(model):
        return Finding("refused", what, wanted, f"'{model}'", f"give the exact id {example}")
    return Finding("ok", what, wanted, model)


def _tag(values: Mapping[str, Any]) -> Finding:
    what, wanted = "vllm_image_tag", "a pinned image"
    tag, digest = _text(values.get("vllm_image_tag")), _text(values.get("vllm_image_digest"))
    if not digest and tag in ("", "latest") and not host_variables.truth(values.get("vllm_image_allow_latest")):
        remedy = "pin a version (vllm_image_tag: v0.31.0) or a digest (vllm_image_digest): latest changes by itself"
        return Finding("refused", what, wanted, f"'{tag}'", remedy)
    return Finding("ok", what, wanted, digest or tag or "latest, allowed")


def _cache(values: Mapping[str, Any]) -> Finding:
    path = _text(values.get("hf_cache_path")) or "~/.cache/huggingface"
    what, wanted = "hf_cache_path", "an absolute path on the node, or one that begins with ~/"
    if not re.match(r"/|~(/|$)", path):
        remedy = "begin it with / or with ~/ (the connecting user's home on the node)"
        return Finding("refused", what, wanted, f"'{path}'", remedy)
    return Finding("ok", what, wanted, path)


def _bind(values: Mapping[str, Any]) -> Finding:
    bind = _text(values.get("vllm_server_bind")) or "127.0.0.1"
    what, wanted = "vllm_server_bind", "loopback, or an API key"
    if bind in LOOPBACK:
        return Finding("ok", what, wanted, bind)
    if _text(values.get("vllm_server_api_key")):
        return _around_the_key(bind, _text(values.get("vllm_server_port", 8000)), values)
    if host_variables.truth(values.get("vllm_server_allow_unauthenticated")):
        return Finding("ok", what, wanted, f"{bind} without a key, allowed")
    remedy = "set the key (from vault), bind to 127.0.0.1, or set vllm_server_allow_unauthenticated: true"
    return Finding("refused", what, wanted, f"{bind}, which others can reach, and no vllm_server_api_key", remedy)


def _around_the_key(bind: str, port: str, values: Mapping[str, Any]) -> Finding:
    """Say which paths of a server with a key are open, and to whom: vLLM checks its key under a few prefixes alone."""
    what, wanted = "vllm_server_bind", "no path without a key"
    if host_variables.truth(values.get("vllm_server_allow_unauthenticated")):
        return Finding("ok", what, wanted, f"{bind}, with a key; the paths that have none are allowed")
    who = "any network of the node" if bind in host_variables.WILDCARDS else f"whoever reaches {bind}"
    got = f"{', '.join(OPEN_PATHS)} and more at port {port}, open to {who} without the key"
    remedy = "let the gateways alone reach the port, by a firewall that looks before Docker does (docs/gateway.md)"
    return Finding("warning", what, wanted, got, remedy)


def _watchdog(values: Mapping[str, Any]) -> Finding | None:
    """Return which number of a watchdog cannot work. That one is no number, the role's specification says."""
    if not host_variables.watched(values):
        return None
    for name, least, most in (("silence", 1, 10**6), ("restarts", 0, 10**6), ("port", 0, 65535)):
        given = _text(values.get(f"vllm_watchdog_{name}"))
        if re.fullmatch(r"-?\d+", given) and not least <= int(given) <= most:
            wanted = f"a number from {least} to {most}"
            return Finding("refused", f"vllm_watchdog_{name}", wanted, given, "correct the variable")
    given, server = _text(values.get("vllm_watchdog_port")), _text(values.get("vllm_server_port"))
    if given and given == (server or str(host_variables.PORT)):
        return Finding("refused", "vllm_watchdog_port", "a port of its own", f"{given}, the server's", "give another")
    return None


def _variables(values: Mapping[str, Any]) -> Finding | None:
    """Return the variables that the image's vLLM passes over without a word to whoever set them; it starts anyway."""
    env, tag = values.get("vllm_server_env"), _text(values.get("vllm_image_tag"))
    wrong = releases.wrong_variables([str(name) for name in env], tag) if isinstance(env, Mapping) else {}
    if not wrong:
        return None
    instead = [release_data.VARIABLES_INSTEAD[name] for name in wrong if name in release_data.VARIABLES_INSTEAD]
    got = ", ".join(f"{name} ({why})" for name, why in wrong.items())
    remedy = "; ".join([*instead, "take out of vllm_server_env what this release does not read"])
    return Finding("warning", "vllm_server_env", f"variables of vLLM {tag}", got, remedy)


def _adapters(values: Mapping[str, Any]) -> Finding | None:
    """Judge the form of the adapters, and their names beside those of lora-modules."""
    args = values.get("vllm_server_args")
    try:
        adapters.lay_over(args if isinstance(args, Mapping) else {}, adapters.parse(values.get(adapters.WHAT)), "")
    except adapters.AdapterError as error:
        return Finding(
            "refused", adapters.WHAT, "adapters", str(error).removeprefix(f"{adapters.WHAT}: "), "correct it"
        )
    return None


def _port(values: Mapping[str, Any]) -> Finding:
    given = values.get("vllm_server_port", 8000)
    what, wanted = "vllm_server_port", "1 to 65535"
    if not re.fullmatch(r"\d{1,5}", str(given)) or not 0 < int(str(given)) < 65536:
        return Finding("refused", what, wanted, f"{given}", "choose a free port, such as 8000")
    return Finding("ok", what, wanted, str(given))


def _utilization(values: Mapping[str, Any]) -> Finding | None:
    args = values.get("vllm_server_args")
    if args is None:
        return None
    if not isinstance(args, Mapping):
        what, wanted = "vllm_server_args", "a mapping of flags"
        return Finding("refused", what, wanted, kind(args), "write it as {max-model-len: 32768}")
    for key, value in args.items():
        if flag_name(str(key)) != "gpu-memory-utilization" or value is None:
            continue
        what, wanted = "gpu-memory-utilization", "above 0 and at most 1"
        try:
            share = float(str(value))
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            remedy = "it is a share of each GPU's memory, such as 0.9 (vllm_server_args)"
            return Finding("refused", what, wanted, str(value), remedy)
        return Finding("ok", what, wanted, str(value))
    return None


def _key(values: Mapping[str, Any], what: str = "vllm_server_api_key") -> Finding | None:
    if not unsendable(_text(values.get(what))):
        return None
    # What it holds stays unsaid.
    got = "characters that no header can carry, such as a blank, or a line break at its end"
    remedy = "make one with `openssl rand -hex 32`" if what == "vllm_server_api_key" else "copy it once more"
    return Finding("refused", what, "printable ASCII", got, remedy)


def _key_in_env(values: Mapping[str, Any]) -> Finding | None:
    env = values.get("vllm_server_env")
    if not isinstance(env, Mapping) or not _text(env.get("VLLM_API_KEY")):
        return None
    remedy = "move it there: verification and gateways ask with that key, and know of no other"
    return Finding("refused", "vllm_server_env", "the key as vllm_server_api_key", "VLLM_API_KEY", remedy)
