# SPDX-License-Identifier: Apache-2.0
"""Values of variables that cannot work, read by the functions that the server's module reads them with. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..common.finding import Finding
from ..common.names import wrong_container
from ..common.secrets import is_hidden
from ..container import fields
from ..container.spec import overlap

#: The variables that are judged here, beside those of `inventory`.
VARIABLES = (
    "vllm_server_name",
    "vllm_server_shm_size",
    "vllm_server_restart_policy",
    "vllm_server_ipc_mode",
    "vllm_server_ulimits",
    "vllm_server_revision",
    "vllm_image_tag",
    "vllm_image_digest",
    "ansible_host",
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: Shorter than a commit of the Hub and of no other use: digits alone may be a tag's date.
_SHORT_HASH = re.compile(r"(?=.*[a-f])(?=.*[0-9])[0-9a-f]{7,39}")
#: An address or a name with a port behind it; an IPv6 address has more colons.
_WITH_PORT = re.compile(r"(?P<host>[^:\s\[\]]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
#: A line of YAML: its key, and a value that is a text or a number and no template.
_LINE = re.compile(
    r"""^[ \t]*(?:-[ \t]+)?["']?(?P<key>[A-Za-z_]\w*)["']?[ \t]*:[ \t]+(?P<value>[^\s#].*)$""", re.MULTILINE
)
_NAMES = frozenset({"hf_token", "vllm_server_api_key", "ansible_become_password", "ansible_become_pass"})
#: What stands there for no value, or for one that is elsewhere.
_EMPTY = re.compile(
    r"""(?:""|''|~|null|none|\*+|[{\[]\s*[}\]]|["']?\{\{.*|!vault.*|[|>&*].*)\s*(?:#.*)?""", re.IGNORECASE
)


def judge(values: Mapping[str, Any]) -> list[Finding]:
    """Return what is wrong with one host's ``values``; those that are right are not told."""
    # Of another kind than the role takes: its specification says so.
    values = {
        name: value
        for name, value in values.items()
        if isinstance(value, (list, tuple)) == (name == "vllm_server_ulimits") and not isinstance(value, Mapping)
    }
    return [
        *_parsed(values),
        *(one for check in (_name, _tag, _digest, _revision, _address) if (one := check(values)) is not None),
    ]


def _parsed(values: Mapping[str, Any]) -> list[Finding]:
    readers: dict[str, Callable[[Any], object]] = {
        "shm_size": lambda value: fields.parse_size(value, "shm_size"),
        "restart_policy": lambda value: fields.parse_restart_policy(str(value)),
        "ipc_mode": lambda value: fields.ipc_mode(str(value)),
        "ulimits": lambda value: [fields.parse_ulimit(str(one)) for one in value],
    }
    found = []
    for option, read in readers.items():
        value = values.get(f"vllm_server_{option}")
        if value in (None, ""):
            continue
        try:
            read(value)
        except fields.SpecError as error:
            expected, _, got = str(error).partition(": expected ")[2].rpartition(", got ")
            told = (expected, got) if expected else ("a value that Docker takes", str(error))
            found.append(Finding("refused", f"vllm_server_{option}", *told, "correct the variable"))
    return found


def _name(values: Mapping[str, Any]) -> Finding | None:
    name = values.get("vllm_server_name")
    if name in (None, "") or not wrong_container(str(name)):
        return None
    wanted = "a container's name: letters, digits, _, . and -, two or more, a letter or digit first"
    return Finding("refused", "vllm_server_name", wanted, repr(str(name)[:80]), "correct the variable")


def _tag(values: Mapping[str, Any]) -> Finding | None:
    tag = values.get("vllm_image_tag")
    if isinstance(tag, float):
        # YAML has made a number of it, and 0.30 is then 0.3.
        got = f"the number {tag}, of which a 0 at the end is lost"
        return Finding("refused", "vllm_image_tag", "a text", got, 'quote it: vllm_image_tag: "0.30"')
    return None


