# SPDX-License-Identifier: Apache-2.0
"""Asks a vLLM server over HTTP whether it is ready, in two requests."""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from dataclasses import dataclass

from ..common import exchange
from ..common.received import parsed
from .endpoint import Endpoint

#: Seconds for one request. A loading server refuses at once, a ready one answers in milliseconds.
REQUEST_TIMEOUT = 3.0


@dataclass(frozen=True)
class Answer:
    """``ready``; or ``wrong``: it serves something else than it should; or neither: not yet, ``detail`` says what.

    ``locked``: it is up and wants another key than the endpoint's.
    """

    ready: bool = False
    wrong: bool = False
    locked: bool = False
    detail: str = ""


def ask(endpoint: Endpoint, timeout: float = REQUEST_TIMEOUT) -> Answer:
    """Ask /health, then /v1/models, each within ``timeout`` seconds. Never raises.

    Refused, reset, empty and slow answers all mean "not yet": the port opens only after the load, and Docker's own
    proxy may accept a connection before that (vLLM 0.32.0 entrypoints/launchers/launcher.py binds early, listens late).
    """
    try:
        status, _ = _get(endpoint, "/health", timeout)
        if status != 200:
            return Answer(detail=f"/health answers {status}")
        status, body = _get(endpoint, "/v1/models", timeout)
    except (OSError, http.client.HTTPException) as exc:
        return Answer(detail=f"{type(exc).__name__}: {exc}".rstrip(": "))
    except ValueError:  # its text holds the header
        return Answer(detail="the API key cannot be sent in a header: expected printable ASCII without spaces")
    if status in (401, 403):
        # One whose make is not known is up, and more cannot be asked of it.
        return Answer(ready=not endpoint.names, locked=True, detail=f"/health answers 200 but /v1/models {status}")
    if status != 200:
        return Answer(detail=f"/health answers 200 but /v1/models {status}")
    return judge_models(body, endpoint.names, endpoint.root)


def page(endpoint: Endpoint, path: str, timeout: float = REQUEST_TIMEOUT) -> str:
    """Read a page such as /metrics. Raises OSError, ValueError when it does not answer 200, within ``timeout``."""
    try:
        status, body = _get(endpoint, path, timeout)
    except http.client.HTTPException as exc:
        raise OSError(f"{path}: {exc}") from exc
    if status != 200:
        raise ValueError(f"{path} answers {status}")
    return body.decode(errors="replace")


def judge_models(body: bytes, names: Sequence[str], root: str | None) -> Answer:
    """Judge /v1/models' answer: a served name (of ``names``, if any) must be listed, and started from ``root``."""
    try:
        data = parsed(body)["data"]
        served = {str(item["id"]): item.get("root") for item in data}
    except (ValueError, KeyError, TypeError, AttributeError):
        return Answer(wrong=True, detail=f"/v1/models is not a model list: {body[:120]!r}")
    for name in names or served:
        if name in served:
            if root is not None and not same_root(served[name], root):
                return Answer(wrong=True, detail=f"{name} is served from {served[name]}, expected {root}")
            return Answer(ready=True)
    expected, got = " or ".join(names) or "a model", ", ".join(served) or "no model at all"
    return Answer(wrong=True, detail=f"expected {expected}, got {got}")


def same_root(served: object, wanted: str) -> bool:
    """Return whether a served model's ``root`` is the model that was asked for.

    With HF_HUB_OFFLINE vLLM replaces a Hub id by the snapshot's folder (vLLM 0.32.0 engine/arg_utils.py); servers that
    do not name a root are believed.
    """
    if served is None or served == wanted:
        return True
    folder = "/models--" + wanted.replace("/", "--") + "/snapshots/"
    return folder in str(served)


def connection(endpoint: Endpoint, timeout: float) -> http.client.HTTPConnection:
    """Return a connection to the server, not yet made, of which nothing is waited for after ``timeout`` seconds."""
    context = None
    if endpoint.tls:
        import ssl  # noqa: PLC0415  only a server of other make speaks HTTPS by itself

        # Its certificate is for the name that its clients use, not for the address that is asked here.
        context = ssl._create_unverified_context()  # noqa: S323
    return exchange.Connection(endpoint.host, endpoint.port, exchange.Deadline(timeout), context=context)


def _get(endpoint: Endpoint, path: str, timeout: float) -> tuple[int, bytes]:
    asked = connection(endpoint, timeout)
    try:
        headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        asked.request("GET", path, headers=headers)
        response = asked.getresponse()
        return response.status, response.read(1 << 20)
    finally:
        asked.close()
