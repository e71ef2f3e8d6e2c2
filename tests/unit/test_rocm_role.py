# SPDX-License-Identifier: Apache-2.0
"""Role rocm as data: what it would write on each distribution, rendered by Ansible itself."""

import base64
import hashlib
from pathlib import Path

import pytest
import role_variables
import yaml

from ansible.module_utils.vllm_fleet.host import driver as amdgpu

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles/rocm"

KERNELS = {
    "ubuntu-22.04": "5.15.0-164-generic",
    "ubuntu-24.04": "6.8.0-90-generic",
    "ubuntu-26.04": "7.0.0-28-generic",
    "debian-12": "6.1.0-41-amd64",
    "debian-13": "6.12.57+deb13-amd64",
}
# Distribution -> suite of repo.radeon.com and packages, as AMD's installation pages list them.
TABLE = {
    "ubuntu-22.04": (
        "jammy",
        ["linux-headers", "linux-modules-extra", "python3-setuptools", "python3-wheel", "gcc-12"],
    ),
    "ubuntu-24.04": ("noble", ["linux-headers", "linux-modules-extra", "python3-setuptools", "python3-wheel"]),
    "ubuntu-26.04": ("resolute", ["linux-headers", "linux-modules-extra", "python3-setuptools", "python3-wheel"]),
    "debian-12": ("jammy", ["linux-headers"]),
    "debian-13": ("noble", ["linux-headers"]),
}
# Driver release -> folder of the repository and the digits in its package versions.
RELEASES = {
    "30.30.4": ("30.30.4", "30300400"),
    "31.40.0": ("31.40", "31400000"),
    "31.40": ("31.40", "31400000"),
    "30.10.2": ("30.10.2", "30100200"),
    "31.50": ("31.50", "31500000"),
}


def probe(distribution):
    """As much of rocm_info's answer as the templates look at."""
    name, version = distribution.split("-")
    kernel = {"release": KERNELS[distribution], "missing": []}
    return {"os": {"id": name, "version_id": version}, "kernel": kernel, "driver": {}}


def rendering(folder, cases, wanted):
    """Evaluate expressions of the role for each case; those whose name begins so are gateways."""
    gateways = [case for case in cases if case.startswith("gateway")]
    return role_variables.rendering(folder, ROLE, cases, wanted, groups={"gateway": gateways})


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The role's templates and variables for every distribution and release."""
    cases = {f"{d}_{r}": {"rocm_probe": probe(d), "rocm_driver_version": r} for d in TABLE for r in RELEASES}
    wanted = {
        "sources": f"lookup('template', '{ROLE}/templates/amdgpu.sources.j2')",
        "pref": f"lookup('template', '{ROLE}/templates/amdgpu.pref.j2')",
        "kernel_packages": "__rocm_header_packages + __rocm_optional_packages",
        "build": "__rocm_distribution.build",
        "version": "__rocm_package_version",
        "enabled": "rocm_enabled",
    }
    return rendering(tmp_path_factory.mktemp("rendered"), cases, wanted)


@pytest.mark.parametrize("distribution", TABLE)
@pytest.mark.parametrize("release", RELEASES)
def test_repository_and_packages(rendered, distribution, release):
    suite, packages = TABLE[distribution]
    folder, code = RELEASES[release]
    got = rendered[f"{distribution}_{release}"]
    assert got["sources"].splitlines()[1:] == [
        "Types: deb",
        f"URIs: https://repo.radeon.com/amdgpu/{folder}/ubuntu",
        f"Suites: {suite}",
        "Components: main",
        "Architectures: amd64",
        "Signed-By: /etc/apt/keyrings/rocm.gpg",
    ]
    kernel = KERNELS[distribution]
    assert got["kernel_packages"] + got["build"] == [
        f"{name}-{kernel}" if name.startswith("linux-") else name for name in packages
    ]
    assert got["version"] == f"*.{code}-*[0-9]"
    # The role and rocm_info must mean the same package by a release.
    assert amdgpu.driver_release(f"1:6.16.13.{code}-2341068.24.04") == amdgpu.strip_zero(release)


