# SPDX-License-Identifier: Apache-2.0
"""What an engine compiled, on its way to another node: whose it fits, what travels, what arrives.

A key names what compiled code was made for: the image's content, the kind of GPU, the host's CPU, the model, arguments
and environment. vLLM keeps results apart by a hash of its own, which knows environment, configuration, its code and
what Inductor says of the device (vLLM 0.32.0 compilation/backends.py:1036), but not the host's CPU, for which Inductor
compiles C++ with -march=native. So nothing goes from a node to another unless both make the same key, and a folder that
was filled on other hardware is emptied.

What a node says of its files is data: paths have a form, sizes a limit, and content counts by its SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..common import durable
from ..container.spec import Image
from ..host import gpu
from .options import ServerOptions

#: The folders that travel: vLLM's own, Triton's, Inductor's, AITER's where `env` puts it there (docs/server.md), and
#: what vLLM noted of the model's classes. Not `modules`: a model's Python files come with its weights.
FOLDERS = ("torch_compile_cache", "triton", "inductor", "aiter", "modelinfos", "rocm_segmented_attention")
#: Files and bytes of a cache that is believed. A server of eight GPUs has some thousand files and some GB.
MOST_FILES = 100_000
MOST_BYTES = 64 * 1024**3
#: Bytes that stay free on the disk.
MARGIN = 1 << 30
_KEY = re.compile(r"[0-9a-f]{16}")
_PART = re.compile(r"(?!\.\.?$)[^/\0]{1,255}")
_SUM = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 20

Files = dict[str, dict[str, Any]]


class CacheError(Exception):
    """Something of a cache is not as it must be; the text is one sentence."""


def about(options: ServerOptions, image: Image, folder: Path, *, secrets: Iterable[str] = ()) -> dict[str, Any]:
    """Return the key of a server's cache, its folder, whether it has been filled for the key, and is to be emptied."""
    made = key(options, image, hardware(options), secrets=secrets)
    warm = made in noted(folder).get("keys", ())
    return {"key": made, "folder": str(folder), "warm": warm, "reset": options.engine_cache_reset}


def key(options: ServerOptions, image: Image, machine: Mapping[str, Any], *, secrets: Iterable[str] = ()) -> str:
    """Return the name of everything that compiled code depends on, as 16 hexadecimal digits."""
    # Each node may have secrets of its own.
    hidden = {*secrets} - {None, ""}
    env = {name: str(value) for name, value in options.env.items() if str(value) not in hidden}
    parts = [
        image.content or image.id,
        options.model,
        options.revision,
        options.flags,
        env,
        options.entrypoint,
        machine,
    ]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hardware(options: ServerOptions, cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return the kinds of the node's GPUs (none for a server on CPUs), and its CPU by model and features."""
    kinds = gpu.kinds(Path(options.sysfs_root)) if options.rocm else []
    return {"gpus": kinds, "cpu": _cpu(cpuinfo)}


def _cpu(cpuinfo: Path) -> str:
    """Return a digest of the first processor's model and features; those of one machine are alike."""
    lines = []
    with contextlib.suppress(OSError), cpuinfo.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if not line.strip():
                break
            if name.strip() in ("model name", "flags", "Features", "CPU part", "CPU implementer"):
                lines.append(value.strip())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# --- the note beside a folder -------------------------------------------------------------------------------------


def _note(folder: Path) -> Path:
    return folder.with_name(folder.name + ".json")


def noted(folder: Path) -> dict[str, Any]:
    """Return what is noted of a folder: the `keys` that it was filled for, and on which `hardware`."""
    with contextlib.suppress(OSError):
        found = durable.read(_note(folder)) or {}
        keys = found.get("keys")
        if isinstance(keys, list):
            return {"keys": [one for one in keys if isinstance(one, str)], "hardware": found.get("hardware")}
    return {}


def note(folder: Path, filled_for: str) -> None:
    """Note that a folder has been filled for a key. Raises OSError."""
    found = noted(folder)
    keys = [one for one in found.get("keys", ()) if one != filled_for][-19:]
    _write(folder, {**found, "keys": [*keys, filled_for]})


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    durable.write(_note(folder), json.dumps(content).encode(), mode=0o644)


def prepare(folder: Path, machine: Mapping[str, Any], *, reset: bool) -> str:
    """Make the folder, empty where it is to be, or where other hardware has filled it; return why it was emptied.

    It is renamed away at once: a server that still runs writes into the old one. Raises OSError.
    """
    found = noted(folder)
    other = found.get("hardware") not in (None, machine)
    why = "engine_cache_reset" if reset else "it was filled on other hardware" if other else ""
    emptied = bool(why) and folder.is_dir() and any(folder.iterdir())
    if emptied:
        away = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}.old")
        folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)
    durable.make_folders(folder)
    if found.get("hardware") != machine or why:
        _write(folder, {"keys": [] if why else found.get("keys", []), "hardware": machine})
    return why if emptied else ""


