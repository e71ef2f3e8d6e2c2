"""rocm_probe.py on folders that stand for /etc: who is in a group, what the next boot sets and loads."""

import grp
import hashlib

import pytest

from ansible.module_utils.vllm_fleet import rocm_probe

UNIT = "[Service]\nExecStart=/sbin/modprobe amdgpu\n"


def test_members_are_those_of_the_group_and_those_whose_first_group_it_is(tmp_path, monkeypatch):
    entry = grp.struct_group(("render", "x", 104, ["ops", "ada"]))
    monkeypatch.setattr(rocm_probe.grp, "getgrnam", {"render": entry}.__getitem__)
    (tmp_path / "passwd").write_text("bob:x:1003:104::/home/bob:/bin/sh\neve:x:104:1004::/:/bin/sh\nops:x:1:1::/:\n+\n")
    assert rocm_probe.members("render", tmp_path) == ["ada", "bob", "ops"]
    assert rocm_probe.members("video", tmp_path) == []
    (tmp_path / "passwd").unlink()
    assert rocm_probe.members("render", tmp_path) == ["ada", "ops"]


def test_the_unit_that_loads_the_driver_counts_only_when_a_boot_runs_it(tmp_path):
    unit = tmp_path / "systemd/system" / rocm_probe.LOAD_UNIT
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT)
    assert rocm_probe.load_unit(tmp_path) is None
    wanted = unit.parent / "multi-user.target.wants" / unit.name
    wanted.parent.mkdir()
    wanted.symlink_to(unit)
    assert rocm_probe.load_unit(tmp_path) == hashlib.sha256(UNIT.encode()).hexdigest()
    unit.unlink()
    assert rocm_probe.load_unit(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "value"),
    [
        ({}, None),
        ({"sysctl.d/10-a.conf": "kernel.numa_balancing = 1\n"}, "1"),
        ({"sysctl.d/10-a.conf": "kernel.numa_balancing=1", "sysctl.d/60-b.conf": "-kernel/numa_balancing = 0"}, "0"),
        ({"sysctl.d/60-b.conf": "kernel.numa_balancing = 0", "sysctl.conf": "kernel.numa_balancing=1"}, "1"),
        ({"sysctl.d/60-b.conf": "# kernel.numa_balancing = 0"}, None),
        ({"sysctl.d/60-b.txt": "kernel.numa_balancing = 0"}, None),
    ],
)
def test_what_the_next_boot_sets(tmp_path, files, value):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert rocm_probe.persistent_sysctl(tmp_path, "kernel.numa_balancing") == value
