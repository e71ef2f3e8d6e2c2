# SPDX-License-Identifier: Apache-2.0
"""What a wheel of vLLM says of its flags and variables, by Python's parser over its sources; nothing is imported."""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from vllm_fleet.vllm import release_data, releases

#: Where flags of `vllm serve` are defined, since 0.8.
_FLAGS = ("vllm/engine/arg_utils.py", "vllm/entrypoints/*cli_args.py", "vllm/entrypoints/cli/serve.py")
_VARIABLES = "vllm/envs.py"
#: A file of a source is smaller; a wheel is somebody else's.
_LARGEST = 4 << 20


@dataclass(frozen=True)
class Facts:
    """One release: its flags without dashes, and its variables with their defaults as they stand in the source."""

    version: str
    flags: frozenset[str]
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Moves:
    """What came, went and turned from one release to another; defaults as (variable, before, after)."""

    flags_added: tuple[str, ...]
    flags_gone: tuple[str, ...]
    variables_added: tuple[str, ...]
    variables_gone: tuple[str, ...]
    defaults: tuple[tuple[str, str, str], ...]


def read(place: Path) -> Facts:
    """Return the facts of a wheel, or of a folder that holds ``vllm/``. Raises ValueError for what is neither."""
    names, text = _of_folder(place) if place.is_dir() else _of_wheel(place)
    flags: set[str] = set()
    for name in names:
        if any(fnmatch(name, pattern) for pattern in _FLAGS):
            flags |= set(_flags(ast.parse(text(name))))
    version = next((found[1] for name in names if (found := re.search(r"vllm(?:_cpu)?-([^/]+)\.dist-info/", name))), "")
    if not flags or _VARIABLES not in names:
        raise ValueError(f"{place} holds no vLLM whose flags and variables can be read")
    return Facts(version, frozenset(flags), _variables(ast.parse(text(_VARIABLES))))


_Source = tuple[list[str], Callable[[str], str]]


def _of_folder(folder: Path) -> _Source:
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return names, lambda name: (folder / name).read_text(encoding="utf-8")


def _of_wheel(wheel: Path) -> _Source:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}

    def text(name: str) -> str:
        if sizes[name] > _LARGEST:
            raise ValueError(f"{wheel}: {name} has {sizes[name]} bytes, more than a source has")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name).decode()

    return list(sizes), text


def _flags(tree: ast.Module) -> Iterator[str]:
    """Give the flags of one file: words of add_argument, and fields of the frontend's arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            for word in node.args:
                if isinstance(word, ast.Constant) and str(word.value).startswith("--"):
                    yield str(word.value)[2:].replace("_", "-")
        if isinstance(node, ast.ClassDef) and node.name.endswith("FrontendArgs"):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.target.id.replace("_", "-")


def _variables(tree: ast.Module) -> dict[str, str]:
    """Return the keys of `environment_variables` with the defaults that the file states for type checkers."""
    names: list[str] = []
    defaults: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id == "environment_variables":
                names = [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stated = (one for one in node.body if isinstance(one, ast.AnnAssign) and one.value is not None)
            defaults |= {one.target.id: ast.unparse(one.value) for one in stated if isinstance(one.target, ast.Name)}
    return {name: defaults.get(name, "") for name in names}


def moves(old: Facts, new: Facts) -> Moves:
    """Return what moved from one release to the other, in the order of names."""
    both = sorted(old.variables.keys() & new.variables.keys())
    turned = [(name, old.variables[name], new.variables[name]) for name in both]
    return Moves(
        tuple(sorted(new.flags - old.flags)),
        tuple(sorted(old.flags - new.flags)),
        tuple(sorted(new.variables.keys() - old.variables.keys())),
        tuple(sorted(old.variables.keys() - new.variables.keys())),
        tuple(one for one in turned if one[1] != one[2]),
    )


def told(old: Facts, new: Facts, moved: Moves) -> str:
    """Return what moved, for people: a line for each."""
    lines = [f"vLLM {old.version or 'old'} -> {new.version or 'new'}"]
    for what, mark, names in (
        ("flag", "+", moved.flags_added),
        ("flag", "-", moved.flags_gone),
        ("variable", "+", moved.variables_added),
        ("variable", "-", moved.variables_gone),
    ):
        dashes = "--" if what == "flag" else ""
        lines += [f"{mark} {what} {dashes}{name}" for name in names]
    lines += [f"! default {name}: {before} -> {after}" for name, before, after in moved.defaults]
    return "\n".join(lines if len(lines) > 1 else [*lines, "nothing moved"])


def unknown(new: Facts, moved: Moves) -> list[str]:
    """Return what the project's own data has not of these moves, as lines for it."""
    since = {flag for flag, release in releases.SINCE.items() if not releases.older(new.version, release)}
    found = [f"FLAGS_ADDED: {flag}" for flag in moved.flags_added if flag not in since]
    found += [f"FLAGS_GONE: {flag}" for flag in moved.flags_gone if flag not in release_data.FLAGS_GONE]
    found += [f"VARIABLES_GONE: {name}" for name in moved.variables_gone if name not in releases.VARIABLES_UNTIL]
    turned = {one.name for one in release_data.DEFAULTS}
    watched = (one for one in moved.defaults if one[0].startswith("VLLM_ROCM_"))
    return found + [f"DEFAULTS: {name}" for name, _, _ in watched if name not in turned]
