# SPDX-License-Identifier: Apache-2.0
"""What ``amd-smi ... --json`` prints, in plain figures.

Pure: text in, values out. AMD calls the CLI example code rather than a stable interface, and it shows: ROCm 6 prints a
bare list, ROCm 7 and later wrap it in ``{"gpu_data": [...]}`` (not for every subcommand), a figure may be ``3``,
``"3"``, ``{"value": 3, "unit": "MB"}`` or ``"N/A"``, an empty list is a sentence, and warnings may come before the
JSON. What cannot be read is None; only text without any JSON is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# amd-smi writes MB and means MiB: 196288 "MB" of a cloud MI300X are 205822885888 bytes.
_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}

_BAD_PAGES = ("retired", "pending", "un_res")


@dataclass(frozen=True)
class Identity:
    """A row of ``amd-smi list``: amd-smi's own number of a GPU and what the kernel calls it."""

    gpu: int
    bdf: str | None
    kfd_id: int | None


@dataclass(frozen=True)
class Ecc:
    """Error counts since the driver was loaded (``amd-smi metric --ecc``)."""

    correctable: int | None
    uncorrectable: int | None
    deferred: int | None


@dataclass(frozen=True)
class BadPages:
    """Numbers of memory pages taken out of use, waiting for it, and impossible to take out (``amd-smi bad-pages``)."""

    retired: int | None
    pending: int | None
    unreservable: int | None


@dataclass(frozen=True)
class Process:
    """A process on a GPU (``amd-smi process``). ``bytes`` may be the process's total over all its GPUs."""

    gpu: int
    pid: int
    name: str | None
    bytes: int | None


def identities(text: str) -> list[Identity]:
    """Read ``amd-smi list --json``."""
    found = []
    for gpu, row in _rows(text):
        bdf = row.get("bdf")
        found.append(
            Identity(gpu, bdf.lower() if isinstance(bdf, str) and ":" in bdf else None, number(row.get("kfd_id")))
        )
    return found


def ecc(text: str) -> dict[int, Ecc]:
    """Read ``amd-smi metric --ecc --json``: counts by amd-smi's GPU number."""
    found = {}
    for gpu, row in _rows(text):
        counts = row.get("ecc")
        counts = counts if isinstance(counts, dict) else {}
        found[gpu] = Ecc(
            *(number(counts.get(f"total_{kind}_count")) for kind in ("correctable", "uncorrectable", "deferred"))
        )
    return found


def bad_pages(text: str) -> dict[int, BadPages]:
    """Read ``amd-smi bad-pages --json``: page counts by amd-smi's GPU number.

    A list counts its entries, one page alone comes without the list, "No bad pages found." is 0, "N/A" is None.
    """
    return {gpu: BadPages(*(_pages(row.get(kind)) for kind in _BAD_PAGES)) for gpu, row in _rows(text)}


def processes(text: str) -> list[Process]:
    """Read ``amd-smi process --json``; the sentence that stands for "none" gives no entry, repeated pids one a GPU."""
    found: dict[tuple[int, int], Process] = {}
    for gpu, row in _rows(text):
        rows = row.get("process_list")
        for entry in rows if isinstance(rows, list) else []:
            # Older and newer releases put the figures under process_info or directly into the entry.
            info = entry.get("process_info", entry) if isinstance(entry, dict) else None
            if not isinstance(info, dict):
                continue
            pid = number(info.get("pid"))
            if pid is None:
                continue
            usage = info.get("mem_usage")
            if usage is None and isinstance(info.get("memory_usage"), dict):
                usage = info["memory_usage"].get("vram_mem")
            name = info.get("name")
            found[gpu, pid] = Process(gpu, pid, name if isinstance(name, str) else None, size(usage))
    return list(found.values())


def number(value: Any) -> int | None:
    """Return a whole number out of ``3``, ``"3"``, ``"0x3"`` or ``{"value": 3}``; None for anything else."""
    if isinstance(value, dict):
        value = value.get("value")
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return int(value)
    if isinstance(value, str):
        try:
            return int(value.strip(), 0)
        except ValueError:
            return None
    return None


def size(value: Any) -> int | None:
    """Return bytes out of ``{"value": 2531, "unit": "MB"}`` (MB means MiB) or a bare number of bytes."""
    amount = number(value)
    if amount is None or not isinstance(value, dict):
        return amount
    unit = value.get("unit", "B")
    factor = _UNITS.get(str(unit).upper())
    return amount * factor if factor else None


def _pages(value: Any) -> int | None:
    if isinstance(value, list):
        return len(value)
    if isinstance(value, dict):
        return 1
    if isinstance(value, str) and value.lower().startswith("no bad pages"):
        return 0
    return None


def _rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (gpu number, row). Raises ValueError when the text holds no JSON list or object."""
    for row in _data(text):
        if isinstance(row, dict):
            gpu = number(row.get("gpu"))
            if gpu is not None:
                yield gpu, row


def _data(text: str) -> list[Any]:
    decoder = json.JSONDecoder()
    for position, character in enumerate(text):
        if character not in "[{":
            continue
        try:
            data, _ = decoder.raw_decode(text, position)
        except ValueError:
            continue
        if isinstance(data, dict):
            data = data.get("gpu_data", [data] if "gpu" in data else None)
        # A warning such as "[WARNING] ..." or "{...}" before the answer is not it.
        if isinstance(data, list) and (not data or any(isinstance(row, dict) for row in data)):
            return data
    head = " ".join(text.split())[:120]
    raise ValueError(f"amd-smi printed no JSON table but {head!r}")
