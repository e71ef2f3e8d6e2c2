# SPDX-License-Identifier: Apache-2.0
"""The releases of one container on a node: one JSON file each, written whole or not at all."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common import durable
from ..container import compare
from ..container.spec import CONTAINER_PORT
from ..vllm import host_variables, metrics, readiness
from ..vllm.endpoint import Endpoint
from ..weights import layout, snapshot
from . import release
from .release import Record
from .state import NodeState

FOLDER = "releases"
_NAME = re.compile(r"[0-9]{6,9}\.json")


class Releases:
    """The folder ``<state_dir>/<name>/releases``. Reading never creates anything."""

    def __init__(self, node: NodeState) -> None:
        """Remember where; nothing is read yet."""
        self.node = node
        self.folder = node.folder / FOLDER

    def all(self) -> list[Record]:
        """Every readable record, oldest first. One that is damaged or from a newer version is passed over."""
        found = []
        for path in self.files():
            record = self.read(path)
            if record:
                found.append(record)
        return found

    def serving(self, container: str, spec: Mapping[str, Any] | None) -> Record | None:
        """Find the record of a container as it is now. Nearly always the newest file, so the others stay unread."""
        newest = max(self.files(), default=None)
        record = self.read(newest) if newest else None
        if record and record["container"]["id"] == container:
            return release.serving([record], container, spec)
        return release.serving(self.all(), container, spec)

    def newest(self) -> int | None:
        """Return the number of the newest release that can be read; None without one."""
        records = self.all()
        return int(records[-1]["release"]) if records else None

    def keep(
        self,
        container: Mapping[str, Any],
        spec: Mapping[str, Any],
        image_digests: frozenset[str],
        given: Mapping[str, Any],
    ) -> tuple[Record, Record | None]:
        """Write down that this container was verified. Returns its record, and the release before it.

        The same release again writes nothing. Old records go only after the new one is on the disk.
        """
        records = self.all()
        known = release.serving(records, str(container["Id"]), spec)
        if known is None:
            number = 1 + max((int(path.stem) for path in self.files()), default=0)
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            commit = commit_of(spec)
            made = release.build(number, container, spec, sorted(image_digests), commit, given, now)
            known, own = release.place(records, made)
            self.node.write(self._file(known["release"]), known)
            records = [*records, known] if own else [*records[:-1], known]
            for number in release.expendable(records, known):
                self._file(number).unlink(missing_ok=True)
        before = [record for record in records if record["release"] < known["release"]]
        return known, before[-1] if before else None

    def note(self, number: int, figures: Mapping[str, Any]) -> None:
        """Write figures into a record that can be read. Raises OSError."""
        record = self.read(self._file(number))
        if record is not None:
            self.node.write(self._file(number), {**record, "figures": dict(figures)})

    def files(self) -> list[Path]:
        """Return the files of all records, readable or not, oldest first; what else lies there is nobody's."""
        try:
            return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def unreadable(self) -> list[int]:
        """Return the numbers of the records that are there and cannot be read."""
        return [int(path.stem) for path in self.files() if self.read(path) is None]

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def read(self, path: Path) -> Record | None:
        """Return the record in a file, secrets of older versions hidden; None for one that cannot be read."""
        with contextlib.suppress(OSError, KeyError, TypeError, AttributeError):
            record = durable.read(path) or {}
            if record["format"] <= release.FORMAT and record["container"]["id"] and record["spec"]:
                # An older version wrote some values that count as secrets today, such as a proxy's with a password.
                return {**record, "spec": compare.hide(record["spec"], self._redact)}
        return None

    def _redact(self, value: str) -> str:
        return compare.fingerprint(self.node.fingerprint_key(create=False))(value)


def images(state_dir: Path) -> tuple[set[str], list[Path]]:
    """Ids of the images that the recorded releases of all containers of a node need, and the records that do not say.

    A damaged record, or one of a newer version, may name the last good image: who removes images has to know of it.
    Raises OSError where a folder may not be read.
    """
    found: set[str] = set()
    silent: list[Path] = []
    for folder in sorted(state_dir.iterdir()) if state_dir.is_dir() else []:
        kept = Releases(NodeState(str(state_dir), folder.name))
        for path in kept.files():
            record = kept.read(path)
            named = [(record.get("image") or {}).get("id"), record["spec"].get("image_id")] if record else []
            ids = {str(one) for one in named if one}
            found |= ids
            if not ids:
                silent.append(path)
    return found, silent


def commit_of(spec: Mapping[str, Any]) -> str | None:
    """Which commit of the model a container serves; None for a folder, or where the cache does not say."""
    model, revision, cache = str(spec.get("model") or ""), str(spec.get("revision") or "main"), spec.get("hf_cache")
    if not model or model.startswith("/"):
        return None
    if layout.is_commit(revision):
        return revision
    with contextlib.suppress(OSError, ValueError):
        return snapshot.resolve(layout.Repository(Path(str(cache)), model), revision)[0] if cache else None
    return None


def standing(where: Endpoint | None, timeout: float = 2.0) -> dict[str, Any]:
    """Return how a server is: ``health`` (ready, wrong, not ready), why, and its running and waiting requests."""
    found: dict[str, Any] = {"health": "not ready", "detail": "no port", "running": None, "waiting": None}
    if where is None:
        return found
    answer = readiness.ask(where, timeout)
    found |= {"health": "ready" if answer.ready else "wrong" if answer.wrong else "not ready", "detail": answer.detail}
    if answer.ready:
        with contextlib.suppress(OSError, ValueError):
            load = metrics.load(readiness.page(where, "/metrics", timeout))
            found |= {"running": load.running, "waiting": load.waiting}
    return found


def inside_url(spec: Mapping[str, Any]) -> str:
    """Where a server listens inside its container; with the node's own network that is its ``bind`` and ``port``."""
    if spec.get("network_mode") != "host":
        return f"http://127.0.0.1:{CONTAINER_PORT}"
    return host_variables.url(str(spec.get("bind") or host_variables.LOOPBACK), spec.get("port") or CONTAINER_PORT)


def engine_caches(node: NodeState, records: Sequence[Record]) -> list[str]:
    """Compile caches of these releases, without those that other containers of the node use too.

    Each is a folder, and the file beside it that says for what it was filled (engine_cache.note).
    """
    own = {str(node.engine_cache(str(r["image"]["id"]), str(r["model"]["id"]))) for r in records}
    for folder in node.root.glob(f"*/{FOLDER}"):
        other = NodeState(str(node.root), folder.parent.name)
        if other.folder != node.folder:
            own -= {
                str(other.engine_cache(str(r["image"]["id"]), str(r["model"]["id"]))) for r in Releases(other).all()
            }
    return sorted(one for path in own for one in (path, f"{path}.json") if Path(one).exists())
