# SPDX-License-Identifier: Apache-2.0
"""Whether a node's AMD GPUs are sick, from the driver's counters and the kernel's log. Reads files only.

For a look every few seconds: no program is started, and what cannot be read is no fault. Counters and bad pages are
described in Linux, Documentation/gpu/amdgpu/ras; they begin at zero with the driver, so a reset or a reboot that helped
is seen by itself. Temperatures are in Documentation/gpu/amdgpu/thermal (hwmon), memory in driver-misc.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .files import Files
from .render_nodes import pci_address

AMD_VENDOR = "0x1002"
#: PCI base class 12h, processing accelerators: no graphics card of a display is one.
_ACCELERATOR = "0x12"
_COUNT = re.compile(r"^(ue|ce|de): *(\d+)", re.MULTILINE)
#: Bytes of a GPU that its driver and idle programs may hold, as preflight_idle_vram.
IDLE_VRAM = 5_000_000_000
#: One page a line: address, size, and R (retired), P (pending) or F (could not be reserved).
_PAGE = re.compile(r"^0x[0-9a-f]+ *: *0x[0-9a-f]+ *: *([RPF])", re.MULTILINE)
_PCI = r"(?P<pci>[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])"
#: Lines of amdgpu by what they say of a GPU, newer drivers without the second `amdgpu:`. Seen in public reports of
#: MI300X (ROCm 6.2 to 7.2) and, for resets and time-outs, of other GPUs with the same driver.
_SAYS = (
    ("fatal", r"uncorrectable hardware error ?\(\w+\) detected|[1-9]\d* uncorrectable hardware errors? detected"),
    ("gone", r"device lost from bus|GPU has fallen off|Surprise [Rr]emoval"),
    ("failed", r"GPU reset ?(?:\(\d+\) )?failed|GPU reset end with ret = -\d+|GPU [Rr]ecovery [Ff]ailed"),
    ("well", r"GPU reset ?\(\d+\) succeeded|GPU reset succeeded"),
    ("reset", r"GPU reset begin"),
    ("hang", r"\bring \S+ timeout|GPU hang|Queue preemption failed|HW exception by GPU"),
)
_LINE = re.compile(rf"amdgpu {_PCI}:.*?(?:{'|'.join(f'(?P<{kind}>{text})' for kind, text in _SAYS)})")


@dataclass(frozen=True)
class Gpu:
    """One GPU as the kernel counts it; None where it does not say. ``slow``: its link has less than it could have.

    ``hot``: which of its sensors is at its critical temperature. ``loose``: more of its memory is in use than its
    processes hold, and than a driver needs.
    """

    uncorrectable: int | None
    correctable: int | None
    bad_pages: int | None
    slow: str = ""
    hot: str = ""
    loose: bool = False


@dataclass(frozen=True)
class Fault:
    """What is wrong with the GPU at ``pci``, a sentence without its end. ``serious``: its answers cannot be trusted."""

    kind: str
    pci: str
    says: str
    serious: bool


def read(sysfs: Path) -> dict[str, Gpu]:
    """Return the AMD accelerators of a node by their PCI addresses."""
    found, held = {}, _held(sysfs)
    for folder in sorted((sysfs / "bus/pci/devices").glob("*")):
        if _text(folder / "vendor") == AMD_VENDOR and _text(folder / "class").startswith(_ACCELERATOR):
            counts, pci = ras_counts(folder / "ras"), folder.name
            loose = pci in held and (_number(folder / "mem_info_vram_used") or 0) - held[pci] > IDLE_VRAM
            found[pci] = Gpu(
                counts.get("ue"), counts.get("ce"), _bad_pages(folder), _slow(folder), _hot(folder), loose=loose
            )
    return found


def ras_counts(folder: Path) -> dict[str, int]:
    """Return the sums of a GPU's ``ras/*_err_count``: `ue`, `ce`, newer drivers `de`; empty if one is unreadable."""
    sums: dict[str, int] = {}
    try:
        for path in folder.glob("*_err_count"):
            for kind, count in _COUNT.findall(path.read_text(encoding="utf-8")):
                sums[kind] = sums.get(kind, 0) + int(count)
    except (OSError, ValueError):
        return {}
    return sums


