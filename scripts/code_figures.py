#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Count what makes the code hard to read: long functions, Jinja with many filters, walls that are crossed, and more.

``--tree`` counts another checkout, also one of an older commit::

    git worktree add /tmp/before <commit>
    scripts/code_figures.py --tree /tmp/before
    scripts/code_figures.py --places          # with the file and line of each

Each figure's own docstring says what is counted. Tests are counted only where a figure's name says so.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2 import nodes

ROOT = Path(__file__).resolve().parent.parent
LONG_FUNCTION = 60  # lines, of the `def` line to the last
MANY_FILTERS = 3
PRONOUNS = re.compile(r"\b(it|its|them|they)\b", re.IGNORECASE)
PRIVATE = re.compile(r"(?<![A-Za-z0-9_])__[a-z][a-z0-9_]*?[a-z0-9](?![A-Za-z0-9_])")
SKIPPED = {"__pycache__", "reports", "results", "node_modules"}
PLUGINS = (
    "action_plugins",
    "callback_plugins",
    "filter_plugins",
    "inventory_plugins",
    "lookup_plugins",
    "library",
    "fleet_report",
)
# A task's keys that hold an expression without braces.
BARE = {"when", "until", "failed_when", "changed_when", "that"}
PACKAGE = "module_utils/vllm_fleet"
BELOW = re.compile(r"(?:ansible\.module_utils\.)?vllm_fleet(?:\.(.+))?$")


@dataclass
class Figure:
    """One figure: what is counted, how many, and where."""

    name: str
    count: int
    places: list[str] = field(default_factory=list)
    note: str = ""


LINES = "__lines__"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML with Ansible's own tags (`!vault`, `!unsafe`) read as what they hold; each mapping keeps its keys' lines."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping, with the line of each key under ``LINES``."""
        self.flatten_mapping(node)
        made: dict[Any, Any] = {LINES: {}}
        for key, value in node.value:
            name = str(self.construct_object(key, deep=True))
            made[name] = self.construct_object(value, deep=True)
            made[LINES][name] = key.start_mark.line + 1
        return made


def _tagged(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)  # type: ignore[arg-type]


_Loader.add_multi_constructor("!", _tagged)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _Loader.construct_mapping)


def _is_python(path: Path) -> bool:
    with path.open("rb") as file:
        return re.match(rb"#!.*python", file.readline()) is not None


class Tree:
    """The files of one checkout, each read and parsed once."""

    def __init__(self, root: Path) -> None:
        """Point at the folder ``root``."""
        self.root = root

    def name(self, path: Path) -> str:
        """Return a file's path inside the tree."""
        return path.relative_to(self.root).as_posix()

    @cached_property
    def files(self) -> list[Path]:
        """Every regular file; no hidden folder, no environment, nothing that a run writes. Links are not followed."""
        found: list[Path] = []
        folders = [self.root]
        while folders:
            for path in sorted(folders.pop().iterdir()):
                if path.name.startswith(".") or path.name in SKIPPED or path.is_symlink():
                    continue
                if path.is_dir():
                    folders.append(path)
                else:
                    found.append(path)
        return sorted(found)

    @cached_property
    def texts(self) -> dict[str, str]:
        """Python files by name, as they are written: by suffix, or by their first line."""
        found = {}
        for path in self.files:
            if path.suffix == ".py" or (not path.suffix and _is_python(path)):
                found[self.name(path)] = path.read_text(encoding="utf-8")
        return found

    @cached_property
    def python(self) -> dict[str, ast.Module]:
        """The same, parsed."""
        return {name: ast.parse(text) for name, text in self.texts.items()}

    @property
    def source(self) -> dict[str, ast.Module]:
        """The Python files that are no tests."""
        return {name: tree for name, tree in self.python.items() if not name.startswith(("tests/", "bench/"))}

    @cached_property
    def yaml(self) -> dict[str, Any]:
        """YAML of roles and playbooks."""
        found = {}
        for path in self.files:
            name = self.name(path)
            if path.suffix == ".yml" and (name.startswith(("roles/", "playbooks/")) or "/" not in name):
                found[name] = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
        return found

    @cached_property
    def templates(self) -> dict[str, str]:
        """Jinja templates of roles and of the report."""
        return {self.name(path): path.read_text(encoding="utf-8") for path in self.files if path.suffix == ".j2"}

    @cached_property
    def roles(self) -> list[str]:
        """Names of the roles, the longest first: `vllm_image` before a role `vllm`."""
        folder = self.root / "roles"
        return (
            sorted((p.name for p in folder.iterdir() if p.is_dir()), key=len, reverse=True) if folder.is_dir() else []
        )