# --- what travels -------------------------------------------------------------------------------------------------


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Give the regular files of the folders that travel; a link leads somewhere else."""
    for name in FOLDERS if not folder.is_symlink() else ():
        if (folder / name).is_symlink():
            continue
        for where, folders, files in os.walk(folder / name):
            folders[:] = sorted(one for one in folders if not (Path(where) / one).is_symlink())
            for file in sorted(files):
                path = Path(where) / file
                with contextlib.suppress(FileNotFoundError):  # a compiler's temporary file
                    about_it = path.lstat()
                    if path.is_file() and not path.is_symlink():
                        yield str(path.relative_to(folder)), about_it


def listed(folder: Path) -> Files:
    """Return size and SHA-256 of each file that travels, by its path in the folder. Raises OSError, CacheError."""
    found: Files = {}
    for name, about_it in _walk(folder):
        with contextlib.suppress(FileNotFoundError):
            found[name] = {"size": about_it.st_size, "sha256": _sha256(folder / name)}
    _within(found)
    return found


def _within(files: Files) -> None:
    total = sum(one["size"] for one in files.values())
    if len(files) > MOST_FILES or total > MOST_BYTES:
        raise CacheError(
            f"it has {len(files)} files and {total} bytes, expected at most {MOST_FILES} and {MOST_BYTES}: "
            "vllm_server_engine_cache: reset empties it at the next change"
        )


def _sha256(path: Path) -> str:
    made = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            made.update(block)
    return made.hexdigest()


def checked(files: Any) -> Files:
    """Return another node's list of files, each of the form that it must have. Raises CacheError."""
    if not isinstance(files, Mapping):
        raise CacheError("the list of files is no dictionary")
    found: Files = {}
    for name, one in files.items():
        parts = str(name).split("/")
        size, digest = (one.get(field) for field in ("size", "sha256")) if isinstance(one, Mapping) else (None, None)
        whole = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= MOST_BYTES
        if parts[0] not in FOLDERS or len(parts) < 2 or not all(_PART.fullmatch(part) for part in parts):
            raise CacheError(f"{name!r} is no file of a compile cache; look at what the node runs that offers it")
        if not whole or not isinstance(digest, str) or not _SUM.fullmatch(digest):
            raise CacheError(f"{name!r} has no size and SHA-256; look at what the node runs that offers it")
        found[str(name)] = {"size": size, "sha256": digest}
    _within(found)
    return found


def lacking(folder: Path, files: Files) -> dict[str, Any]:
    """Return how many of ``files`` a folder does not have, and their bytes. Raises CacheError where they do not fit."""
    missing = [one["size"] for name, one in files.items() if not _same(folder / name, one)]
    there = folder if folder.is_dir() else next(up for up in folder.parents if up.is_dir())
    free = shutil.disk_usage(there).free
    if sum(missing) + MARGIN > free:
        raise CacheError(f"{there} has {free} bytes free, expected {sum(missing) + MARGIN}")
    return {"files": len(missing), "bytes": sum(missing)}


def _same(path: Path, one: Mapping[str, Any]) -> bool:
    with contextlib.suppress(OSError):
        return path.is_file() and path.lstat().st_size == one["size"] and _sha256(path) == one["sha256"]
    return False


def place(folder: Path, arrived: Path, files: Files, filled_for: str) -> dict[str, int]:
    """Move what has ``arrived`` and is right into a folder, and note the key. Raises OSError, CacheError.

    A file that is there already stays: this node's own engine may be using it. One that is wrong is left behind, and
    with any such the key is not noted, so that the next change asks again.
    """
    if not _KEY.fullmatch(filled_for):
        raise CacheError(f"{filled_for!r} is no key of a compile cache")
    placed = wrong = 0
    for name, one in files.items():
        source, target = arrived / name, folder / name
        if target.exists() or target.is_symlink():
            continue
        if _link_on_the_way(folder, target) or source.is_symlink() or not _same(source, one):
            wrong += 1
            continue
        durable.make_folders(target.parent)
        # Python's and Triton's loaders execute libraries of it; others need not write there.
        source.chmod(0o755 if target.suffix == ".so" else 0o644)
        source.replace(target)
        placed += 1
    if not wrong:
        note(folder, filled_for)
    return {"placed": placed, "wrong": wrong}


def _link_on_the_way(folder: Path, target: Path) -> bool:
    return any(up.is_symlink() for up in target.parents if folder in up.parents)
