# SPDX-License-Identifier: Apache-2.0
"""An import of this project's files from Ansible's archive that compiles each of them once.

Python's own import from a zip compiles a file twice: when it looks for the file, to know its name (``find_spec`` asks
``get_filename``, which compiles), and when it runs it. Half of what a module costs a node was that. The archive is new
in each call, so nothing that was compiled can be kept.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType, ModuleType
from typing import Any


class Importer:
    """Finds and loads the modules of one package in an archive."""

    def __init__(self, package: str, archive: Any) -> None:
        """Take the package's full name and the zipimporter that has it."""
        self._prefix, self._archive = f"{package}.", archive

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how a module is loaded; None where it is not the package's, or not in the archive."""
        if not name.startswith(self._prefix):
            return None
        loader: Any = self
        plain = f"{self._archive.archive}/{name.replace('.', '/')}"
        for file, folder in ((f"{plain}.py", None), (f"{plain}/__init__.py", plain)):
            try:
                source = self._archive.get_data(file)
            except OSError:
                continue
            spec = ModuleSpec(name, loader, origin=file, loader_state=source, is_package=folder is not None)
            spec.has_location = True
            if folder is not None:
                spec.submodule_search_locations = [folder]
            return spec
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python to make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the file."""
        spec: Any = module.__spec__
        code: CodeType = compile(spec.loader_state, spec.origin, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102  as every import does

    def get_source(self, name: str) -> str | None:
        """Return the text of a module that was loaded, for tracebacks and for who starts it elsewhere."""
        module = sys.modules.get(name)
        source = getattr(getattr(module, "__spec__", None), "loader_state", None)
        return source.decode("utf-8") if isinstance(source, bytes) else None


def install(package: str) -> None:
    """Import the rest of ``package`` by an Importer where it comes from an archive."""
    archive: Any = sys.modules[package].__loader__
    if hasattr(archive, "archive"):
        importer: Any = Importer(package, archive)
        # In front of what it replaces, and behind what somebody else has put before that.
        before = (number for number, finder in enumerate(sys.meta_path) if finder is PathFinder)
        sys.meta_path.insert(next(before, 0), importer)