# Functions and files


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        # No expression holds a function with a name: most of a tree is expressions.
        left += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt | ast.excepthandler | ast.match_case)]


def _long(files: Mapping[str, ast.Module], name: str) -> Figure:
    found = []
    for file, tree in files.items():
        for node in _functions(tree):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONG_FUNCTION:
                found.append((lines, f"{file}:{node.lineno} {node.name} ({lines} lines)"))
    return Figure(name, len(found), [place for _, place in sorted(found, reverse=True)])


def long_functions(tree: Tree) -> Figure:
    """Count functions and methods of more than 60 lines outside tests and bench, from `def` to the last line."""
    return _long(tree.source, f"functions over {LONG_FUNCTION} lines")


def long_test_functions(tree: Tree) -> Figure:
    """Count the same in tests and bench."""
    rest = {name: parsed for name, parsed in tree.python.items() if name not in tree.source}
    return _long(rest, f"functions over {LONG_FUNCTION} lines, tests and bench")


def longest_file(tree: Tree) -> Figure:
    """Return the lines of the longest Python file outside tests and bench; the places are the five longest."""
    sizes = sorted(((len((tree.root / name).read_text().splitlines()), name) for name in tree.source), reverse=True)
    places = [f"{name} ({lines} lines)" for lines, name in sizes[:5]]
    return Figure("longest Python file, lines", sizes[0][0] if sizes else 0, places, sizes[0][1] if sizes else "")


# Jinja and tasks


def _scalars(value: Any, key: str = "", line: int = 0) -> Iterator[tuple[str, str, int]]:
    """Yield each string of a YAML document: the text, the key that it stands under, and that key's line."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name != LINES:
                yield from _scalars(inner, name, value[LINES][name])
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(inner, key, line)
    elif isinstance(value, str):
        yield value, key, line


def _expressions(template: nodes.Template) -> Iterator[nodes.Node]:
    """Yield what stands between one pair of braces each: an output, a condition, a loop's list, an assigned value."""
    todo: list[nodes.Node] = [template]
    while todo:
        for child in todo.pop().iter_child_nodes():
            if isinstance(child, nodes.TemplateData):
                continue
            if isinstance(child, nodes.Expr):
                yield child
            else:
                todo.append(child)


def _most_filters(environment: jinja2.Environment, text: str) -> int:
    """Return the filters of the expression that has most of them."""
    if "|" not in text:
        return 0
    try:
        template = environment.parse(text)
    except jinja2.TemplateSyntaxError:  # a sentence with braces, documentation
        return 0
    return max((_filters(expression) for expression in _expressions(template)), default=0)


def _filters(expression: nodes.Node) -> int:
    below = sum(1 for _ in expression.find_all(nodes.Filter))
    return below + isinstance(expression, nodes.Filter)


def many_filters(tree: Tree) -> Figure:
    """Count YAML values of roles and playbooks, and lines of templates, with an expression of more than three filters.

    Filters count where they stand in one pair of braces (or in one `when:`), also in its inner brackets. One value
    counts once.
    """
    environment = jinja2.Environment(extensions=["jinja2.ext.do", "jinja2.ext.loopcontrols"])  # noqa: S701 - parses only
    found = []
    for file, document in tree.yaml.items():
        if file.endswith("argument_specs.yml"):
            continue
        for text, key, line in _scalars(document):
            many = _most_filters(environment, "{{ " + text + " }}" if key in BARE else text)
            if many > MANY_FILTERS:
                found.append(f"{file}:{line} {key} ({many} filters)")
    for file, text in tree.templates.items():
        for expression in _expressions(environment.parse(text)):
            if (many := _filters(expression)) > MANY_FILTERS:
                found.append(f"{file}:{expression.lineno} ({many} filters)")
    return Figure(f"Jinja with more than {MANY_FILTERS} filters", len(found), found)


