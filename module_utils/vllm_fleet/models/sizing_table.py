# SPDX-License-Identifier: Apache-2.0
"""What sizing.py found out, as one small table for people. Pure: rows in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..host import gpu_memory
from .sizing import Sizing

_COLUMNS = ("NODE", "MACHINE", "TP", "TP SIZES", "WEIGHTS/GPU", "KV CACHE/GPU", "CONTEXT", "FULL REQUESTS", "DISK")


def as_row(sized: Sizing) -> dict[str, Any]:
    """Return what travels from a node to the controller: plain values, findings left out."""
    row = {key: getattr(sized, key) for key in sized.__dataclass_fields__ if key != "findings"}
    return {**row, "sizes": None if sized.sizes is None else list(sized.sizes), "lines": list(sized.lines)}


def table(rows: Sequence[tuple[str, Mapping[str, Any]]], *, arithmetic: bool = False) -> str:
    """Return (node, row) pairs as one small table for each model; equal nodes share a line.

    ``arithmetic`` adds how the figures came about; without it a model of which nothing is known is passed over.
    """
    text: list[str] = []
    for title, lines in _by_model(rows).items():
        body = [_COLUMNS, *((names, *cells) for cells, (names, _) in lines.items())]
        widths = [max(len(line[column]) for line in body) for column in range(len(_COLUMNS))]
        if not any(_tells(row) for _, row in lines.values()):
            text += [title] if arithmetic else []
            continue
        text.append(title)
        text += ["  ".join(map(str.ljust, line, widths)).rstrip() for line in body]
        if arithmetic:
            for names, row in lines.values():
                text += [f"{names}:"] + [f"  {line}" for line in row["lines"]]
    return "\n".join(text)


def of_nodes(found: Sequence[Sequence[Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (node, row) pairs of what each node returned: a row, or the whole result of preflight_host.

    A node that was not asked, or knows nothing, is left out.
    """
    rows = [(str(node), row if "machine" in row else row.get("sizing")) for node, row in found if row]
    return [(node, row) for node, row in rows if row]


def of_hosts(hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (node, row) pairs of what preflight_host returned on ``hosts`` in this run."""
    return of_nodes([(host, hostvars[host].get("preflight_result")) for host in hosts])


def _by_model(
    rows: Sequence[tuple[str, Mapping[str, Any]]],
) -> dict[str, dict[tuple[str, ...], tuple[str, Mapping[str, Any]]]]:
    grouped: dict[str, dict[tuple[str, ...], list[tuple[str, Mapping[str, Any]]]]] = {}
    for node, row in rows:
        grouped.setdefault(_title(row), {}).setdefault(_cells(row), []).append((node, row))
    return {
        title: {cells: (_nodes([name for name, _ in pairs]), pairs[0][1]) for cells, pairs in lines.items()}
        for title, lines in grouped.items()
    }


def _nodes(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} .. {names[-1]} ({len(names)})"


def _title(row: Mapping[str, Any]) -> str:
    known = []
    if row["heads"]:
        known.append(f"{row['heads']} attention heads")
    if row["context_limit"]:
        known.append(f"context {row['context_limit']}")
    if not _tells(row):
        return (
            f"{row['model']}: nothing is known before it is there; playbooks/plan.yml reads its figures from the Hub."
        )
    figures = f" Figures: {row['source']}." if row["source"] else ""
    return f"{row['model']}{': ' if known else ''}{', '.join(known)}.{figures}"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["kv_per_gpu"] == 0:
        return (*_machine_cells(row), "none", "does not fit", "0", _gib(row["disk"]))
    most = "<= " if row["at_most"] else ""
    context = "?" if row["context"] is None else f"{most}{row['context']}"
    if row["context_asked"]:
        context = f"{row['context_asked']} of {context}"
    return (
        *_machine_cells(row),
        _gib(row["kv_per_gpu"], most),
        context,
        "?" if row["requests"] is None else f"{most}{row['requests']:.1f}",
        _gib(row["disk"]),
    )


def _machine_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = "?" if row["sizes"] is None else ",".join(map(str, row["sizes"]))
    return row["machine"], str(row["tensor"]), sizes, _gib(row["weights_per_gpu"])


def _gib(size: int | None, most: str = "") -> str:
    return "?" if size is None else f"{most}{size / gpu_memory.GIB:.1f} GiB"


def _tells(row: Mapping[str, Any]) -> bool:
    return any(row[key] is not None for key in ("heads", "weights_per_gpu", "context_limit", "context"))