def test_the_pin_holds_the_release_and_no_other_package_comes_from_there(rendered):
    stanzas = rendered["ubuntu-24.04_30.30.4"]["pref"].split("\n\n")
    assert "Package: amdgpu-dkms amdgpu-dkms-firmware\nPin: version *.30300400-*[0-9]\nPin-Priority: 1001" in stanzas[0]
    assert "Package: *\nPin: release o=repo.radeon.com\nPin-Priority: 100" in stanzas[1]


def test_debian_and_ubuntu_are_all_there():
    assert set(yaml.safe_load((ROLE / "vars/main.yml").read_text())["__rocm_distributions"]) == set(TABLE)


def test_role_is_on_unless_the_fleet_runs_on_cpu(rendered):
    assert rendered["debian-12_30.30.4"]["enabled"] is True
    default = yaml.safe_load((ROLE / "defaults/main.yml").read_text())["rocm_enabled"]
    assert default == "{{ vllm_server_accelerator | default('rocm') == 'rocm' }}"


def test_specification_and_defaults_agree():
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    assert set(specs) == {"main", "reboot"}
    for spec in specs.values():
        assert set(spec["options"]) == set(defaults)
        for name, option in spec["options"].items():
            if "default" in option:
                assert option["default"] == defaults[name], name
            else:  # an expression, which a specification cannot hold
                assert "{{" in defaults[name], name


def test_required_command_line_is_the_one_that_is_looked_for():
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    assert tuple(defaults["rocm_kernel_cmdline"]) == amdgpu.REQUIRED_CMDLINE


def test_every_address_is_a_variable():
    """A mirror is enough: nothing but the defaults names a host."""
    for path in ROLE.rglob("*"):
        if (
            path.is_file()
            and path.suffix in (".yml", ".j2")
            and "defaults" not in path.parts
            and "meta" not in path.parts
        ):
            assert "://" not in path.read_text().replace("https?://", ""), path


# --- what is left to do, by what the probe found