def _tasks(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the tasks of a file, also those in blocks: a mapping with a name and something to do, a play left out."""
    if isinstance(value, list):
        for inner in value:
            yield from _tasks(inner)
    elif isinstance(value, dict):
        for key in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks", "handlers"):
            if key in value:
                yield from _tasks(value[key])
        if "name" in value and "hosts" not in value and "import_playbook" not in value:
            yield value


def _task_files(tree: Tree) -> Iterator[tuple[str, Any]]:
    for file, document in tree.yaml.items():
        if re.match(r"roles/[^/]+/(tasks|handlers)/", file) or file.startswith("playbooks/") or file == "deploy.yml":
            yield file, document


def pronoun_tasks(tree: Tree) -> Figure:
    """Count task names of roles and playbooks with it, its, them or they: a line of a log must stand alone."""
    names, found = 0, []
    for file, document in _task_files(tree):
        for task in _tasks(document):
            names += 1
            if PRONOUNS.search(str(task["name"])):
                found.append(f"{file}:{task[LINES]['name']} {task['name']}")
    return Figure("task names with pronouns", len(found), found, f"of {names} tasks")


# Walls


def path_copies(tree: Tree) -> Figure:
    """Count files that widen `ansible.module_utils.__path__`, tests included."""
    found = []
    for file, parsed in tree.python.items():
        if "__path__" not in tree.texts[file]:
            continue
        lines = [n.lineno for n in ast.walk(parsed) if isinstance(n, ast.Attribute) and n.attr == "__path__"]
        if lines:
            found.append(f"{file}:{min(lines)}")
    outside = sum(not place.startswith("tests/") for place in found)
    return Figure("copies of `__path__` surgery", len(found), found, f"{outside} outside tests")


def linked_plugins(tree: Tree) -> Figure:
    """Count symbolic links among plugins and modules."""
    found = [
        f"{folder}/{path.name} -> {path.readlink()}"
        for folder in PLUGINS
        if (tree.root / folder).is_dir()
        for path in sorted((tree.root / folder).iterdir())
        if path.is_symlink()
    ]
    return Figure("plugins that are symbolic links", len(found), found)


def _owner(variable: str, roles: list[str]) -> str:
    return next((role for role in roles if variable.startswith(f"__{role}_") or variable == f"__{role}"), "")


def _docstrings(parsed: ast.Module) -> set[int]:
    return {id(n.value) for n in ast.walk(parsed) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


def _private_uses(tree: Tree) -> Iterator[tuple[str, int, str]]:
    """Yield file, line and name of each private variable that a role, a playbook or a plugin mentions; no comments."""
    for path in tree.files:
        file = tree.name(path)
        if path.suffix in {".yml", ".j2"} and file.startswith(("roles/", "playbooks/", "deploy.yml")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if not line.lstrip().startswith("#"):
                    for name in PRIVATE.findall(line):
                        yield file, number, name
    for file, parsed in tree.source.items():
        if not file.startswith((*PLUGINS, "roles/", PACKAGE)):
            continue
        prose = _docstrings(parsed)
        for node in ast.walk(parsed):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                for name in PRIVATE.findall(node.value):
                    yield file, node.lineno, name


def private_across(tree: Tree) -> Figure:
    """Count private variables (`__role_…`) outside their role: pairs of a file and a variable, setting counts as well.

    A private name without a role's name in it belongs to no role; plugins that read it count.
    """
    uses = list(_private_uses(tree))
    known = {name for file, _, name in uses if not file.endswith(".py")}  # what is a variable, not a Python name
    found: dict[tuple[str, str], str] = {}
    for file, line, name in uses:
        owner = _owner(name, tree.roles)
        home = file.split("/")[1] if file.startswith("roles/") else ""
        foreign = home != owner if owner else file.endswith(".py") and name in known
        if foreign:
            found.setdefault((file, name), f"{file}:{line} {name}")
    pairs = {(file, _owner(name, tree.roles)) for file, name in found}
    note = f"{len(pairs)} pairs of file and role"
    return Figure("private variables across roles and plugins", len(found), list(found.values()), note)


def source_as_text(tree: Tree) -> Figure:
    """Count calls of exec and eval, and places that set Ansible's private `_ANSIBLE_ARGS`, outside tests and bench."""
    found = []
    for file, parsed in tree.source.items():
        for node in ast.walk(parsed):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"exec", "eval"}:
                found.append(f"{file}:{node.lineno} {node.func.id}()")
            elif isinstance(node, ast.Attribute) and node.attr == "_ANSIBLE_ARGS" and isinstance(node.ctx, ast.Store):
                found.append(f"{file}:{node.lineno} _ANSIBLE_ARGS =")
    return Figure("source text run, Ansible's private state set", len(found), found)


# The graph of imports


def _module(file: str) -> str:
    """Return the dotted name of a file of the package below `vllm_fleet`, "" for the package itself."""
    parts = file.removeprefix(PACKAGE + "/").removesuffix(".py").split("/")
    return ".".join(part for part in parts if part != "__init__")


