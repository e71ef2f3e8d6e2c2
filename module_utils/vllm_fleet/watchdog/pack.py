# SPDX-License-Identifier: Apache-2.0
"""A program for nodes as one file that Python runs: the packages that it needs, always in the same bytes. Pure.

Nothing is compressed: what two releases of zlib make of the same text differs, and then two controllers would replace
each other's program for ever.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

#: A program is a package with a file `main`.
WATCHDOG = "watchdog"
_START = "import sys\n\nfrom vllm_fleet.{}.main import main\n\nsys.exit(main(sys.argv[1:]))\n"
#: A relative import and its names. Not by Python's own parser, which takes ten times as long, in each run.
_IMPORT = re.compile(r"^[ \t]*from (\.\.?)([\w.]*) import (?:\(([^)]*)\)|([^#\n]+))", re.MULTILINE)
_NAME = re.compile(r"(?:^|,)\s*(\w+)")
#: Time of each member: the first that a zip file can have.
_WHEN = (1980, 1, 1, 0, 0, 0)


def pack(folder: Path, package: str = WATCHDOG) -> bytes:
    """Return the program of ``package`` out of ``folder``, which holds all packages. Raises OSError."""
    members = {f"vllm_fleet/{name}": (folder / name).read_bytes() for name in needed(folder, package)}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted({**members, "__main__.py": _START.format(package).encode()}.items()):
            member = zipfile.ZipInfo(name, _WHEN)
            member.create_system, member.external_attr = 3, 0o100644 << 16
            archive.writestr(member, data)
    return out.getvalue()


def needed(folder: Path, package: str = WATCHDOG) -> list[str]:
    """Return the files that a program imports, early or late, by their paths below ``folder``, sorted."""
    found: set[str] = set()
    left = ["__init__.py", f"{package}/main.py"]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _imports(folder, name)
            if "/" in name:
                left.append(f"{name.partition('/')[0]}/__init__.py")
    return sorted(found)


def _imports(folder: Path, name: str) -> Iterator[str]:
    """Yield the project's files that one of its files imports: all of its imports are relative."""
    package = name.rpartition("/")[0]
    for dots, module, several, one in _IMPORT.findall((folder / name).read_text(encoding="utf-8")):
        place = Path(folder, package if len(dots) == 1 else "", *module.split("."))
        files = [place.with_suffix(".py")] if place.with_suffix(".py").is_file() else []
        for file in files or [place / f"{alias}.py" for alias in _NAME.findall(several or one)]:
            if file.is_file():
                yield file.relative_to(folder).as_posix()