DKMS = "/lib/modules/k/updates/dkms/amdgpu.ko"
GOOD = {
    "driver": {
        "loaded": True,
        "version": "6.16.13",
        "allowed": True,
        "package": "1:6.16.13.30300400-1.24.04",
        "package_allowed": True,
        "on_disk": DKMS,
        "on_disk_version": "6.16.13",
        "reboot_required": False,
    },
    "kernel": {
        "missing": [],
        "cmdline": "ro pci=bfsort,realloc=off iommu=pt",
        "blacklisted_by": [],
        "load_unit": None,
        "numa_balancing": 0,
        "numa_balancing_persistent": "0",
    },
    "groups": {"video": 44, "render": 104},
    "members": {"video": ["ops", "ada"], "render": ["ops"]},
    "user": {"name": "ops", "missing_groups": []},
    "devices": [{"path": "/dev/kfd", "gid": 104, "mode": "0660"}],
}
INBOX = {"version": None, "allowed": False}
UNIT = hashlib.sha256((ROLE / "templates/vllm-fleet-amdgpu.service.j2").read_bytes()).hexdigest()
KEPT_OUT = {"blacklisted_by": ["/etc/modprobe.d/vendor.conf"]}
WAITS = ["the amdgpu module on disk (6.16.13) is not the one in memory (of the distribution)"]
# What the probe found otherwise than GOOD by part, variables, the parts of the role that have work, why only a boot helps.
DECISIONS = {
    "all is right": ({}, {}, [], []),
    "no driver": (
        {
            "driver": {
                **INBOX,
                "loaded": False,
                "package": None,
                "package_allowed": False,
                "on_disk": None,
                "on_disk_version": None,
            }
        },
        {},
        ["install"],
        [],
    ),
    "installed, waits for its boot": ({"driver": {**INBOX, "reboot_required": True}}, {}, [], WAITS),
    "installed, not loaded": ({"driver": {**INBOX, "loaded": False}}, {}, ["load"], []),
    "a kernel that nothing was built for": (
        {"driver": {**INBOX, "on_disk": "/lib/modules/k/kernel/amdgpu.ko", "on_disk_version": None}},
        {},
        ["install"],
        [],
    ),
    "not to be installed": ({"driver": {**INBOX, "package_allowed": False}}, {"rocm_install_driver": False}, [], []),
    "good in memory, an unwanted one on disk": (
        {"driver": {"reboot_required": True, "package_allowed": False}},
        {},
        [],
        [],
    ),
    "good in memory, the distribution's on disk": (
        {"driver": {"reboot_required": True, "on_disk_version": None}},
        {},
        [],
        [],
    ),
    "good in memory, the distribution's on disk and allowed": (
        {"driver": {"reboot_required": True, "on_disk_version": None}},
        {"rocm_allowed_driver_versions": ["inbox", "30.30"]},
        [],
        ["the amdgpu module on disk (of the distribution) is not the one in memory (6.16.13)"],
    ),
    "good in memory, one built by hand on disk": (
        {"driver": {"reboot_required": True, "package": None, "package_allowed": False, "version": "6.10.5"}},
        {},
        [],
        ["the amdgpu module on disk (6.16.13) is not the one in memory (6.10.5)"],
    ),
    "kept out and wanted": ({"kernel": KEPT_OUT}, {"rocm_load_blacklisted_driver": True}, ["load"], []),
    "kept out, the unit is there": (
        {"kernel": {**KEPT_OUT, "load_unit": UNIT}},
        {"rocm_load_blacklisted_driver": True},
        [],
        [],
    ),
    "kept out, an older unit": (
        {"kernel": {**KEPT_OUT, "load_unit": "0" * 64}},
        {"rocm_load_blacklisted_driver": True},
        ["load"],
        [],
    ),
    "users, all in": ({}, {"rocm_users": ["ops"]}, [], []),
    "users, one lacks a group": ({}, {"rocm_users": ["ops", "ada"]}, ["access"], []),
    "the connecting user lacks one": ({"user": {"missing_groups": ["render"]}}, {}, ["access"], []),
    "a group is missing": ({"groups": {"render": None}}, {}, ["access"], []),
    "a device of root's": ({"devices": [{"path": "/dev/kfd", "gid": 0, "mode": "0600"}]}, {}, ["access"], []),
    "numa balancing on": ({"kernel": {"numa_balancing": 1}}, {}, ["kernel"], []),
    "numa balancing off until the boot": ({"kernel": {"numa_balancing_persistent": None}}, {}, ["kernel"], []),
    "a kernel without it": ({"kernel": {"numa_balancing": None, "numa_balancing_persistent": None}}, {}, [], []),
    "command line, complete": ({}, {"rocm_manage_kernel_cmdline": True}, [], []),
    "command line, left alone": ({"kernel": {"missing": ["iommu=pt"], "cmdline": "ro"}}, {}, [], []),
    "command line, a word of AMD's": (
        {"kernel": {"missing": ["iommu=pt"], "cmdline": "ro pci=bfsort,realloc=off"}},
        {"rocm_manage_kernel_cmdline": True},
        ["kernel"],
        ["the kernel runs without iommu=pt"],
    ),
    "command line, a word of one's own": (
        {},
        {"rocm_manage_kernel_cmdline": True, "rocm_kernel_cmdline": ["iommu=pt", "intel_iommu=on"]},
        ["kernel"],
        ["the kernel runs without intel_iommu=on"],
    ),
}


def changed(parts):
    """GOOD with some facts otherwise."""
    return {
        name: {**value, **parts[name]} if isinstance(value, dict) and name in parts else parts.get(name, value)
        for name, value in GOOD.items()
    }


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    cases = {
        f"case{n}": {"rocm_probe": changed(parts), **variables}
        for n, (parts, variables, _, _) in enumerate(DECISIONS.values())
    }
    wanted = {part: f"__rocm_{part}_needed | bool" for part in ("install", "load", "access", "kernel")}
    wanted["work"] = "rocm_work_needed | bool"
    found = rendering(tmp_path_factory.mktemp("decided"), cases, {**wanted, "reasons": "__rocm_reboot_reasons"})
    return dict(zip(DECISIONS, found.values(), strict=True))