def _imported(file: str, parsed: ast.Module, modules: set[str]) -> Iterator[str]:
    """Yield the package's modules that a file imports, relative or by any full name of the package."""
    inside = file.startswith(PACKAGE + "/")
    own = _module(file).split(".") if inside else []
    folder = own if file.endswith("__init__.py") else own[:-1]
    for node in ast.walk(parsed):
        bases: list[str] = []
        if isinstance(node, ast.Import):
            bases = [found[1] for alias in node.names if (found := BELOW.match(alias.name)) and found[1]]
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, folder if inside else None)
            if base is not None:
                bases = [f"{base}.{alias.name}".strip(".") for alias in node.names]
        for base in bases:
            parts = base.split(".")
            names = (".".join(parts[:many]) for many in range(len(parts), 0, -1))
            if name := next((name for name in names if name in modules), ""):
                yield name


def _base(node: ast.ImportFrom, folder: list[str] | None) -> str | None:
    """Return what is imported from, as a name below `vllm_fleet`; None where it is something else."""
    if node.level:
        if folder is None or node.level - 1 > len(folder):
            return None
        return ".".join([*folder[: len(folder) - node.level + 1], *([node.module] if node.module else [])])
    found = BELOW.match(node.module or "")
    return None if found is None else found[1] or ""


@dataclass
class Graph:
    """Rooms and the arrows between them; an arrow has the number of its import statements."""

    rooms: set[str]
    arrows: dict[tuple[str, str], int]

    def circles(self) -> list[list[str]]:
        """Return the groups of rooms that reach each other."""
        reach = {room: self._reach(room) for room in self.rooms}
        groups = {tuple(sorted({room, *(o for o in reach[room] if room in reach[o])})) for room in self.rooms}
        return sorted(list(group) for group in groups if len(group) > 1)

    def _reach(self, room: str) -> set[str]:
        seen: set[str] = set()
        todo = [room]
        while todo:
            at = todo.pop()
            for start, end in self.arrows:
                if start == at and end not in seen:
                    seen.add(end)
                    todo.append(end)
        return seen

    def floors(self) -> int:
        """Return the rooms on the longest way down, 0 where there are circles."""
        if self.circles():
            return 0
        depth: dict[str, int] = {}

        def of(room: str) -> int:
            if room not in depth:
                depth[room] = 1 + max((of(end) for start, end in self.arrows if start == room), default=0)
            return depth[room]

        return max((of(room) for room in self.rooms), default=0)


def graph(tree: Tree) -> Graph:
    """Return the rooms of the package (its folders, or its files where it is flat) and the imports between them."""
    files = {name: parsed for name, parsed in tree.python.items() if name.startswith(PACKAGE + "/")}
    modules = {_module(name) for name in files} - {""}
    rooms = {name.split(".")[0] for name in modules}
    arrows: dict[tuple[str, str], int] = {}
    for file, parsed in files.items():
        here = _module(file).split(".")[0]
        for name in _imported(file, parsed, modules):
            there = name.split(".")[0]
            if here and here != there:
                arrows[here, there] = arrows.get((here, there), 0) + 1
    return Graph(rooms, arrows)


def imports_between(tree: Tree) -> Figure:
    """Count arrows between the rooms of module_utils/vllm_fleet: its packages, or its files where there are none."""
    made = graph(tree)
    circles = made.circles()
    places = [f"{start} -> {end} ({many})" for (start, end), many in sorted(made.arrows.items())]
    places += [f"circle: {', '.join(circle)}" for circle in circles]
    statements = sum(made.arrows.values())
    note = f"{len(made.rooms)} rooms, {made.floors()} floors, {len(circles)} circles, {statements} imports"
    return Figure("imports between rooms of module_utils", len(made.arrows), places, note)


FIGURES: tuple[Callable[[Tree], Figure], ...] = (
    long_functions,
    long_test_functions,
    longest_file,
    many_filters,
    pronoun_tasks,
    path_copies,
    linked_plugins,
    private_across,
    source_as_text,
    imports_between,
)


def main() -> int:
    """Count, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--tree", type=Path, default=ROOT, help="folder of the checkout to count (default: this one)")
    parser.add_argument("--places", action="store_true", help="also print where")
    parser.add_argument("--json", action="store_true", help="print JSON, always with the places")
    options = parser.parse_args()
    if not (options.tree / "roles").is_dir():
        parser.error(f"{options.tree} is not a checkout of vllm-fleet: it has no folder roles")
    tree = Tree(options.tree.resolve())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in the strings of what is read
        figures = [count(tree) for count in FIGURES]
    if options.json:
        print(json.dumps({f.name: {"count": f.count, "note": f.note, "places": f.places} for f in figures}, indent=2))
        return 0
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        print(f"{figure.name:<{width}}  {figure.count:>5}  {figure.note}".rstrip())
        if options.places:
            for place in figure.places:
                print(f"    {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
