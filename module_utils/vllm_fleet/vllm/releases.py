# SPDX-License-Identifier: Apache-2.0
"""What `vllm serve` takes since which release, and until which: flags, environment. Pure; data: release_data.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from . import release_data

Version = tuple[int, int, int]


def _by_name(by_release: Mapping[str, str]) -> dict[str, str]:
    return {name: release for release, names in by_release.items() for name in names.split()}


#: First release with a flag, of those that 0.8.5 has not; first with a variable, and first without it.
SINCE = _by_name(release_data.FLAGS_ADDED)
VARIABLES_SINCE = _by_name(release_data.VARIABLES_ADDED)
VARIABLES_UNTIL = _by_name(release_data.VARIABLES_GONE)

#: All flags that some release from OLDEST to the newest one that was read has, or had before it.
FLAGS = frozenset(
    {*release_data.FLAGS_KEPT.split(), *SINCE, *release_data.FLAGS_GONE, *release_data.FLAGS_OF_OTHERS.split()}
)
OLDEST = "0.8.5"

#: First release that reads this value of a variable. Before, vLLM takes `nobind` for a list of cores, and its worker
#: dies of it (v1/worker/cpu_worker.py).
VALUES_SINCE = {("VLLM_CPU_OMP_THREADS_BIND", "nobind"): "0.11.1"}

#: `vllm serve --help=all` prints all flags since this release; before, `--help` alone does.
HELP_ALL_SINCE = "0.11"

_VERSION = re.compile(r"^v?(\d+)\.(\d+)(?:\.(\d+))?")


def version_of(text: str) -> Version | None:
    """Return the vLLM version in an image's tag or a release's name: v0.31.0, 0.9.2.post2, rocm7.14_vllm_0.23.0.

    None where it has none.
    """
    text = text.rpartition("vllm_")[2] if "vllm_" in text else text
    if text.startswith("rocm"):
        return None
    found = _VERSION.match(text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def known(text: str) -> bool:
    """Whether a tag or a release's name is of a release whose flags are known: up to the newest that was read."""
    have, newest = version_of(text), version_of(release_data.NEWEST)
    return have is not None and newest is not None and have[:2] <= newest[:2] and not older(text, OLDEST)


def older(text: str, since: str) -> bool:
    """Whether a tag or a release's name is of an older vLLM than ``since``; False where it has no version."""
    have, need = version_of(text), version_of(since)
    return have is not None and need is not None and have < need


def too_old(flags: Collection[str], since: str) -> bool:
    """Whether a vLLM with these ``flags`` is older than a release: it has no flag that came with it or later."""
    return not any(flag in flags and not older(release, since) for flag, release in SINCE.items())


def newer_flags(args: Collection[str], tag: str) -> dict[str, str]:
    """Return those of ``args`` that an image of this tag is too old for, with the release that has them first."""
    names = {flag.partition(".")[0].removeprefix("no-") for flag in args}
    return {flag: SINCE[flag] for flag in sorted(names) if flag in SINCE and older(tag, SINCE[flag])}


def newer_values(env: Mapping[str, object], too_old: Callable[[str], bool]) -> list[tuple[str, str, str]]:
    """Return name, value and first release of what is set in ``env`` for which the vLLM is too old."""
    return [
        (name, value, since)
        for (name, value), since in VALUES_SINCE.items()
        if str(env.get(name, "")) == value and too_old(since)
    ]


def wrong_variables(env: Collection[str], tag: str) -> dict[str, str]:
    """Return the variables of ``env`` that an image of this tag passes over, with the reason: too new, or gone.

    Empty where the tag names no release.
    """
    found = {}
    for name in sorted(env):
        since, until = VARIABLES_SINCE.get(name), VARIABLES_UNTIL.get(name)
        if since and older(tag, since):
            found[name] = f"since {since}"
        elif until and version_of(tag) and not older(tag, until):
            found[name] = f"gone since {until}"
    return found


def deprecated(args: Collection[str], tag: str) -> dict[str, str]:
    """Return those of ``args`` that the newest release that was read calls deprecated, and what it says of their end.

    Empty for an image of an older release, and for a tag that names none.
    """
    if version_of(tag) is None or older(tag, release_data.NEWEST):
        return {}
    ends = {flag: release_data.DEPRECATED[flag] for flag in sorted(args) if flag in release_data.DEPRECATED}
    return {flag: f"to be gone in {end}" if end else "without effect" for flag, end in ends.items()}


def default_of(name: str, tag: str) -> str:
    """Return the default that a release has for what turned; the newest one where the tag names no release."""
    turned = next(one for one in release_data.DEFAULTS if one.name == name)
    return turned.before if older(tag, turned.since) else turned.after