@pytest.mark.parametrize("case", DECISIONS)
def test_what_is_left_to_do(decided, case):
    _, _, parts, reasons = DECISIONS[case]
    got = decided[case]
    assert [part for part in ("install", "load", "access", "kernel") if got[part]] == parts
    assert got["reasons"] == reasons
    assert got["work"] == bool(parts or reasons)


# --- what is refused and why, a variable of the role a case

OLD, NEW = {"rocm_driver_version": "30.10.2"}, {"rocm_driver_version": "31.40"}
GRUB = """
menuentry 'Debian' {
\tlinux\t/vmlinuz-6.1.0-41-amd64 root=UUID=1 ro quiet pci=bfsort
}
# iommu=pt
"""


def driver(release, version, package_release=None):
    return {"rocm_probe": {"driver": {"release": release, "version": version, "package_release": package_release}}}


def before_reboot(*, lost=False, kept_out=(), unit=None, **variables):
    kernel = {"next": "6.9", "blacklisted_by": list(kept_out), "load_unit": unit}
    return {"__rocm_before_reboot": {"driver": {"lost_at_boot": lost}, "kernel": kernel}, **variables}


def idle(containers=0, processes=()):
    return {"__rocm_before_reboot": {"processes": list(processes)}, "__rocm_engine": {"live_containers": containers}}


def kernel_cmdline(grub):
    """A node that runs without pci=bfsort and iommu=pt, and what its grub.cfg has."""
    probe = changed({"kernel": {"missing": ["pci=bfsort", "iommu=pt"], "cmdline": "ro"}})
    config = {"content": base64.b64encode(grub.encode()).decode()} if grub else {"failed": True}
    return {"rocm_probe": probe, "rocm_manage_kernel_cmdline": True, "__rocm_grub_config": config}