def judge(known: Iterable[str], now: Mapping[str, Gpu], log: Mapping[str, str]) -> list[Fault]:
    """Return what is wrong, the serious first. Pure.

    ``known`` are the GPUs that the node has had since its boot, ``log`` what ``states`` made of the kernel's log.
    """
    faults = [
        Fault("gone", pci, f"GPU {pci} is gone from the PCI bus", serious=True)
        for pci in sorted(set(known) - now.keys())
    ]
    for pci, gpu in now.items():
        if gpu.uncorrectable:
            counted = f"{gpu.uncorrectable} uncorrectable error{'' if gpu.uncorrectable == 1 else 's'}"
            faults.append(Fault("uncorrectable", pci, f"GPU {pci} has {counted} of memory or logic", serious=True))
        elif log.get(pci) in _SERIOUS:
            faults.append(
                Fault(log[pci], pci, f"GPU {pci} {_SERIOUS[log[pci]]}, as the kernel's log says", serious=True)
            )
        if gpu.slow:
            faults.append(Fault("link", pci, f"the link of GPU {pci} runs at {gpu.slow}", serious=False))
        if gpu.hot:
            says = f"the {gpu.hot} of GPU {pci} is at its critical temperature, so the GPU slows down"
            faults.append(Fault("hot", pci, says, serious=False))
        if gpu.loose:
            says = f"more than 5 GB of the memory of GPU {pci} is held by no process; a reset of the GPU gives it free"
            faults.append(Fault("memory", pci, says, serious=False))
        if gpu.bad_pages:
            faults.append(Fault("bad_pages", pci, f"GPU {pci} has {gpu.bad_pages} bad pages of memory", serious=False))
    return sorted(faults, key=lambda fault: not fault.serious)


#: States of the log that a GPU does not get out of by itself.
_SERIOUS = {
    "fatal": "met an uncorrectable hardware error",
    "gone": "was lost from the bus",
    "failed": "could not be reset",
}


def kernel_lines(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (PCI address, kind) for each line of the kernel's log that says something of a GPU. Pure."""
    for line in lines:
        match = _LINE.search(line)
        if match:
            kind = next(name for name, _ in _SAYS if match[name])
            yield match["pci"], kind


def states(lines: Iterable[str], before: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the last thing that the log says of each GPU: fatal, gone, failed, well, reset or hang. Pure.

    ``before`` is what the lines before these said. A GPU that met a fatal error is well again only after a reset that
    succeeded.
    """
    found = dict(before or {})
    for pci, kind in kernel_lines(lines):
        if found.get(pci) in _SERIOUS and kind != "well":
            continue
        found[pci] = kind
    return found


def _bad_pages(folder: Path) -> int | None:
    try:
        return len(_PAGE.findall((folder / "ras/gpu_vram_bad_pages").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _slow(folder: Path) -> str:
    """Return `x8 of x16` or the like; empty where the link has all its lanes, or says nothing, as virtual functions do.

    Not its speed: links go down when they are idle, and `max_link_speed` is the GPU's own, not the slot's.
    """
    width, most = _text(folder / "current_link_width"), _text(folder / "max_link_width")
    known = width.isdigit() and most.isdigit() and int(width) > 0
    return f"x{width} of x{most}" if known and int(width) < int(most) else ""


def _hot(folder: Path) -> str:
    """Return the name of a sensor (`edge`, `junction`, `mem`) that is at its critical temperature; empty if none is."""
    for limit in sorted(folder.glob("hwmon/hwmon*/temp*_crit")):
        sensor = limit.name.removesuffix("_crit")
        most, now = _number(limit), _number(limit.with_name(f"{sensor}_input"))
        if most and now is not None and now >= most:
            return _text(limit.with_name(f"{sensor}_label")) or sensor
    return ""


def _held(sysfs: Path) -> dict[str, int]:
    """Return the bytes of memory that processes hold of each GPU of the KFD topology, all its partitions together."""
    kfd = sysfs / "class/kfd/kfd"
    gpus, found = {}, {}
    for node in Files().entries(kfd / "topology/nodes", expected=False):
        properties, ident = Files().properties(node / "properties"), _text(node / "gpu_id")
        if ident not in ("", "0") and "location_id" in properties:
            gpus[ident] = pci_address(sysfs, properties.get("domain", 0), properties["location_id"])[0]
            found[gpus[ident]] = 0
    for path in kfd.glob("proc/[0-9]*/vram_*"):
        pci = gpus.get(path.name.removeprefix("vram_"))
        if pci:
            found[pci] += _number(path) or 0
    return found


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
