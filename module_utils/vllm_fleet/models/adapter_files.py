# SPDX-License-Identifier: Apache-2.0
"""adapter_config.json of LoRA adapters: in a node's cache, else on the Hub, and what speaks against it."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common import received
from ..common.finding import Finding
from ..vllm import adapters
from ..vllm.adapters import Adapter
from ..weights import layout

#: Seconds for the Hub's answer, and bytes of it; the file has one or two thousand.
TIMEOUT, MOST = 15.0, 1 << 20
HUB = "https://huggingface.co"


def findings(wanted: Sequence[Adapter], asked: Mapping[str, Any], model: str, cache: Path | None) -> list[Finding]:
    """Return the findings on the files of adapters, one by one.

    ``asked``: ``args`` of the server, ``hub`` (whether the Hub may be asked), ``endpoint`` and ``token``.
    """
    found: list[Finding] = []
    for one in wanted:
        try:
            config = _cached(one, cache)
            if config is None and asked.get("hub"):
                config = _of_hub(one, str(asked.get("endpoint") or ""), str(asked.get("token") or ""))
        except _Told as told:
            found.append(told.finding)
            continue
        except layout.SnapshotError as error:
            found.append(Finding("refused", f"adapter {one.name}", "a repository", str(error), "correct its repo"))
            continue
        # Of one that is brought from elsewhere the server's own check reads it, before anything stops.
        if config is not None:
            found += adapters.judge_file(one, config, asked.get("args") or {}, model, asked.get("served") or ())
    return found


def read(folder: Path) -> object:
    """Return the JSON in a folder's adapter_config.json, None without one. Raises ValueError for what is none."""
    try:
        return received.parsed(received.content(folder / adapters.CONFIG))
    except FileNotFoundError:
        return None


def _cached(one: Adapter, cache: Path | None) -> object:
    if cache is None:
        return None
    layout.check_repo_id(one.repo)
    try:
        return read(layout.Repository(cache, one.repo).snapshot(one.revision))
    except OSError:
        return None  # nobody's but root's; the server's own check reads it
    except ValueError as error:
        raise _Told(one, "refused", f"{adapters.CONFIG} that is no JSON ({error})", "bring it in again") from None


class _Told(Exception):
    """A finding instead of a file."""

    def __init__(self, one: Adapter, level: str, got: str, remedy: str) -> None:
        super().__init__(got)
        self.finding = Finding(level, f"adapter {one.name}", f"{one.repo} on the Hub", got, remedy)


def _of_hub(one: Adapter, endpoint: str, token: str) -> object:
    """Ask the Hub for the file at the commit. Raises _Told with the cause where it gives none."""
    base = (endpoint or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    if not base.startswith(("https://", "http://")):
        raise _Told(one, "unknown", f"an address {base} that is none", "correct hf_cache_hub_endpoint")
    request = urllib.request.Request(f"{base}/{one.repo}/resolve/{one.revision}/{adapters.CONFIG}")  # noqa: S310
    if token:
        # Not to where the Hub redirects to: large files lie elsewhere.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            return received.parsed(answer.read(MOST))
    except urllib.error.HTTPError as error:
        raise _refusal(one, error, token) from None
    except (OSError, http.client.HTTPException) as error:
        said = str(getattr(error, "reason", error))[:120]
        remedy = "nothing is to be done where another machine fetches it (hf_cache_source)"
        raise _Told(one, "unknown", f"no answer ({said})", remedy) from None
    except ValueError as error:
        raise _Told(one, "refused", f"{adapters.CONFIG} that is no JSON ({error})", "correct its repo") from None


def _refusal(one: Adapter, error: urllib.error.HTTPError, token: str) -> _Told:
    """Return what the Hub's status means; how it words causes: X-Error-Code (huggingface_hub, utils/_http.py)."""
    code = str(error.headers.get("X-Error-Code") or "")[:40]
    if code == "GatedRepo" or error.code == 403:
        remedy = "accept its licence on its page, and give that account's token (hf_token, from vault)"
        return _Told(one, "refused", "a gated repository", remedy)
    if code == "RevisionNotFound":
        return _Told(one, "refused", f"no commit {one.revision[:12]}", "correct its revision")
    if code == "EntryNotFound":
        return _Told(one, "refused", f"no {adapters.CONFIG}, so it is no adapter", "correct its repo or revision")
    if code == "RepoNotFound" or error.code in (401, 404):
        who = "its owners alone, and not to this token" if token else "its owners alone (hf_token, from vault)"
        return _Told(one, "refused", f"none, or one that the Hub shows to {who}", "correct its repo")
    return _Told(one, "unknown", f"HTTP {error.code}", "ask again later")


def judged(folders: Mapping[str, Path], args: Mapping[str, Any], model: str) -> list[Finding]:
    """Return the findings on adapters that are to be loaded from folders of this node, by name; absence is one."""
    found: list[Finding] = []
    for name, folder in folders.items():
        one = Adapter(name, str(folder), "")
        try:
            config = read(folder)
        except (OSError, ValueError) as error:
            found.append(
                Finding("refused", f"adapter {name}", "a file", f"{adapters.CONFIG} ({error})", "bring it in again")
            )
            continue
        if config is None:
            got, remedy = f"no {adapters.CONFIG} in {folder}", "run the role hf_cache (--tags stage)"
            found.append(Finding("refused", f"adapter {name}", "its files", got, remedy))
        else:
            found += adapters.judge_file(one, config, args, model)
    return found


def worst(found: Sequence[Finding]) -> Finding | None:
    """Return the first refusal; None without one."""
    return next((one for one in found if one.level == "refused"), None)
