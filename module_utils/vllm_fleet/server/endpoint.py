# SPDX-License-Identifier: Apache-2.0
"""Where a server answers and what it must serve: as the options say, or read out of an existing container. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from ..container import spec
from ..container.inspected import Inspected, command_line, environment
from ..vllm import cli
from ..vllm.endpoint import Endpoint, reachable
from .options import ServerOptions


def of_options(options: ServerOptions) -> Endpoint | None:
    """Return where the server answers from its own node and what it must serve; None for a headless rank."""
    if options.headless:
        return None
    key = options.api_key or options.env.get("VLLM_API_KEY")
    return Endpoint(
        host=reachable(options.bind),
        port=options.port,
        names=tuple(cli.served_names(options.flags, options.model)),
        root=options.model,
        api_key=str(key) if key else None,
    )


def of_container(container: Inspected) -> Endpoint | None:
    """Return the same for any existing container; None when it has no reachable port.

    Where `vllm serve` stands in a script, its model is not known, and whatever the server lists is right.
    """
    started = cli.started(command_line(container))
    flags = started.command.flags
    if flags.get("headless"):
        return None
    place = _place(container, flags, in_script=started.in_script)
    if place is None:
        return None
    key = cli.first(flags.get("api-key")) or environment(container).get("VLLM_API_KEY")
    model = started.command.model
    return Endpoint(
        *place,
        names=() if started.in_script else tuple(cli.served_names(flags, model or "")),
        root=None if started.in_script else model,
        api_key=key or None,
        tls="ssl-certfile" in flags,
    )


def _place(container: Inspected, flags: Mapping[str, cli.FlagValue], *, in_script: bool) -> tuple[str, int] | None:
    """Return address and port on the node; a script may listen on any port, so the only published one is its."""
    host = container.get("HostConfig") or {}
    flag = str(flags.get("port", ""))
    inner = flag if flag.isdigit() else str(spec.CONTAINER_PORT)
    if host.get("NetworkMode") == "host":
        return reachable(str(flags.get("host") or "127.0.0.1")), int(inner)
    published = {port: at for port, at in (host.get("PortBindings") or {}).items() if at and port.endswith("/tcp")}
    bindings = published.get(f"{inner}/tcp") or []
    if not bindings and in_script and len(published) == 1:
        (bindings,) = published.values()
    if not bindings:
        return None
    return reachable(bindings[0].get("HostIp") or "127.0.0.1"), int(bindings[0].get("HostPort") or "0")
