# SPDX-License-Identifier: Apache-2.0
"""What the role rocm has left to do on a node, and what speaks against a reboot, by what rocm_info found. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .driver import INBOX, REQUIRED_CMDLINE

Facts = Mapping[str, Any]  # what rocm_info returns, or one part of it


# --- access to the GPUs


@dataclass(frozen=True)
class Access:
    """What keeps users from the GPUs: groups that are not there, a membership, device nodes of others."""

    missing_groups: list[str]
    membership_needed: bool
    wrong_devices: list[str]

    @property
    def needed(self) -> bool:
        """Whether there is something to do."""
        return bool(self.missing_groups or self.membership_needed or self.wrong_devices)


def access(node: Facts, users: Sequence[str], connecting: Facts) -> Access:
    """Return what keeps ``users`` from the GPUs of a node; without any it is the user that connects.

    Named users count by the groups' members, the connecting one by what the probe found of it (``user``), because a
    directory service may know more.
    """
    groups = node["groups"]
    members = set(node["members"]["video"]).intersection(node["members"]["render"])
    return Access(
        missing_groups=[name for name, number in groups.items() if number is None],
        membership_needed=not members.issuperset(users) if users else bool(connecting["missing_groups"]),
        wrong_devices=[one["path"] for one in node["devices"] if not _usable(one, groups)],
    )


def _usable(device: Facts, groups: Mapping[str, int | None]) -> bool:
    """Return whether a container can use a device node: one of the groups reads and writes it."""
    return device["gid"] in groups.values() and re.match(r"..[67]", device["mode"]) is not None


# --- the kernel's command line


def missing_words(kernel: Facts, wanted: Sequence[str]) -> list[str]:
    """Return which words of the command line the running kernel lacks; none where its command line is not known.

    Of AMD's own words the probe knows all spellings (``pci=bfsort,realloc=off``). Any other is looked for as written.
    """
    if kernel["cmdline"] is None:
        return []
    present = {*REQUIRED_CMDLINE}.difference(kernel["missing"])
    present |= set(kernel["cmdline"].split()).difference(REQUIRED_CMDLINE)
    return [word for word in wanted if word not in present]


def unwritten_words(words: Sequence[str], grub_cfg: str) -> list[str]:
    """Return which words GRUB gives none of its kernels; ``grub_cfg`` is the text of its configuration."""
    written = " ".join(re.findall(r"(?m)^\s*linux.*$", grub_cfg)).split()
    return [word for word in words if word not in written]


# --- the reboot


def reboot_reasons(driver: Facts, allowed: Sequence[str], missing: Sequence[str]) -> list[str]:
    """Return why only a reboot completes the node, as parts of a sentence; ``missing`` is missing_words().

    A good driver is not given up for one on disk that is not allowed, AMD's or the distribution's: that one is
    preflight's warning.
    """
    reasons = []
    if driver["reboot_required"] and not (driver["allowed"] and _unwanted_on_disk(driver, allowed)):
        reasons.append(
            f"the amdgpu module on disk ({driver['on_disk_version'] or 'of the distribution'}) is not the one in "
            f"memory ({driver['version'] or 'of the distribution'})"
        )
    if missing:
        reasons.append(f"the kernel runs without {' '.join(missing)}")
    return reasons


def _unwanted_on_disk(driver: Facts, allowed: Sequence[str]) -> bool:
    if driver["package"] is not None and not driver["package_allowed"]:
        return True
    return driver["on_disk_version"] is None and INBOX not in allowed


def lost_by_boot(node: Facts, allowed: Sequence[str], *, loads_blacklisted: bool) -> str:
    """Return why the node would come up without its driver, as part of a sentence; empty where it would not.

    ``loads_blacklisted`` is whether the role makes the unit that loads a blacklisted driver.
    """
    kernel = node["kernel"]
    if node["driver"]["lost_at_boot"] and INBOX not in allowed:
        return (
            f"the next boot takes kernel {kernel['next'] or kernel['release']}, which amdgpu was not built for: "
            "install its headers and have DKMS build it (dkms autoinstall --kernelver), or take that kernel away"
        )
    if kernel["blacklisted_by"] and kernel["load_unit"] is None and not loads_blacklisted:
        return (
            f"amdgpu is kept out by {', '.join(kernel['blacklisted_by'])} and nothing here loads it at boot: take the "
            "entry away, or set rocm_load_blacklisted_driver to true"
        )
    return ""


def busy_with(processes: Sequence[Facts], containers: int, *, gateway: bool) -> str:
    """Return whom a reboot would hit, as part of a sentence; empty where the node is idle.

    ``processes`` use the GPUs, ``containers`` is the number of those that run.
    """
    if processes:
        return f"the GPUs are in use by {', '.join(map(_process, processes))}"
    if containers > 0:
        return f"{containers} container(s) run"
    return "it is a gateway" if gateway else ""


def _process(one: Facts) -> str:
    return f"pid {one['pid']} ({one['container_name'] or one['container'] or one['command'] or 'unknown'})"


def in_the_way(busy: str, processes: Sequence[Facts], server: str, *, drained: bool) -> str:
    """Return what must be done before a node may be rebooted, as part of a sentence; empty where nothing must.

    ``busy`` is busy_with(); on a node that was drained, the container ``server`` alone may be stopped.
    """
    if busy and not drained:
        return f"{busy}: drain the node and set rocm_drained to true"
    if busy and any(one["container_name"] != server for one in processes):
        return f"{busy}, which is not our server: stop the process first"
    return ""


def gpus_lost(before: Facts, after: Facts) -> list[str]:
    """Return the PCI addresses of the GPUs that did not come up again: those that worked, or all if none did."""
    working = [one["pci"] for one in before["gpus"] if one["pci"]]
    back = {one["pci"] for one in after["gpus"]}
    return [pci for pci in dict.fromkeys(working or [one["pci"] for one in after["pci_devices"]]) if pci not in back]


def after_install(*, loaded: bool, may_reboot: bool) -> str:
    """Return what a run does once it has installed a driver, as the end of a sentence; empty where it loads it."""
    if not loaded:
        return ""
    if may_reboot:
        return "; a reboot brings it into the kernel"
    return "; the run would end there, for only a reboot brings it into the kernel, and rocm_allow_reboot is false"


def left_off(*, certificates: bool) -> str:
    """Return what was done before a repository turned out not to answer: perhaps ``certificates`` were installed."""
    return "The driver was not installed." if certificates else "Nothing was changed."


def not_back(host: str, reasons: Sequence[str], said: str, timeout: int) -> str:
    """Return why a node that was told to reboot is not there; ``said`` is Ansible's message, ``timeout`` is seconds."""
    said = " ".join(said.split())[:200] or "no answer"
    what = f"it is not back after {timeout} s" if "Timed out" in said else "that failed"
    return (
        f"{host}: told to reboot because {' and '.join(reasons)}, but {what} ({said}). Look at its console (BMC, "
        "provider); one that only takes longer needs a larger rocm_reboot_timeout."
    )
