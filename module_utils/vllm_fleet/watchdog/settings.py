# SPDX-License-Identifier: Apache-2.0
"""The settings of one server's watchdog: what its file says, checked once. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..vllm import pooling
from ..vllm.chat_options import DEFAULTS, REQUEST_SPEC, build_requests
from ..vllm.chat_request import ChatRequest
from ..vllm.endpoint import Endpoint

ACTIONS = ("restart", "drain", "observe")
#: Seconds that a server which hangs has to end by itself: it finishes no request in any time.
GRACE = 5


@dataclass(frozen=True)
class Settings:
    """What one server's watchdog is to do. Times are seconds.

    ``silence`` without a sign of life makes a server hung; ``restarts`` are allowed in an hour; ``agent`` is where the
    gateways ask, None where they do not; ``requests`` verify a server that was restarted.
    """

    name: str
    state_dir: str
    silence: float
    model: str = ""
    action: str = "restart"
    restarts: int = 3
    interval: float = 5.0
    agent: tuple[str, int] | None = None
    docker_socket: str = "/var/run/docker.sock"
    ready_timeout: float = 3600.0
    stall_timeout: float = 900.0
    stop_timeout: int = GRACE
    verify_timeout: float = 120.0
    requests: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def api(self) -> str:
        """The API through which the engine is asked for the least: a model that does not write has no tokens."""
        first = str(self.requests[0].get("api") or "") if self.requests else ""
        return first if first in pooling.PATHS else "completions"


def parse(text: str) -> Settings:
    """Return the settings in a file's ``text``. Raises ValueError, one sentence: what, expected, found."""
    try:
        given = json.loads(text)
    except ValueError as exc:
        raise ValueError(f"the settings are no JSON: {exc}") from None
    if not isinstance(given, dict):
        raise ValueError(f"the settings should be an object, found {type(given).__name__}")
    left = dict(given)
    made: dict[str, Any] = {}
    for name in ("name", "state_dir"):
        made[name] = _text(left, name)
    if "/" in made["name"] or made["name"].startswith("."):
        raise ValueError(f"name should be a container's name, found {made['name']!r}")
    made["silence"] = _number(left, "silence", 1.0)
    for name, least in (("interval", 0.1), ("ready_timeout", 1.0), ("stall_timeout", 1.0)):
        if name in left:
            made[name] = _number(left, name, least)
    for name, lowest in (("restarts", 0), ("stop_timeout", 0)):
        if name in left:
            made[name] = int(_number(left, name, lowest))
    for name in ("docker_socket", "model"):
        if name in left:
            made[name] = _text(left, name)
    action = left.pop("action", "restart")
    if action not in ACTIONS:
        raise ValueError(f"action should be one of {', '.join(ACTIONS)}, found {action!r}")
    made["action"] = action
    made["agent"] = _agent(left.pop("agent", None))
    made.update(_verify(left.pop("verify", None)))
    if left:
        raise ValueError(
            f"the settings have {', '.join(sorted(left))}, which nothing reads: another version wrote them?"
        )
    settings = Settings(**made)
    verification(settings, Endpoint("127.0.0.1", 8000, ()))  # what cannot be sent is found now, not in the night
    return settings


def _text(left: dict[str, Any], name: str) -> str:
    value = left.pop(name, None)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} should be a text, found {value!r}")
    return value


def _number(left: dict[str, Any], name: str, least: float) -> float:
    value = left.pop(name, None)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value < float("inf"):
        raise ValueError(f"{name} should be a number of at least {least:g}, found {value!r}")
    return float(value)


def _agent(given: Any) -> tuple[str, int] | None:
    if given is None:
        return None
    address, port = (given.get("address"), given.get("port")) if isinstance(given, dict) else (None, None)
    if not isinstance(address, str) or not address or not isinstance(port, int) or not 0 < port < 65536:
        raise ValueError(f"agent should have an address and a port, found {given!r}")
    return address, port


def _verify(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    requests = given.get("requests") if isinstance(given, dict) else None
    if not isinstance(requests, list) or not all(isinstance(one, dict) for one in requests):
        raise ValueError(f"verify should have a list of requests, found {given!r}")
    unknown = {key for one in requests for key in one} - {"name", *REQUEST_SPEC}
    if unknown:
        raise ValueError(f"a request of verify has {', '.join(sorted(unknown))}, which no request knows")
    if any("api_key" in one for one in requests):
        raise ValueError(
            "a request of verify has an api_key: the key is read from the container, and stands in no file"
        )
    timeout = {"verify_timeout": _number(dict(given), "timeout", 1.0)} if "timeout" in given else {}
    return {"requests": tuple(requests), **timeout}


def verification(settings: Settings, endpoint: Endpoint) -> list[ChatRequest]:
    """Return the requests that verify the server at ``endpoint``. Raises ValueError, with the name of a wrong one."""
    if not settings.requests:
        return []
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    requests = []
    for one in settings.requests:
        own = {key: value for key, value in one.items() if value is not None}
        if "expect" in own:
            known = {name: option["default"] for name, option in REQUEST_SPEC["expect"]["options"].items()}
            own["expect"] = {**known, **{key: value for key, value in own["expect"].items() if value is not None}}
        requests.append(own)
    names = endpoint.names
    return build_requests(
        {
            **dict.fromkeys(REQUEST_SPEC),
            **DEFAULTS,
            "url": f"http{'s' if endpoint.tls else ''}://{host}:{endpoint.port}",
            "model": settings.model if settings.model in names or not names else names[0],
            "api_key": endpoint.api_key or "",
            "timeout": settings.verify_timeout,
            "requests": requests,
        }
    )