def _digest(values: Mapping[str, Any]) -> Finding | None:
    digest = values.get("vllm_image_digest")
    if digest in (None, "") or _DIGEST.fullmatch(str(digest)):
        return None
    wanted = "sha256: and 64 hexadecimal digits"
    remedy = "copy it whole (`docker buildx imagetools inspect IMAGE:TAG` shows it), or set vllm_image_tag alone"
    return Finding("refused", "vllm_image_digest", wanted, f"{str(digest)[:80]!r}", remedy)


def _revision(values: Mapping[str, Any]) -> Finding | None:
    revision = values.get("vllm_server_revision")
    if not isinstance(revision, str) or not _SHORT_HASH.fullmatch(revision):
        return None
    wanted = "a commit of 40 hexadecimal digits"
    got = f"{revision}, which has {len(revision)}"
    remedy = "give it whole, as on the page `Files and versions` of the model; the Hub's caches know no short ones"
    return Finding("refused", "vllm_server_revision", wanted, got, remedy)


def _address(values: Mapping[str, Any]) -> Finding | None:
    found = _WITH_PORT.fullmatch(str(values.get("ansible_host") or ""))
    if not found:
        return None
    remedy = f"write ansible_host: {found['host'].strip('[]')} and ansible_port: {found['port']}"
    return Finding("refused", "ansible_host", "an address without a port", found[0], remedy)


def root(variables: Mapping[str, Any], user: str) -> Finding | None:
    """Judge a host that is told not to become root, and whose connecting ``user`` is not root."""
    asked = variables.get("ansible_become")
    if asked is None or str(asked).lower() not in ("false", "no", "0", "off", "n", "f"):
        return None
    got = f"user {user}, and ansible_become: {str(asked).lower()}"
    remedy = "take ansible_become away (the plays become root where they must), or connect as root"
    return Finding("refused", "root", "root's rights, to install Docker and to run the server", got, remedy)


def doors(
    gateways: Mapping[str, Mapping[str, Any]], servers: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Finding]]:
    """Judge gateways that would listen on a port of a server of the same machine; by the server's host.

    Both have ``address`` and ``bind``; a gateway has ``ports``, by the variables that give them, a server ``port``.
    """
    found: dict[str, list[Finding]] = {}
    for host, server in servers.items():
        for name, gateway in gateways.items():
            bind = "" if gateway["bind"] == "*" else str(gateway["bind"])
            if gateway["address"] != server["address"] or not overlap(bind, str(server["bind"])):
                continue
            for variable, port in gateway["ports"]:
                if port and str(port) == str(server["port"]):
                    got = f"{port} for {name}, which is vllm_server_port of {host} on the same machine"
                    remedy = f"give one of the two another port ({variable} or vllm_server_port)"
                    one = Finding("refused", variable, "a port of its own", got, remedy)
                    found.setdefault(host, []).append(one)
    return found


def in_plain_text(texts: Iterable[tuple[str, str]]) -> list[Finding]:
    """Judge files of variables (name, text) that hold secrets and are not encrypted. No value is ever told."""
    found = []
    for name, text in texts:
        if text.startswith("$ANSIBLE_VAULT"):
            continue
        keys = [
            line["key"] for line in _LINE.finditer(text) if _secret(line["key"]) and not _EMPTY.fullmatch(line["value"])
        ]
        if keys:
            few = list(dict.fromkeys(keys))
            own = all(key.startswith("vault_") for key in few)
            step = f"`ansible-vault encrypt {name}`"
            remedy = step if own else f"move them to a vault.yml beside it and encrypt that, or all of it: {step}"
            more = f" and {len(few) - 3} more" if len(few) > 3 else ""
            got = f"{', '.join(few[:3])}{more} in plain text"
            found.append(Finding("warning", name, "secrets in Ansible Vault", got, remedy))
    return found


def _secret(key: str) -> bool:
    """Return whether a key's value is a secret: the project's, the vault's, and those of an environment (HF_TOKEN)."""
    return key in _NAMES or key.startswith("vault_") or (key.isupper() and is_hidden(key, "x"))