LOST = (
    "the next boot takes kernel 6.9, which amdgpu was not built for: install its headers and have DKMS build it"
    " (dkms autoinstall --kernelver), or take that kernel away"
)
OUT = (
    "amdgpu is kept out by vendor.conf and nothing here loads it at boot: take the entry away, or set"
    " rocm_load_blacklisted_driver to true"
)
UBUNTU = {"rocm_probe": {"os": {"id": "ubuntu", "version_id": "26.04"}}}
FITS = {"rocm_probe": {"driver": {"loaded": True, "allowed": True, "release": "30.30.4", "version": "6.16.13"}}}
UNFIT = (
    "driver and image: expected within a year, found driver 30.30.4, ROCm 6.1.2; ROCm 6.1 is older than the rule of one"
    " year; AMD names ROCm 6.3, 6.4, 7.0, 7.1, 7.2, 7.14 for driver 30.30. Take an image or a driver"
    " (rocm_driver_version) nearer to the other, or preflight_accept: [driver and image] if it is known to work"
)
SAID = {"what": "driver and image", "got": "driver 30.30.4, ROCm 6.1.2", "level": "warning"}
ANSWERS = {
    "newer: an exact release": ("newer", {**driver("30.30.4", "6.16.13"), **OLD}, ["release 30.30.4"]),
    "newer: the wanted line itself": ("newer", {**driver("30.30", "6.16.13"), "rocm_driver_version": "30.30.4"}, []),
    "newer: an older one": ("newer", {**driver("30.30.4", "6.16.13"), **NEW}, []),
    "newer: one that waits for its boot": ("newer", {**driver("inbox", None, "31.50"), **NEW}, ["release 31.50"]),
    "newer: none": ("newer", {**driver(None, None), **NEW}, []),
    "newer: from before the releases": ("newer", {**driver(None, "6.10.5"), **OLD}, []),
    "newer: who knows": ("newer", {**driver(None, "6.20.1"), **NEW}, ["version 6.20.1, of no known release,"]),
    "allowed: all that is known": (
        "allowed",
        {"rocm_driver_version": "30.30.4"},
        ["30.10", "30.20", "30.30", "31.10", "31.20", "31.30", "31.40", "31.50", ">31.50", "30.30.4"],
    ),
    "packages: none for this Ubuntu": (
        "lacks_packages",
        {"rocm_probe": {"os": {"id": "ubuntu", "version_id": "26.04"}}},
        "AMD has driver 30.30.4 for debian-12, debian-13, ubuntu-22.04, ubuntu-24.04, and not for ubuntu-26.04: set"
        " rocm_driver_version to one of 31.30, 31.40.",
    ),
    "packages: of a release that is none": ("lacks_packages", {"rocm_driver_version": "latest", **UBUNTU}, ""),
    "image: no ROCm that anybody knows": ("image_fault", FITS, ""),
    "image: one that goes with it": ("image_fault", {**FITS, "vllm_image_rocm": "7.2.3"}, ""),
    "image: too old": ("image_fault", {**FITS, "vllm_image_rocm": "6.1.2"}, UNFIT),
    "image: preflight has said it": (
        "image_fault",
        {**FITS, "vllm_image_rocm": "6.1.2", "preflight_result": {"node": {"gpus": 1}, "findings": [SAID]}},
        "",
    ),
    "image: accepted": (
        "image_fault",
        {**FITS, "vllm_image_rocm": "6.1.2", "preflight_accept": ["driver and image"]},
        "",
    ),
    "boot: nothing to lose": ("foreseen", before_reboot(), ""),
    "boot: a kernel without the driver": ("foreseen", before_reboot(lost=True), LOST),
    "boot: a kernel without the driver, allowed": (
        "foreseen",
        before_reboot(lost=True, rocm_allowed_driver_versions=["inbox"]),
        "",
    ),
    "boot: kept out": ("foreseen", before_reboot(kept_out=["vendor.conf"]), OUT),
    "boot: kept out, our unit loads it": ("foreseen", before_reboot(kept_out=["vendor.conf"], unit=UNIT), ""),
    "boot: kept out, the unit is to come": (
        "foreseen",
        before_reboot(kept_out=["vendor.conf"], rocm_load_blacklisted_driver=True),
        "",
    ),
    "idle": ("busy_with", idle(), ""),
    "idle: containers": ("busy_with", idle(2), "2 container(s) run"),
    "gateway: not idle": ("busy_with", idle(), "it is a gateway"),
    "barred": (
        "barred",
        {
            "rocm_probe": changed(
                {"kernel": {"blacklisted_by": ["a.conf", "kernel command line: module_blacklist=amdgpu"]}}
            )
        },
        ["kernel command line: module_blacklist=amdgpu"],
    ),
    "barred: not by what modprobe reads": (
        "barred",
        {"rocm_probe": changed({"kernel": {"blacklisted_by": ["kernel command line: modprobe.blacklist=amdgpu"]}})},
        [],
    ),
    "grub: has one of two words": ("unwritten_cmdline", kernel_cmdline(GRUB), ["iommu=pt"]),
    "grub: not there": ("unwritten_cmdline", kernel_cmdline(""), ["pci=bfsort", "iommu=pt"]),
    "certificates: missing": (
        "untrusted",
        {
            "__rocm_release_file": {"skipped": True},
            "__rocm_key_answer": {"msg": "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"},
        },
        ["<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"],
    ),
    "certificates: not the fault": (
        "untrusted",
        {"__rocm_release_file": {"msg": "Status code was 404"}, "__rocm_key_answer": {"skipped": True}},
        [],
    ),
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    cases = {
        f"{'gateway' if name.startswith('gateway') else 'case'}{n}": {"asked": f"__rocm_{asked}", **variables}
        for n, (name, (asked, variables, _)) in enumerate(ANSWERS.items())
    }
    found = rendering(tmp_path_factory.mktemp("answered"), cases, {"answer": "lookup('vars', asked)"})
    return dict(zip(ANSWERS, found.values(), strict=True))


@pytest.mark.parametrize("case", ANSWERS)
def test_what_is_refused_and_why(answered, case):
    assert answered[case]["answer"] == ANSWERS[case][2]


def test_the_unit_gets_past_an_install_line_of_modprobe():
    assert "ExecStart=/sbin/modprobe --ignore-install amdgpu" in (
        (ROLE / "templates/vllm-fleet-amdgpu.service.j2").read_text().splitlines()
    )
