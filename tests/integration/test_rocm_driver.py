"""Role rocm on Debian 12 and 13 against a signed apt repository of our own (tests/aptrepo), through real apt and dpkg.

The nodes are containers of this machine's engine without an init system; the GPUs are a tree of files (tests/sysfs),
and a "boot" is the tree taking over what lies on disk.
"""

import ipaddress
import json
import os
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from aptrepo import build as aptrepo
from node_image import ensure_image
from sysfs import trees

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.engine

KERNEL = os.uname().release
MODULE = f"/lib/modules/{KERNEL}/updates/dkms/amdgpu.ko"
SUITES = {"bookworm": "22.04", "trixie": "24.04"}  # Debian suite -> Ubuntu release that its packages are built for


def docker(*arguments, **options):
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=True, timeout=300, **options
    ).stdout.strip()


class Bed:
    """Two nodes, the repository and a way to run the role on them."""

    def __init__(self, folder, url, fingerprint):
        self.folder, self.url, self.fingerprint = folder, url, fingerprint
        self.nodes = {}

    def sh(self, node, script):
        return docker("exec", self.nodes[node], "sh", "-c", script)

    def version(self, node):
        return self.sh(node, "dpkg-query -W -f '${Version}' amdgpu-dkms 2>/dev/null || true")

    def files(self, node):
        """Everything that the role could have written, with checksums."""
        return self.sh(
            node,
            "find /etc/apt /etc/udev /etc/default /etc/group /etc/modprobe.d /lib/modules /var/lib/dpkg/status"
            " -type f 2>/dev/null | sort | xargs sha256sum",
        )

    def load(self, node, version, srcversion):
        """Put a driver into the fake kernel of a node; None is the distribution's, without a version."""
        module = "/node/sys/module/amdgpu"
        line = f"echo {version} > {module}/version" if version else f"rm -f {module}/version"
        self.sh(node, f"echo {srcversion} > {module}/srcversion; {line}")

    def boot(self, node):
        """What a boot does: the module on disk becomes the loaded one."""
        read = f"modinfo -F %s {MODULE}"
        self.load(node, self.sh(node, read % "version"), self.sh(node, read % "srcversion"))

    def play(self, hosts, *flags, entry="main", **common):
        """Run the role on ``hosts`` (name -> (node, variables)); return ({name: result}, whole output).

        A result is the play's statistics of that host with the message of its failure under ``msg``.
        """
        inventory = {
            "all": {
                "vars": {
                    "ansible_connection": "community.docker.docker",
                    "ansible_python_interpreter": "/usr/bin/python3",
                    "rocm_repo_url": self.url + "/amdgpu/{{ rocm_driver_version }}/ubuntu",
                    "rocm_repo_key_url": self.url + "/rocm/rocm.gpg.key",
                    "rocm_repo_key_fingerprints": [self.fingerprint],
                    "rocm_sysfs_root": "/node/sys",
                    # A container shares the machine's kernel: its settings are not the test's to change.
                    "rocm_disable_numa_balancing": False,
                    **common,
                },
                "hosts": {name: {"ansible_host": self.nodes[node], **own} for name, (node, own) in hosts.items()},
            }
        }
        play = {
            "hosts": "all",
            "gather_facts": False,
            "tasks": [
                {
                    "name": "Role",
                    "ansible.builtin.include_role": {"name": "rocm", "tasks_from": entry},
                },
                {
                    "name": "Reasons",
                    "ansible.builtin.debug": {"msg": "{{ rocm_reboot_required | default([]) }}"},
                },
            ],
        }
        (self.folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
        (self.folder / "play.yml").write_text(yaml.safe_dump([play], sort_keys=False))
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory.yml", "play.yml", *flags],
            cwd=self.folder,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        answer = json.loads(done.stdout[done.stdout.index("{\n") :])
        results = {name: dict(stats) for name, stats in answer["stats"].items()}
        for task in answer["plays"][0]["tasks"]:
            for name, one in task["hosts"].items():
                if one.get("failed"):
                    failed = [item for item in one.get("results", []) if item.get("failed")]
                    results[name]["msg"] = (failed or [one])[0]["msg"]
                if task["task"]["name"] == "Reasons":
                    results[name]["reasons"] = one["msg"]
        return results, done.stdout + done.stderr


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rocm")
    tree = trees.Tree(folder / "node")
    tree.host()
    tree.driver(version=None, srcversion="D" * 23)  # Debian's own module
    tree.add_gpus(2)
    # gpg-agent's socket needs a short path.
    with tempfile.TemporaryDirectory(prefix="key") as home:
        key = aptrepo.make_key(Path(home))
        aptrepo.build(folder / "repo", key, KERNEL)
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True, timeout=30)
    network = json.loads(docker("network", "inspect", "bridge", "-f", "{{json .IPAM.Config}}"))[0]
    # Old engines leave the gateway out: it is the first address.
    gateway = network.get("Gateway") or str(next(ipaddress.ip_network(network["Subnet"]).hosts()))
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder / "repo"))
    handler.func.log_message = lambda *_: None
    server = ThreadingHTTPServer((gateway, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bed = Bed(folder, f"http://{gateway}:{server.server_address[1]}", key.fingerprint)
    try:
        for suite in SUITES:
            name = f"rocm-role-{suite}-{os.getpid()}"
            image = ensure_image(suite, "engine")
            docker("run", "-d", "--name", name, "--entrypoint", "/bin/sleep", image, "infinity")
            bed.nodes[suite] = name
            docker("cp", str(tree.root), f"{name}:/node")
            docker("cp", str(folder / "repo/rocm/rocm.gpg.key"), f"{name}:/etc/apt/keyrings/headers.asc")
            line = f"deb [signed-by=/etc/apt/keyrings/headers.asc] {bed.url}/distribution stable main"
            bed.sh(suite, f"echo '{line}' > /etc/apt/sources.list.d/headers.list; groupdel render 2>/dev/null || true")
        yield bed
    finally:
        for name in bed.nodes.values():
            docker("rm", "-f", "-v", name)
        server.shutdown()
        server.server_close()


def both(**variables):
    return {suite: (suite, variables) for suite in SUITES}


def test_refusals_change_nothing_and_say_why(bed):
    """Bad input, one inventory name each, on two nodes that must stay as they are."""
    before = {suite: bed.files(suite) for suite in SUITES}
    hosts = {
        "version": ("bookworm", {"rocm_driver_version": "latest"}),
        "folder": ("bookworm", {"rocm_driver_version": "30.30.1"}),
        "server": ("trixie", {"rocm_repo_url": "http://127.0.0.1:9/amdgpu"}),
        "key": ("trixie", {"rocm_repo_key_url": bed.url + "/rocm/none.key"}),
        "gpu": ("trixie", {"rocm_sysfs_root": "/sys/devices/virtual"}),
        "cpu": ("trixie", {"vllm_server_accelerator": "cpu"}),
        "keep": ("bookworm", {"rocm_allowed_driver_versions": ["inbox"], "rocm_users": []}),
    }
    # The groups are a change of their own; what is asked here is the driver's part.
    results, output = bed.play(hosts, "--check")
    folder = f"{bed.url}/amdgpu/30.30.1/ubuntu/dists/jammy/Release"
    expected = {
        "version": "rocm_driver_version is latest; AMD's driver release is expected, such as 30.30.4 or 31.40.",
        "folder": f"the package repository {folder} cannot be had (Status code was 404",
        "server": "the package repository http://127.0.0.1:9/amdgpu/dists/noble/Release cannot be had",
        "key": f"the repository's key {bed.url}/rocm/none.key cannot be had (Status code was 404",
        "gpu": "there is no AMD accelerator on the PCI bus",
    }
    for name, text in expected.items():
        assert text in results[name]["msg"], output
        assert results[name]["msg"].startswith(f"{name}: ")
        assert results[name]["msg"].endswith("Nothing was changed.")
        assert "\n" not in results[name]["msg"]
    assert (results["cpu"]["failures"], results["cpu"]["changed"]) == (0, 0)
    assert results["keep"]["failures"] == 0
    # The same refusals in a real run.
    results, _ = bed.play({name: hosts[name] for name in ("version", "folder", "gpu")})
    assert all(result["failures"] == 1 and result["changed"] == 0 for result in results.values())
    assert {suite: bed.files(suite) for suite in SUITES} == before


def test_a_key_with_another_fingerprint_is_refused(bed):
    results, output = bed.play(both(rocm_repo_key_fingerprints=["A" * 40]))
    for suite, result in results.items():
        assert (
            f"the key of {bed.url}/amdgpu/30.30.4/ubuntu is {bed.fingerprint}; {'A' * 40} is expected" in result["msg"]
        ), output
        assert bed.version(suite) == ""
        assert bed.sh(suite, "ls /etc/apt/keyrings /etc/apt/sources.list.d | grep -c -e rocm -e amdgpu || true") == "0"
        # gpg came from the distribution; from here on nothing else does, and its lists need not be fetched again.
        bed.sh(suite, "gpg --version && rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*debian*")


def test_driver_is_installed_and_asks_for_its_boot(bed):
    results, output = bed.play(both(), "--check")
    for suite, result in results.items():
        assert (result["failures"], result["changed"] >= 1) == (0, True), output
        assert bed.version(suite) == ""

    results, output = bed.play(both())
    for suite, result in results.items():
        assert bed.version(suite) == f"1:6.16.13.30300400-2341068.{SUITES[suite]}", output
        assert result["msg"] == (
            f"{suite}: the amdgpu module on disk (6.16.13) is not the one in memory (of the distribution), and a reboot"
            " is not allowed: reboot the node once nothing runs on it, or set rocm_allow_reboot to true."
        )
        policy = bed.sh(suite, "apt-cache policy amdgpu-dkms")
        assert "1001" in policy
        assert "Signed-By: /etc/apt/keyrings/rocm.asc" in bed.sh(suite, "cat /etc/apt/sources.list.d/amdgpu.sources")
        assert bed.sh(suite, "getent group render").startswith("render:")

    # Not booted yet: asked again, it neither installs again nor forgets.
    results, output = bed.play(both(rocm_allow_reboot=True))
    for result in results.values():
        assert (result["failures"], result["changed"]) == (0, 0), output
        assert result["reasons"] == [
            "the amdgpu module on disk (6.16.13) is not the one in memory (of the distribution)"
        ]


def test_reboot_entry_point_refuses_what_it_must(bed):
    """Not without leave, and not under a process that computes."""
    bed.sh("trixie", "mkdir -p /node/sys/class/kfd/kfd/proc/1 && echo 5 > /node/sys/class/kfd/kfd/proc/1/vram_10007")
    reasons = {"rocm_reboot_required": ["of a reason"]}
    hosts = {
        "forbidden": ("bookworm", reasons),
        "in_use": ("trixie", {**reasons, "rocm_allow_reboot": True}),
        "no_need": ("trixie", {"rocm_allow_reboot": True}),
    }
    results, output = bed.play(hosts, entry="reboot")
    bed.sh("trixie", "rm -r /node/sys/class/kfd/kfd/proc")
    assert "of a reason, and a reboot is not allowed" in results["forbidden"]["msg"], output
    assert "the GPUs are in use by pid 1 (" in results["in_use"]["msg"]
    assert (results["no_need"]["failures"], results["no_need"]["changed"]) == (0, 0)


def test_after_the_boot_nothing_is_left_to_do_and_a_newer_release_does_not_tempt(bed):
    for suite in SUITES:
        bed.boot(suite)
    before = {suite: bed.files(suite) for suite in SUITES}
    results, output = bed.play(
        {"bookworm": ("bookworm", {}), "trixie": ("trixie", {"rocm_driver_version": "31.40"})},
    )
    for result in results.values():
        assert (result["failures"], result["changed"], result["reasons"]) == (0, 0, []), output
    assert {suite: bed.files(suite) for suite in SUITES} == before


def test_access_and_kernel_settings(bed):
    """Users into the groups, a rule for device nodes with a wrong group, GRUB's drop-in; then nothing more to do."""
    bed.sh(
        "bookworm",
        "useradd ops; mknod -m 600 /dev/kfd c 1 3; mkdir -p /etc/default/grub.d; rm -f /tmp/grub;"
        "printf '#!/bin/sh\\ncat /etc/default/grub.d/*.cfg > /tmp/grub\\n' > /usr/sbin/update-grub;"
        "chmod +x /usr/sbin/update-grub",
    )
    settings = {
        "rocm_users": ["ops"],
        "rocm_manage_kernel_cmdline": True,
        # Not on the command line of any machine, and one that the probe does not ask for.
        "rocm_kernel_cmdline": ["pci=bfsort", "intel_iommu=on"],
        "rocm_allow_reboot": True,
    }
    results, output = bed.play({"bookworm": ("bookworm", settings)}, "--check")
    assert results["bookworm"]["failures"] == 0, output
    assert bed.sh("bookworm", "ls /tmp/grub 2>/dev/null || true") == ""
    results, output = bed.play({"bookworm": ("bookworm", settings)})
    assert results["bookworm"]["reasons"] == ["the kernel runs without pci=bfsort"], output
    assert bed.sh("bookworm", "id -nG ops").split() == ["ops", "video", "render"]
    assert 'GROUP="render", MODE="0660"' in bed.sh("bookworm", "cat /etc/udev/rules.d/70-amdgpu.rules")
    assert 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT pci=bfsort intel_iommu=on"' in bed.sh(
        "bookworm", "cat /tmp/grub"
    )
    results, output = bed.play({"bookworm": ("bookworm", settings)})
    assert (results["bookworm"]["failures"], results["bookworm"]["changed"]) == (0, 0), output


def test_another_release_when_told_up_and_down(bed):
    hosts = {
        "bookworm": ("bookworm", {"rocm_driver_version": "31.40", "rocm_allowed_driver_versions": []}),
        "trixie": ("trixie", {"rocm_driver_version": "30.10.2", "rocm_allowed_driver_versions": []}),
    }
    results, output = bed.play(hosts, rocm_allow_reboot=True)
    assert bed.version("bookworm") == "1:6.19.14.31400000-2364437.22.04", output
    assert bed.version("trixie") == "1:6.14.14.30100200-2226257.24.04", output
    assert results["bookworm"]["reasons"] == ["the amdgpu module on disk (6.19.14) is not the one in memory (6.16.13)"]
    for suite in SUITES:
        bed.boot(suite)
    results, output = bed.play(hosts)
    for result in results.values():
        assert (result["failures"], result["changed"], result["reasons"]) == (0, 0, []), output


def test_a_build_that_fails_and_headers_that_are_gone(bed):
    """The end of an installation is told in one sentence with apt's reason."""
    bed.sh("trixie", "rm /etc/apt/sources.list.d/headers.list && apt-get remove -y 'linux-headers-*' && apt-get update")
    hosts = {
        "bookworm": ("bookworm", {"rocm_driver_version": "39.10", "rocm_allowed_driver_versions": []}),
        "trixie": ("trixie", {"rocm_allowed_driver_versions": []}),
    }
    results, output = bed.play(hosts)
    message = results["bookworm"]["msg"]
    assert (
        f"amdgpu-dkms *.39100000-*[0-9] could not be installed from {bed.url}/amdgpu/39.10/ubuntu jammy:" in message
    ), output
    assert "Bad return status for module build" in message
    assert "\n" not in message
    assert f"apt offers no linux-headers-{KERNEL}, without which the driver cannot be built" in results["trixie"]["msg"]
    assert bed.version("trixie") == "1:6.14.14.30100200-2226257.24.04"
