# SPDX-License-Identifier: Apache-2.0
"""What an inventory's files of YAML say that Ansible leaves out, each with its file and line.

Ansible warns, and goes on with the rest: a host without its address and user, or without one of two values of a name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

#: The parser in C where PyYAML has it: ten times faster. Composing makes no values, so no tag is unknown to it.
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: What a group may have.
SECTIONS = ("hosts", "vars", "children")
#: What the names of variables begin with that a person puts beside a host instead of below it.
_VARIABLE = re.compile(r"(ansible|vllm|hf|gateway|rocm|docker|monitoring)_\w+")
_VAULT = "$ANSIBLE_VAULT"
_SUFFIXES = (".yml", ".yaml", ".json")


@dataclass(frozen=True)
class Fault:
    """What stands wrong in line ``line`` (from 1) of a file, as a clause."""

    line: int
    what: str


def faults(text: str, *, source: bool) -> list[Fault]:
    """Say what of a file Ansible leaves out, in the order of its lines. Values are never repeated.

    ``source``: whether the file lists hosts and groups; otherwise it has variables. Raises yaml.YAMLError where the
    text is no YAML.
    """
    if text.startswith(_VAULT):
        return []
    root = yaml.compose(text, Loader=_LOADER)
    if root is None:
        return []
    found = list(_twice(root))
    if source and "plugin" not in (name for name, _, _ in _pairs(root)):
        found += _of_groups(root)
    return sorted(set(found), key=lambda one: (one.line, one.what))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: yaml.Node) -> str:
    return {"mapping": "a dictionary", "sequence": "a list"}.get(node.id, "one value")


def _empty(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _pairs(node: yaml.Node) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Go through a mapping as (name, key, value); what is merged into it (`<<`) stands somewhere else."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                yield key.value, key, value


def _twice(root: yaml.Node) -> Iterator[Fault]:
    """Find names that stand twice in one mapping: the last one counts, and the others are lost."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if id(node) in seen:  # an anchor's node stands in several places, or in itself
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            todo.append(value)
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            name = (key.tag, key.value)
            if name in lines:
                both = f"lines {lines[name]} and {_line(key)}"
                yield Fault(_line(key), f"{key.value} stands twice, in {both}: leave one, or rename the other")
            lines[name] = _line(key)


def _of_groups(root: yaml.Node) -> Iterator[Fault]:
    todo: list[tuple[str, yaml.Node, yaml.Node]] = []
    for name, key, value in _pairs(root):
        if name in SECTIONS:
            yield Fault(_line(key), f"{name} stands in no group: indent it below the name of a group (`vllm:`)")
        else:
            todo.append((name, key, value))
    seen = set()
    while todo:
        name, key, node = todo.pop()
        if id(node) in seen or _empty(node):
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            yield Fault(_line(key), f"group {name} has {_kind(node)} instead of hosts, vars or children")
            continue
        for part, at, value in _pairs(node):
            if part not in SECTIONS:
                yield Fault(_line(at), _unexpected(name, part, value))
            elif _empty(value) or (isinstance(value, yaml.ScalarNode) and part != "vars"):
                continue  # one name may stand alone: `hosts: node1`
            elif not isinstance(value, yaml.MappingNode):
                yield Fault(_line(at), _not_a_mapping(name, part, value))
            elif part == "children":
                todo += _pairs(value)
            elif part == "hosts":
                yield from _of_hosts(name, value)


def _unexpected(group: str, name: str, value: yaml.Node) -> str:
    beside = f"{name} stands in group {group} beside its hosts, vars and children"
    if near := difflib.get_close_matches(name, SECTIONS, n=1, cutoff=0.75):
        return f"{beside}: write {near[0]}"
    if _VARIABLE.fullmatch(name):
        return f"{beside}: indent it below the host that it is for, or below vars"
    if isinstance(value, yaml.MappingNode) or _empty(value):
        return f"{beside}: indent it below hosts, or below children if it is a group"
    return f"{beside}: indent it below vars"


def _not_a_mapping(group: str, part: str, value: yaml.Node) -> str:
    got = f"{part} of group {group} is {_kind(value)}"
    if part == "vars":
        return f"{got}: write each variable as `name: value`, without a dash"
    return f"{got}: write each name with a colon behind it and no dash before it (`node1:`)"


def _of_hosts(group: str, hosts: yaml.Node) -> Iterator[Fault]:
    before = ""
    for name, key, value in _pairs(hosts):
        if _VARIABLE.fullmatch(name):
            beside = f" beside {before}" if before else ""
            yield Fault(_line(key), f"{name} stands{beside} among the hosts of group {group}: indent it below its host")
            continue
        before = name
        if not isinstance(value, yaml.MappingNode) and not _empty(value):
            yield Fault(_line(key), f"host {name} has {_kind(value)} where its variables belong, each as `name: value`")


def empty(path: Path) -> bool:
    """Return whether a file has nothing but comments: it lists no host that could be lost."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return not any(line.strip() and not line.lstrip().startswith(("#", "---")) for line in lines)


def yaml_sources(sources: Iterable[str], ignored: Callable[[str], object]) -> Iterator[Path]:
    """Go through the files of an inventory that may be lists of hosts in YAML; ``ignored`` says which Ansible skips."""
    for source in sources:
        if "," in source:
            continue
        todo = [Path(source)]
        while todo:
            path = todo.pop(0)
            if path.is_dir():
                todo += [one for one in sorted(path.iterdir()) if not ignored(one.name)]
            elif path.suffix in ("", *_SUFFIXES) and path.is_file():
                yield path


def variables_files(folders: Iterable[Path]) -> Iterator[Path]:
    """Go through the files of variables beside an inventory or a playbook."""
    for folder in dict.fromkeys(one.resolve() for one in folders):
        for kind in ("group_vars", "host_vars"):
            for path in sorted((folder / kind).rglob("*")):
                if path.suffix in ("", *_SUFFIXES) and path.name[0] != "." and path.name[-1] != "~" and path.is_file():
                    yield path


def judge(sources: Iterable[Path], variables: Iterable[Path], here: Path) -> tuple[list[str], list[Path]]:
    """Return what Ansible leaves out, as `file:line: clause`, and the files that are no YAML.

    A file without a suffix may be of another form, and one that begins with `#!` is a program. Paths are shown from
    ``here`` where they are below it.
    """
    said: list[str] = []
    broken: list[Path] = []
    for path, source in [*((one, True) for one in sources), *((one, False) for one in variables)]:
        try:
            text = path.read_text(encoding="utf-8")
            if source and text.startswith("#!"):
                continue
            found = faults(text, source=source)
        except (OSError, UnicodeDecodeError):
            continue  # Ansible's own words name the file and the cause
        except yaml.YAMLError:
            if source and path.suffix:
                broken.append(path)
            continue
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        said += [f"{shown}:{one.line}: {one.what}" for one in found]
    return said, broken
