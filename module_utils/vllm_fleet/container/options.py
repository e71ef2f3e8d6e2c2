# SPDX-License-Identifier: Apache-2.0
"""The options that a server's container is made of, parsed once. Pure.

Everything below a module's ``main()`` reads these values; what the user wrote is not read a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..vllm import cli


@dataclass(frozen=True, kw_only=True)
class ContainerOptions:
    """The module's options with their types; None where the default depends on the node or on the image.

    ``flags`` are the arguments of ``vllm serve`` in their one spelling (see ``cli.normalise_args``). ``args_problem``
    is the sentence that says why they cannot be read, then ``flags`` is empty; a start is refused with it.
    ``rocm``: the server uses AMD GPUs. ``given_gpus`` (indices on the node) and ``cpuset`` (``0-3,8``) are what it was
    given of a node that it shares, see host/place.py; devices and variables that follow are among the others already.
    """

    name: str = "vllm"
    image: str = ""
    allow_latest: bool = False
    model: str = ""
    revision: str | None = None
    flags: Mapping[str, cli.FlagValue | None] = field(default_factory=dict, repr=False)
    args_problem: str = ""
    env: Mapping[str, object] = field(default_factory=dict, repr=False)
    entrypoint: tuple[str, ...] | None = None
    port: int = 8000
    bind: str = "127.0.0.1"
    allow_unauthenticated: bool = False
    hf_cache: str | None = None
    rocm: bool = True
    given_gpus: tuple[int, ...] | None = None
    cpuset: str | None = None
    devices: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    ipc_mode: str | None = None
    shm_size: str | None = None
    capabilities: tuple[str, ...] | None = None
    security_opts: tuple[str, ...] | None = None
    ulimits: tuple[str, ...] | None = None
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    network_mode: str = "bridge"
    restart_policy: str = "unless-stopped"
    stop_timeout: int = 60
    api_key: str | None = field(default=None, repr=False)
    hf_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> ContainerOptions:
        """Return the options out of a module's ``params``; what is missing or null has the module's default."""
        return cls(**container_fields(params))

    @property
    def headless(self) -> bool:
        """Whether this is a rank without a port: a worker of a server over several nodes."""
        return self.flags.get("headless") is True


def container_fields(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of :class:`ContainerOptions`, by name, out of a module's ``params``."""
    given = {name: value for name, value in params.items() if value is not None}
    fields: dict[str, Any] = {"rocm": given.get("accelerator", "rocm") == "rocm"}
    for name in ("name", "image", "model", "bind", "restart_policy"):
        if name in given:
            fields[name] = str(given[name])
    if "bind" in fields:
        fields["bind"] = canonical_address(fields["bind"])
    network = str(given.get("network_mode") or "bridge")
    fields["network_mode"] = "bridge" if network == "default" else network
    for name in ("revision", "hf_cache", "ipc_mode", "shm_size", "api_key", "hf_token"):
        fields[name] = str(given[name]) if given.get(name) else None
    for name in ("devices", "groups", "capabilities", "security_opts", "ulimits"):
        fields[name] = _words(given[name]) if name in given else None
    for name in ("port", "stop_timeout"):
        if name in given:
            fields[name] = int(given[name])
    for name in ("allow_latest", "allow_unauthenticated"):
        fields[name] = bool(given.get(name))
    fields["entrypoint"] = _words(given["entrypoint"]) if given.get("entrypoint") else None
    fields["volumes"] = _words(given.get("volumes") or ())
    fields["env"] = {str(name): value for name, value in (given.get("env") or {}).items()}
    fields["labels"] = {str(name): str(value) for name, value in (given.get("labels") or {}).items()}
    try:
        fields["flags"] = cli.normalise_args(given.get("args") or {})
    except cli.CommandError as error:
        fields |= {"flags": {}, "args_problem": str(error)}
    return fields


def canonical_address(text: str) -> str:
    """Write an IPv6 address in its one short form; any other text stays as it is."""
    if ":" not in text:
        return text
    import ipaddress  # noqa: PLC0415  nearly no run needs it

    try:
        return ipaddress.ip_address(text.strip("[]")).compressed
    except ValueError:
        return text


def _words(values: Any) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
