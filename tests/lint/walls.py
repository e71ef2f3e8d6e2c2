# SPDX-License-Identifier: Apache-2.0
"""The contract between the packages of module_utils/vllm_fleet, read from their docstrings, and what breaks it.

Each package says in its ``__init__.py`` which packages it may import and which of its files are not pure. A pure file
knows no Docker, no Ansible, no clock, no network, no other process.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

#: What a pure file does not import, by the first word of the module; `urllib.parse` is text work and allowed.
IMPURE = frozenset(
    (
        *(
            "ansible",
            "asyncio",
            "ctypes",
            "datetime",
            "docker",
            "fcntl",
            "http",
            "huggingface_hub",
            "random",
            "requests",
        ),
        *("secrets", "select", "selectors", "signal", "socket", "ssl", "subprocess", "threading", "time", "urllib"),
    )
)
ALLOWED = frozenset({"urllib.parse"})


@dataclass(frozen=True)
class Package:
    """What a package says of itself: its question, the packages it may import, its files that are not pure."""

    name: str
    question: str
    may_import: frozenset[str]
    impure: frozenset[str]


def contract(root: Path) -> dict[str, Package]:
    """Return the packages below ``root`` by name. Raises ValueError where a docstring has not the agreed form."""
    found = {}
    for init in sorted(root.glob("*/__init__.py")):
        text = ast.get_docstring(ast.parse(init.read_text())) or ""
        parts = re.fullmatch(
            r"(?P<question>.+?)\n\nMay import: (?P<may>[^.]+)\.\nPure(?: but for: (?P<impure>[^.]+))?\.", text, re.S
        )
        if parts is None:
            raise ValueError(f"{init}: expected a question, `May import: ...` and `Pure ...`; got {text!r}")
        may = "" if parts["may"] == "nothing" else parts["may"]
        found[init.parent.name] = Package(
            init.parent.name, " ".join(parts["question"].split()), _names(may), _names(parts["impure"] or "")
        )
    return found


def broken(root: Path) -> list[str]:
    """Return a sentence for each import below ``root`` that the contract does not allow, and for each circle in it."""
    packages = contract(root)
    allowed = {package.name: package.may_import for package in packages.values()}
    faults = [f"{' -> '.join(circle)} is a circle in the contract" for circle in _circles(allowed)]
    arrows: dict[str, frozenset[str]] = {}
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if len(place.parts) != 2:
            if place != Path("__init__.py"):
                faults.append(f"{place} lives in no package")
            continue
        package = packages.get(place.parts[0])
        if package is None:
            faults.append(f"{place.parts[0]} has no __init__.py")
            continue
        impure = False
        imports = _imports(path, root)
        arrows[f"vllm_fleet.{package.name}.{path.stem}"] = frozenset(module for module, _ in imports)
        for module, line in imports:
            where = f"{place}:{line}"
            if module.startswith("vllm_fleet."):
                target = module.split(".")[1]
                if target != package.name and target not in package.may_import:
                    faults.append(f"{where} imports {module}, and {package.name} may not import {target}")
                stem = module.split(".")[2] if module.count(".") > 1 else ""
                reached = packages.get(target)
                if reached and stem in reached.impure:
                    impure = True
                    if path.stem not in package.impure:
                        faults.append(f"{where} imports {module}, which is not pure, in a file that should be")
            elif module.split(".")[0] in IMPURE and module not in ALLOWED:
                impure = True
                if path.stem not in package.impure:
                    faults.append(f"{where} imports {module} in a file that should be pure")
        if path.stem in package.impure and not impure:
            faults.append(f"{place} is pure, and {package.name} says that it is not")
    faults += [f"{' -> '.join(circle)} is a circle of files" for circle in _circles(arrows)]
    return faults


def table(root: Path) -> str:
    """Return the contract as the table of docs/architecture.md."""
    rows = ["| package | question that it answers | may import | files that are not pure |", "|---|---|---|---|"]
    for package in contract(root).values():
        may = ", ".join(f"`{name}`" for name in sorted(package.may_import)) or "nothing"
        impure = ", ".join(f"`{name}`" for name in sorted(package.impure)) or "none"
        rows.append(f"| `{package.name}` | {package.question} | {may} | {impure} |")
    return "\n".join(rows)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.replace(",", " ").split())


def _imports(path: Path, root: Path) -> list[tuple[str, int]]:
    """Each imported module by its whole name, with its line; vllm_fleet's own as `vllm_fleet.package.file`."""
    package = path.relative_to(root).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package[: len(package) - node.level + 1]
                base = ".".join(["vllm_fleet", *up, *([node.module] if node.module else [])])
            base = base.removeprefix("ansible.module_utils.") if base.startswith("ansible.module_utils.vllm_") else base
            files = base.startswith("vllm_fleet") and base.count(".") < 2
            found += [(f"{base}.{alias.name}" if files else base, node.lineno) for alias in node.names]
    return sorted(set(found), key=lambda pair: (pair[1], pair[0]))


def _circles(arrows: dict[str, frozenset[str]]) -> list[list[str]]:
    circles: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            circles.append([*way[way.index(name) :], name])
        elif name not in done and name in arrows:
            for other in sorted(arrows[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in arrows:
        walk(name, [])
    return circles
