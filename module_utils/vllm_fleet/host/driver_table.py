# SPDX-License-Identifier: Apache-2.0
"""Which driver goes with which ROCm: AMD's releases as a table, and what follows from it. Pure.

The facts are in roles/rocm/files/drivers.yml, with their sources.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..common.finding import Finding
from .driver import INBOX, MODULE_RELEASES, module_release, strip_zero

#: Words of rocm_allowed_driver_versions: all lines of the table, and what is above them.
KNOWN, NEWER = "known", "newer"
#: AMD: from ROCm 6.4 on, driver and user space go together that are up to a year apart.
APART = 365  # days
RULE_SINCE = (6, 4)
WHAT = "driver and image"

_LINE = re.compile(r"\d{1,2}\.\d{1,2}$")

Span = tuple["int | None", "int | None"]


@dataclass(frozen=True)
class Line:
    """One line of driver releases, such as 30.30: its day, ROCm releases that AMD names, distributions with kernels.

    Days are numbers, as ``date.toordinal()`` gives them; None where none is published.
    """

    line: str
    module: str
    released: int | None
    rocm: tuple[str, ...]
    os: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Table:
    """Lines of drivers, and the days of ROCm releases (None where none is published), oldest first."""

    lines: tuple[Line, ...] = ()
    rocm: tuple[tuple[str, int | None], ...] = ()

    @property
    def newest(self) -> str:
        """The newest line; empty in an empty table."""
        return self.lines[-1].line if self.lines else ""


@dataclass(frozen=True)
class Verdict:
    """Whether a driver takes a ROCm, None where the table cannot tell; ``why`` is a part of a sentence."""

    accepted: bool | None
    why: str


def parse(data: Any) -> Table:
    """Return the table out of the file's data, days as numbers. Raises ValueError, one sentence, for what is none."""
    try:
        rocm = tuple((_line(name), _day((entry or {}).get("released"))) for name, entry in data["rocm"].items())
        lines = tuple(
            Line(
                line=_line(entry["line"]),
                module=str(entry["module"]),
                released=min(days, default=None) if (days := _days(entry["releases"])) else None,
                rocm=tuple(_line(one) for one in entry["rocm"]),
                os={str(name): tuple(map(str, kernels)) for name, kernels in (entry.get("os") or {}).items()},
            )
            for entry in data["drivers"]
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the table of drivers is not understood ({type(error).__name__}: {error})") from error
    for names in ([one.line for one in lines], [name for name, _ in rocm]):
        if names != sorted(set(names), key=_numbers):
            raise ValueError(f"the table of drivers is not in order, or has a release twice: {', '.join(names)}")
    return Table(lines, rocm)


def _line(value: object) -> str:
    if not _LINE.match(str(value)):
        raise ValueError(f"the table of drivers has {value} where two numbers are expected, such as 30.30")
    return str(value)


def _days(releases: Mapping[str, Any]) -> list[int]:
    return [day for day in map(_day, releases.values()) if day]


def _day(value: object) -> int | None:
    if value is None or isinstance(value, int):
        return value
    raise ValueError(f"the table of drivers has {value} where a day is expected")


def as_option(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a node is given of the file: what ``parse`` reads, without sources."""
    table = parse(data)
    lines = [
        {
            "line": one.line,
            "module": one.module,
            "releases": {one.line: one.released},
            "rocm": list(one.rocm),
            "os": {name: list(kernels) for name, kernels in one.os.items()},
        }
        for one in table.lines
    ]
    return {
        "drivers": lines,
        "rocm": {name: {"released": day} if day else {} for name, day in table.rocm},
    }


def allowed(entries: Iterable[object], table: Table) -> list[str]:
    """Return a list of allowed drivers as driver.driver_allowed reads it: ``known`` and ``newer`` are spelled out."""
    found: list[str] = []
    for entry in map(str, entries):
        if entry == KNOWN:
            found += [one.line for one in table.lines]
        elif entry == NEWER:
            found += [f">{table.newest}"] if table.newest else []
        else:
            found.append(entry)
    return list(dict.fromkeys(found))


def newer_than_known(release: str | None, table: Table) -> bool:
    """Return whether a release is above every line of the table."""
    if not release or release == INBOX or not table.newest:
        return False
    return _two(release) > _numbers(table.newest)


def coming(driver: Mapping[str, Any], wanted: str, *, installs: bool, reboots: bool) -> str | None:
    """Return the release of the driver that a server will start on after this run; None where that is not known.

    ``driver`` is as rocm_info returns it. What is loaded stays unless the role replaces it, or a reboot brings another.
    """
    loaded, on_disk = driver.get("release"), driver.get("on_disk_version")
    waits = driver.get("reboot_required") or not driver.get("loaded")
    if on_disk and waits and (reboots or not driver.get("loaded")) and (driver.get("package_allowed") or not installs):
        of_module = module_release(on_disk) or MODULE_RELEASES.get(on_disk)
        return str(driver.get("package_release") or "") or of_module
    if installs and driver.get("allowed") is False:
        return strip_zero(wanted)
    return str(loaded) if loaded else None


def verdict(table: Table, release: str | None, rocm: str) -> Verdict:
    """Return whether the driver ``release`` takes programs of ``rocm`` (7.2.3; empty is not known)."""
    if not rocm or not release or release == INBOX or not table.lines:
        return Verdict(None, "")
    driver, user = _span([(one.line, one.released) for one in table.lines], release), _span(table.rocm, rocm)
    line = next((one for one in table.lines if _numbers(one.line) == _two(release)), None)
    short = ".".join(map(str, _two(rocm)))
    if line and short in line.rocm:
        return Verdict(True, f"AMD names ROCm {short} for driver {line.line}")
    named = f"; AMD names ROCm {', '.join(line.rocm)} for driver {line.line}" if line else ""
    if tuple(_two(rocm)) < RULE_SINCE:
        return Verdict(False, f"ROCm {short} is older than the rule of one year{named}")
    apart = _apart(driver, user)
    if apart is None:
        return Verdict(None, f"the days of driver {release} and ROCm {rocm} are not known here{named}")
    how = "more than a year apart" if apart else "within a year"
    return Verdict(not apart, f"driver {release} and ROCm {rocm} are {how}{named}")


def finding(
    table: Table, release: str | None, rocm: str, *, proven: bool = False, level: str = "refused"
) -> Finding | None:
    """Return what preflight says of driver and image; None where the image does not say its ROCm.

    ``proven``: the server runs with this image on this driver.
    """
    found = verdict(table, release, rocm)
    if not rocm:
        return None
    got = f"driver {release or 'of unknown release'}, ROCm {rocm}"
    if found.accepted:
        return Finding("ok", WHAT, "within a year", got)
    if found.accepted is None:
        return Finding("unknown", WHAT, "within a year", got, found.why or "see AMD's compatibility matrix")
    remedy = (
        f"{found.why}. Take an image or a driver (rocm_driver_version) nearer to the other, or preflight_accept: "
        f"[{WHAT}] if it is known to work"
    )
    return Finding("warning" if proven else level, WHAT, "within a year", got, remedy)


def lacks_packages(table: Table, release: str, distribution: str) -> str:
    """Return why AMD has no packages of a release for a distribution; empty where it has, or may have."""
    line = next((one for one in table.lines if _numbers(one.line) == _two(release)), None)
    if line is None or not line.os or distribution in line.os:
        return ""
    others = [one.line for one in table.lines if distribution in one.os]
    advice = f"set rocm_driver_version to one of {', '.join(others)}" if others else "install a driver by hand"
    return f"AMD has driver {release} for {', '.join(sorted(line.os))}, and not for {distribution}: {advice}."


def _span(known: Iterable[tuple[str, int | None]], release: str) -> Span:
    """Return between which days something was released: its own, or those of its neighbours (None: no bound)."""
    first: int | None = None
    for name, day in known:
        if day is None:
            continue
        if _numbers(name) == _two(release):
            return day, day
        if _numbers(name) > _two(release):
            return first, day
        first = day
    return first, None


def _apart(one: Span, other: Span) -> bool | None:
    """Return whether two days are more than a year apart; None where their bounds leave it open."""
    if None not in (*one, *other):
        days = [abs(a - b) for a in one for b in other if a and b]
        if max(days) <= APART:
            return False
    gaps = [low - high for low, high in ((one[0], other[1]), (other[0], one[1])) if low and high]
    return True if any(gap > APART for gap in gaps) else None


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _two(release: str) -> list[int]:
    return _numbers(release)[:2]
