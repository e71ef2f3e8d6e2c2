"""Where a server answers and what it must serve: from options, or read out of an existing container."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..container import spec
from ..vllm import cli, readiness
from .preconditions import reachable


def headless(options: Mapping[str, Any]) -> bool:
    """Tell whether this is a rank without a port: a worker of a server over several nodes."""
    return cli.normalise_args(options.get("args") or {}).get("headless") is True


def endpoint(options: Mapping[str, Any]) -> readiness.Endpoint | None:
    """Say where the server answers from its own node and what it must serve; None for a headless rank."""
    if headless(options):
        return None
    model = str(options["model"])
    flags = cli.normalise_args(options.get("args") or {})
    served = flags.get("served-model-name")
    names = tuple(served) if isinstance(served, list) else (str(served),) if served else (model,)
    key = options.get("api_key") or (options.get("env") or {}).get("VLLM_API_KEY")
    return readiness.Endpoint(
        host=reachable(str(options["bind"])),
        port=int(options["port"]),
        names=names,
        root=model,
        api_key=str(key) if key else None,
    )


def endpoint_of(container: Mapping[str, Any]) -> readiness.Endpoint | None:
    """Read the same out of an existing container, whoever made it; None when it has no reachable port.

    Where `vllm serve` stands in a script, its model is not known, and whatever the server lists is right.
    """
    config, host = container.get("Config") or {}, container.get("HostConfig") or {}
    words = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
    head, tail = cli.split_entrypoint(words)
    parsed = cli.parse(tail if head else _in_a_script(words) or tail)
    if parsed.flags.get("headless"):
        return None
    env = dict(str(item).partition("=")[::2] for item in config.get("Env") or [])
    served = parsed.flags.get("served-model-name") or parsed.model or ""
    key = _first(parsed.flags.get("api-key")) or env.get("VLLM_API_KEY")
    inner = str(parsed.flags.get("port", ""))
    inner = inner if inner.isdigit() else str(spec.CONTAINER_PORT)
    published = {p: b for p, b in (host.get("PortBindings") or {}).items() if b and p.endswith("/tcp")}
    if host.get("NetworkMode") == "host":
        address, port = str(parsed.flags.get("host") or "127.0.0.1"), inner
    else:
        bindings = published.get(f"{inner}/tcp") or []
        if not bindings and not head and len(published) == 1:
            (bindings,) = published.values()
        if not bindings:
            return None
        address, port = bindings[0].get("HostIp") or "127.0.0.1", bindings[0].get("HostPort") or "0"
    return readiness.Endpoint(
        reachable(address),
        int(port),
        (tuple(served) if isinstance(served, list) else (str(served),)) if head else (),
        root=parsed.model if head else None,
        api_key=str(key) if key else None,
        tls="ssl-certfile" in parsed.flags,
    )


def _in_a_script(words: Sequence[str]) -> list[str]:
    """Find what follows `vllm serve` in a shell's text; variables in it stay what they are."""
    import shlex  # noqa: PLC0415  nearly no container needs it

    for word in words:
        with contextlib.suppress(ValueError):
            head, tail = cli.split_entrypoint(shlex.split(word))
            if head:
                return tail
    return []


def demand_of(container: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Read out of an existing container what decides over its GPU memory: ``options`` with its own, and its command."""
    config, host = container.get("Config") or {}, container.get("HostConfig") or {}
    words = cli.split_entrypoint([*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])])[1]
    flags = {name: value for name, value in cli.parse(words).flags.items() if name not in cli.RESERVED_FLAGS}
    env = dict(str(item).partition("=")[::2] for item in config.get("Env") or [])
    devices = [str(device.get("PathOnHost")) for device in host.get("Devices") or []]
    policy = options["gpu_memory_policy"] if devices or host.get("Privileged") or host.get("DeviceRequests") else "off"
    return {**options, "args": flags, "env": env, "devices": devices, "gpu_memory_policy": policy}, words


def _first(value: cli.FlagValue | None) -> str | None:
    """Give a flag's value, of several the first."""
    return value[0] if isinstance(value, list) else value if isinstance(value, str) else None
