# SPDX-License-Identifier: Apache-2.0
"""AMD's GPUs in /sys as samples, by the names of AMD's device-metrics-exporter in lower case. Reads files only.

Its units, too: MB for memory, W, degrees Celsius, percent. Files are described in Linux, Documentation/gpu/amdgpu
(driver-misc, thermal, ras); what a driver does not say is no sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..host import gpu_health
from ..host.gpu import INSTINCT

#: Bytes of the exporter's MB.
MB = 1 << 20
_SENSORS = {"junction": "gpu_junction_temperature", "mem": "gpu_memory_temperature", "edge": "gpu_edge_temperature"}

Sample = tuple[str, float, Mapping[str, str]]


def samples(sysfs: Path) -> Iterator[Sample]:
    """Yield name, value and labels of everything that is known of the node's accelerators, in the order of the bus."""
    for index, (pci, health) in enumerate(gpu_health.read(sysfs).items()):
        folder = sysfs / "bus/pci/devices" / pci
        labels = {"gpu_id": str(index), "pci": pci, "card_model": INSTINCT.get(_text(folder / "device"), "AMD")}
        for name, value in _one(folder).items():
            if value is not None:
                yield name, value, labels
        known = (
            ("gpu_ecc_correct_total", health.correctable),
            ("gpu_ecc_uncorrect_total", health.uncorrectable),
            ("gpu_bad_pages", health.bad_pages),
        )
        for name, number in known:
            if number is not None:
                yield name, number, labels
        yield "gpu_link_degraded", bool(health.slow), labels
        yield "gpu_thermal_limit", bool(health.hot), labels
        yield "gpu_unheld_memory", health.loose, labels


def _one(folder: Path) -> dict[str, float | None]:
    total, used = _number(folder / "mem_info_vram_total"), _number(folder / "mem_info_vram_used")
    found: dict[str, float | None] = {
        "gpu_total_vram": None if total is None else total / MB,
        "gpu_used_vram": None if used is None else used / MB,
        "gpu_free_vram": None if total is None or used is None else max(0.0, total - used) / MB,
        "gpu_gfx_activity": _number(folder / "gpu_busy_percent"),
        "gpu_umc_activity": _number(folder / "mem_busy_percent"),
        "pcie_bandwidth_width": _number(folder / "current_link_width"),
        "pcie_replay_count": _number(folder / "pcie_replay_count"),
    }
    speed = _text(folder / "current_link_speed").partition(" ")[0]
    found["pcie_speed"] = float(speed) if speed.replace(".", "", 1).isdigit() else None
    for monitor in sorted(folder.glob("hwmon/hwmon*")):
        # Newer drivers have power1_input alone, older ones power1_average; both in millionths of a watt.
        power = _number(monitor / "power1_average")
        power = _number(monitor / "power1_input") if power is None else power
        found["gpu_package_power"] = None if power is None else power / 1e6
        for label in monitor.glob("temp*_label"):
            heat = _number(label.with_name(label.name.replace("_label", "_input")))
            if (name := _SENSORS.get(_text(label))) and heat is not None:
                found[name] = heat / 1000
    return found


def _number(path: Path) -> float | None:
    text = _text(path)
    return float(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
