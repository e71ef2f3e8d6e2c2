# SPDX-License-Identifier: Apache-2.0
"""The archives of this project's modules and of Ansible's own, kept on the controller from one run to the next.

Ansible packs a module and all that it imports in each run again: half a second of a processor for ``node_probe``, a
fifth for ``command``. It looks first in a folder of the run for an archive that another worker made. ``restore`` puts
the archives of an earlier run there, ``keep`` takes new ones from there. An archive is used only where nothing that it
was made of has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import ansible
import ansible.module_utils
from ansible.plugins.loader import module_utils_loader
from ansible.release import __version__

from plugin_utils import cache_folder

ROOT = Path(__file__).resolve().parent.parent

#: States of the project whose archives are kept: two checkouts, and each of them before and after an edit.
_KEPT = 4

#: Ansible's own modules.
_ANSIBLES = Path(ansible.__file__).parent / "modules"

#: Length of a SHA-256 as hexadecimal digits.
_DIGEST = 64


def restore(run: Path) -> str:
    """Put the archives that are still right into ``run``, Ansible's folder of archives (``ansiballz_cache``).

    Whatever is wrong with them (missing, cut short, of another user) leaves them out: Ansible makes them again. Gives
    the state that they are of, for ``keep``; empty where it cannot be told.
    """
    state = ""
    with contextlib.suppress(OSError):  # also a link of an editor that leads nowhere
        state = _state()
        kept = _folder() / state
        if not _private(kept):
            return state
        run.mkdir(parents=True, exist_ok=True)
        for file in kept.iterdir():
            name, _, digest = file.name.rpartition(".")
            content = file.read_bytes() if len(digest) == _DIGEST else b""
            if content and hashlib.sha256(content).hexdigest() == digest:
                _write(run / name, content)
        os.utime(kept)
    return state


def keep(run: Path, state: str) -> None:
    """Keep the archives that Ansible made in ``run``, which began in ``state``: of this project's modules and its own.

    None is kept where a file was edited meanwhile, or where they cannot be written.
    """
    with contextlib.suppress(OSError):
        kept = _folder() / state
        there = {file.name.rpartition(".")[0] for file in kept.iterdir()} if kept.exists() else set()
        new = [name for name in _names() if name not in there and (run / name).is_file()]
        if not new or _state() != state:
            return
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _private(kept):
            return
        for name in new:
            content = (run / name).read_bytes()
            _write(kept / f"{name}.{hashlib.sha256(content).hexdigest()}", content)
        _forget(kept.parent)


def _names() -> Iterator[str]:
    # As in executor/module_common.py: the module, how the archive is compressed, and no debugger.
    for package, folder in (("ansible.legacy", ROOT / "library"), ("ansible.modules", _ANSIBLES)):
        for file in sorted(folder.glob("*.py")):
            yield f"{package}.{file.stem}-ZIP_DEFLATED-none"


def _folder() -> Path:
    return cache_folder.path() / "modules"


def _state() -> str:
    """Return a digest of what an archive depends on: this project's files, Ansible's, Python, the places of both."""
    digest = hashlib.sha256(f"{ROOT} {ansible.__file__} {__version__} {sys.version}".encode())
    for folder in (ROOT / "library", ROOT / "module_utils"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"\0{file.relative_to(ROOT)}\0".encode())
            digest.update(file.read_bytes())
    # Ansible's own files change with its version, or by hand. A playbook or a role may have others in their place.
    others = [path for path in module_utils_loader._get_paths(subdirs=False) if Path(path) != ROOT / "module_utils"]
    for folder in dict.fromkeys([*ansible.module_utils.__path__, *others, str(_ANSIBLES)]):
        for file in sorted(Path(folder).rglob("*.py")):
            info = file.stat()
            digest.update(f"\0{file} {info.st_size} {info.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _private(folder: Path) -> bool:
    """Tell whether nobody else can have put something into a folder: Ansible runs what an archive holds as root."""
    info = folder.stat(follow_symlinks=False)
    return info.st_uid == os.geteuid() and not info.st_mode & 0o022 and folder.is_dir()


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{os.getpid()}.part")
    part.write_bytes(content)
    part.rename(path)


def _forget(folder: Path) -> None:
    """Remove the archives of states that were used longest ago."""
    for old in sorted(folder.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
