# SPDX-License-Identifier: Apache-2.0
"""Role rocm on Debian 12 and 13 against a signed apt repository of our own (tests/aptrepo), through real apt and dpkg.

The nodes are a fleet (tests/fleet): systemd, SSH, a Docker engine each. The GPUs are a tree of files (tests/sysfs), and
the driver in memory is the tree's; a unit of the node takes over what lies on disk when it boots.
"""

import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker as dockerlib
import pytest
import standin
import yaml
from aptrepo import build as aptrepo
from fleet import Fleet
from inside import inside
from node_image import docker, run
from sysfs import trees

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.engine

KERNEL = os.uname().release
MODULE = f"/lib/modules/{KERNEL}/updates/dkms/amdgpu.ko"
SUITES = {"bookworm": "22.04", "trixie": "24.04"}  # Debian suite -> Ubuntu release that its packages are built for

# What the kernel does when it boots: the module on disk becomes the one in memory.
BOOT = f"""\
#!/bin/sh
set -e
[ -e {MODULE} ] || exit 0
for field in version srcversion; do modinfo -F $field {MODULE} > /node/sys/module/amdgpu/$field; done
"""
UNIT = """\
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/load-amdgpu
[Install]
WantedBy=sysinit.target
[Unit]
DefaultDependencies=no
"""
# A node that is a container keeps the machine's boot_id; its systemd knows when it began.
BOOT_TIME = "systemctl show --property=UserspaceTimestamp"


NUMA = Path("/proc/sys/kernel/numa_balancing")
NUMA_BALANCING = NUMA.read_text().strip() if NUMA.exists() else None
SECURE_BOOT = "/secure/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


class Bed:
    """Two nodes, the repository and a way to run the role on them."""

    def __init__(self, folder, fleet, url, fingerprint):
        self.folder, self.fleet, self.url, self.fingerprint = folder, fleet, url, fingerprint
        self.nodes = {node.suite: node for node in fleet.nodes}
        self.ssh = yaml.safe_load((folder / "fleet/inventory.yml").read_text())["all"]["vars"]

    def sh(self, node, script):
        return run(inside(self.nodes[node].container, "sh", "-c", script)).stdout.strip()

    def version(self, node):
        return self.sh(node, "dpkg-query -W -f '${Version}' amdgpu-dkms 2>/dev/null || true")

    def files(self, node):
        """Everything that the role could have written, with checksums."""
        return self.sh(
            node,
            "find /etc/apt /etc/udev /etc/default /etc/group /etc/modprobe.d /lib/modules /var/lib/dpkg/status"
            " -type f 2>/dev/null | sort | xargs sha256sum",
        )

    def boot(self, node):
        """What a boot does, without one."""
        self.sh(node, "/usr/local/sbin/load-amdgpu")

    def booted(self, node):
        return self.sh(node, BOOT_TIME)

    def variables(self, **more):
        """What both kinds of runs know of the nodes and the repository."""
        return {
            **self.ssh,
            "ansible_become": True,
            "rocm_boot_time_command": BOOT_TIME,
            "rocm_repo_url": self.url + "/amdgpu/{{ rocm_driver_version }}/ubuntu",
            "rocm_repo_key_url": self.url + "/rocm/rocm.gpg.key",
            "rocm_repo_key_fingerprints": [self.fingerprint],
            # A container shares the machine's kernel: its settings are not the test's to change.
            "rocm_disable_numa_balancing": False,
            **more,
        }

    def ansible(self, *words, **environ):
        """Run ansible-playbook with the bed's inventory.yml; return the finished process."""
        return subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory.yml", *words],
            cwd=self.folder,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", **environ},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def deploy(self, *flags, **variables):
        """Run deploy.yml on both nodes, image and weights aside; return (exit code, output in one line)."""
        hosts = {suite: {"ansible_host": node.address} for suite, node in self.nodes.items()}
        known = self.variables(vllm_fleet_sysfs_root="/node/sys", **variables)
        (self.folder / "inventory.yml").write_text(yaml.safe_dump({"vllm": {"hosts": hosts, "vars": known}}))
        done = self.ansible(str(ROOT / "deploy.yml"), "--tags", "prepare,rollout", *flags, COLUMNS="2000")
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def server(self, node):
        """The id of the node's server and when it was started; running, or the test fails."""
        found = self.sh(node, "docker inspect --format '{{.State.Running}} {{.Id}} {{.State.StartedAt}}' vllm").split()
        assert found[0] == "true", found
        return found[1:]

    def play(self, hosts, *flags, entry="main", **common):
        """Run the role on ``hosts`` (name -> (node, variables)); return ({name: result}, whole output).

        A result is the play's statistics of that host with the message of its failure under ``msg``.
        """
        inventory = {
            "all": {
                "vars": self.variables(rocm_sysfs_root="/node/sys", **common),
                "hosts": {
                    name: {"ansible_host": self.nodes[node].address, **own} for name, (node, own) in hosts.items()
                },
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
        done = self.ansible("play.yml", *flags, ANSIBLE_STDOUT_CALLBACK="ansible.posix.json")
        answer = json.loads(done.stdout[done.stdout.index("{\n") :])
        results = {name: dict(stats) for name, stats in answer["stats"].items()}
        for task in answer["plays"][0]["tasks"]:
            for name, one in task["hosts"].items():
                title = task["task"]["name"].removeprefix("rocm : ")
                if not one.get("skipped") and title != task["task"]["name"] and "Validating arguments" not in title:
                    results[name].setdefault("tasks", []).append(title)
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
    tree.driver(version=None, srcversion=None)  # Debian's own module
    tree.add_gpus(2)
    # gpg-agent's socket needs a short path.
    with tempfile.TemporaryDirectory(prefix="key") as home:
        key = aptrepo.make_key(Path(home))
        aptrepo.build(folder / "repo", key, KERNEL)
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True, timeout=30)
    fleet = Fleet(f"rocm-{os.getpid()}", say=lambda _: None)
    server = None
    try:
        nodes = fleet.up(folder / "fleet", list(SUITES))
        # A node that reboots is a container that ends: the engine starts it again, as firmware would.
        docker("update", "--restart", "always", *(node.container for node in nodes))
        gateway = nodes[0].address.rpartition(".")[0] + ".1"
        handler = partial(SimpleHTTPRequestHandler, directory=str(folder / "repo"))
        handler.func.log_message = lambda *_: None
        server = ThreadingHTTPServer((gateway, 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        bed = Bed(folder, fleet, f"http://{gateway}:{server.server_address[1]}", key.fingerprint)
        (folder / "load-amdgpu").write_text(BOOT)
        (folder / "load-amdgpu").chmod(0o755)
        (folder / "load-amdgpu.service").write_text(UNIT)
        line = f"deb [signed-by=/etc/apt/keyrings/headers.asc] {bed.url}/distribution stable main"
        for suite, node in bed.nodes.items():
            docker("cp", str(tree.root), f"{node.container}:/node")
            docker("cp", str(folder / "repo/rocm/rocm.gpg.key"), f"{node.container}:/etc/apt/keyrings/headers.asc")
            docker("cp", str(folder / "load-amdgpu"), f"{node.container}:/usr/local/sbin/")
            docker("cp", str(folder / "load-amdgpu.service"), f"{node.container}:/etc/systemd/system/")
            bed.sh(
                suite,
                f"systemctl enable -q load-amdgpu.service; echo '{line}' > /etc/apt/sources.list.d/headers.list;"
                " groupdel render;"
                # A node with Secure Boot, and one whose driver is on disk and not in memory.
                f" cp -r /node/sys /secure; mkdir -p /secure/firmware/efi/efivars; printf '\\006\\0\\0\\0\\001' > {SECURE_BOOT};"
                " cp -r /node/sys /unloaded; rm -r /unloaded/module",
            )
        yield bed
    finally:
        fleet.down()
        if server:
            server.shutdown()
            server.server_close()


# As much of rocm_info's answer as the role looks at before it installs.
PROBE = {
    "os": {"id": "debian", "version_id": "12", "architecture": "x86_64"},
    "pci_devices": [{"pci": "0000:05:00.0"}],
    "driver": {
        "loaded": False,
        "version": None,
        "release": None,
        "allowed": False,
        "package_allowed": False,
        "on_disk": None,
        "reboot_required": False,
    },
    "kernel": {"release": KERNEL, "missing": [], "blacklisted_by": [], "numa_balancing": None, "secure_boot": None},
    "groups": {"video": 44, "render": 104},
    "user": {"name": "root", "missing_groups": []},
    "devices": [],
}


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
        "secure": ("trixie", {"rocm_sysfs_root": "/secure"}),
        "distribution": (
            "bookworm",
            {"rocm_probe": {**PROBE, "os": {"id": "rhel", "version_id": "9", "architecture": "x86_64"}}},
        ),
        "newer": (
            "trixie",
            {"rocm_probe": {**PROBE, "driver": {**PROBE["driver"], "loaded": True, "version": "6.20.1"}}},
        ),
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
        "secure": "Secure Boot is on and would not load the module that DKMS builds here.",
        "distribution": "no driver packages are known for rhel-9; known are debian-12, debian-13, ubuntu-22.04",
        "newer": "the driver here is version 6.20.1, of no known release, and 30.30.4 would replace it. Keep it by",
    }
    for name, text in expected.items():
        assert text in results[name]["msg"], output
        assert results[name]["msg"].startswith(f"{name}: ")
        assert results[name]["msg"].endswith("Nothing was changed.")
        assert "\n" not in results[name]["msg"]
    assert (results["cpu"]["failures"], results["cpu"]["changed"]) == (0, 0)
    assert results["keep"]["failures"] == 0
    # The same refusals in a real run.
    results, _ = bed.play({name: hosts[name] for name in ("folder", "secure")})
    assert all(result["failures"] == 1 and result["changed"] == 0 for result in results.values())
    assert {suite: bed.files(suite) for suite in SUITES} == before


@pytest.fixture
def unknown_to_all(bed):
    """An HTTPS server of which nobody knows the certificate; its address."""
    paths = [bed.folder / "tls.key", bed.folder / "tls.crt"]
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", "-subj", "/CN=mirror", "-keyout", str(paths[0]), "-out", str(paths[1])],
        capture_output=True,
        check=True,
        timeout=60,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths[1], paths[0])
    address = bed.nodes["trixie"].address.rpartition(".")[0] + ".1"
    server = ThreadingHTTPServer((address, 0), SimpleHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://{address}:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_key_with_another_fingerprint_is_refused(bed, unknown_to_all):
    unknown = {"unknown": ("trixie", {"rocm_repo_url": unknown_to_all})}
    results, output = bed.play({**both(rocm_repo_key_fingerprints=["A" * 40]), **unknown})
    # What a node knows no certificate for is asked again with the distribution's certificates.
    result = results.pop("unknown")
    assert f"the package repository {unknown_to_all}/dists/noble/Release cannot be had" in result["msg"], output
    assert "Install ca-certificates" in result["tasks"]
    for suite, result in results.items():
        assert (
            f"the key of {bed.url}/amdgpu/30.30.4/ubuntu has the fingerprint {bed.fingerprint}, expected {'A' * 40}: it is"
            in result["msg"]
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
    assert output.count("the run would end there, for only a reboot brings it into the kernel") == len(SUITES), output

    # One fetches the key, the other has it in its inventory and no way to fetch it.
    key = (bed.folder / "repo/rocm/rocm.gpg.key").read_text()
    hosts = {**both(), "trixie": ("trixie", {"rocm_repo_key": key, "rocm_repo_key_url": "http://127.0.0.1:9/none"})}
    results, output = bed.play(hosts)
    for suite, result in results.items():
        assert {"video", "render"} <= set(bed.sh(suite, "id -nG ops").split())
        assert bed.version(suite) == f"1:6.16.13.30300400-2341068.{SUITES[suite]}", output
        assert result["msg"] == (
            f"{suite}: the amdgpu module on disk (6.16.13) is not the one in memory (of the distribution), and a reboot"
            " is not allowed: reboot the node once nothing runs on it, or set rocm_allow_reboot to true."
        )
        policy = bed.sh(suite, "apt-cache policy amdgpu-dkms")
        assert "1001" in policy
        assert "Signed-By: /etc/apt/keyrings/rocm.gpg" in bed.sh(suite, "cat /etc/apt/sources.list.d/amdgpu.sources")
        assert bed.sh(suite, "getent group render").startswith("render:")
        bed.sh(suite, "chgrp render /dev/kfd /dev/dri/renderD*")  # what udev does with that, which no container has

    # Not booted yet: asked again, it neither installs again nor forgets.
    results, output = bed.play(both())
    for result in results.values():
        assert (result["failures"], result["changed"]) == (1, 0), output


@pytest.fixture
def fleet_variables(bed):
    """The stand-in server on emulated GPUs, its image on both nodes."""
    image = standin.build_image(dockerlib.from_env())
    bed.fleet.load([image])
    name, _, tag = image.partition(":")
    return {
        "vllm_server_model": "acme/tiny",
        "vllm_server_args": {"max-model-len": 512},
        "vllm_server_env": {"STANDIN_START_SECONDS": "0.5"},
        "vllm_server_ulimits": ["nofile=1024"],  # memlock as the tests' own surroundings allow
        "vllm_server_hf_cache": "",
        "vllm_image_name": name,
        "vllm_image_tag": tag,
        "vllm_image_source": "archive",
        "docker_engine_manage_config": False,
        "preflight_gpus": 2,
        "preflight_disk_image": 0,
        "preflight_clock": False,
        "rollout_waves": [1],
        "rocm_allowed_driver_versions": ["inbox"],
    }


WAITS = "the amdgpu module on disk (6.16.13) is not the one in memory (of the distribution)"


# Which notes whether a server runs beside it, and reaches what an MI300X has to.
PROGRAM = "/opt/TransferBench/TransferBench"
BENCH = f"""\
#!/bin/sh
[ "$(docker ps -q)" ] && echo a server >> {PROGRAM}.called || echo no server >> {PROGRAM}.called
echo "Average   bandwidth (GPU Timed):   46.552 GB/s"
"""


def test_a_node_that_serves_is_rebooted_in_its_wave_and_serves_again(bed, fleet_variables):
    """deploy.yml: without leave it is told, with leave node by node; a reboot that does not help ends the run."""
    rc, said = bed.deploy(**fleet_variables)
    assert rc == 0, said
    assert "To deploy: 2 of 2 replicas, in 2 waves: bookworm | trixie." in said
    assert f"bookworm and trixie wait for a reboot: {WAITS}. With rocm_allow_reboot: true the next deployment" in said
    booted = {suite: bed.booted(suite) for suite in SUITES}
    served = {suite: bed.server(suite) for suite in SUITES}
    for suite in SUITES:  # the container gets in by the node's own numbers
        numbers = bed.sh(
            suite, "getent group video render | cut -d: -f3; stat -c %g /dev/kfd /dev/dri/renderD*"
        ).split()
        given = json.loads(bed.sh(suite, "docker inspect --format '{{json .HostConfig.GroupAdd}}' vllm"))
        assert sorted(given) == sorted(set(numbers))

    leave = {**fleet_variables, "rocm_allow_reboot": True, "rocm_allowed_driver_versions": []}
    rc, said = bed.deploy("--check", **leave)
    assert rc == 0, said
    assert f"bookworm and trixie will be drained and rebooted in that wave: {WAITS}." in said
    assert {suite: bed.booted(suite) for suite in SUITES} == booted
    assert {suite: bed.server(suite) for suite in SUITES} == served

    # A burn-in program: the first wave tries the driver for all.
    for suite in SUITES:
        bed.sh(suite, f"mkdir -p /opt/TransferBench; printf '%s' '{BENCH}' > {PROGRAM}; chmod +x {PROGRAM}")

    # One whose initramfs is stale, so to speak: its boot brings the old driver again.
    bed.sh("trixie", "systemctl disable -q load-amdgpu.service")
    rc, said = bed.deploy(**leave)
    assert rc != 0, said
    assert "Not rebooted now, 1 container(s) run: that follows when the node has been drained." in said
    assert (
        f"trixie: rebooted into kernel {KERNEL}, but amdgpu is still that of the distribution where 6.16.13 is on disk"
        " (allowed: 30.30.4). Look for a blacklist" in said
    )
    assert "for a stale initramfs. Replaced before: bookworm." in said
    assert bed.sh("bookworm", f"cat {PROGRAM}.called") == "no server", said
    assert bed.sh("trixie", f"ls {PROGRAM}.called || true") == ""
    for suite in SUITES:
        bed.sh(suite, "rm -r /opt/TransferBench")
        assert bed.booted(suite) != booted[suite]
        # The same container, started once more and asked: what was stopped for a boot in vain serves as before.
        assert bed.server(suite)[0] == served[suite][0]
        assert bed.server(suite)[1] > served[suite][1]
    assert bed.sh("bookworm", "cat /node/sys/module/amdgpu/version") == "6.16.13"

    bed.sh("trixie", "systemctl enable -q load-amdgpu.service")
    now = {suite: bed.server(suite) for suite in SUITES}
    rc, said = bed.deploy(**leave)
    assert rc == 0, said
    assert "To replace: 1 of 2 replicas, in 1 wave: trixie." in said
    assert bed.server("bookworm") == now["bookworm"]
    assert bed.server("trixie")[1] > now["trixie"][1]
    assert bed.sh("trixie", "cat /node/sys/module/amdgpu/version") == "6.16.13"


def test_the_reboot_of_a_node_is_refused_undrained_and_under_other_work(bed):
    before = {suite: bed.booted(suite) for suite in SUITES}
    due = {"rocm_reboot_required": ["of a reason"], "rocm_allow_reboot": True}
    computing = "/node/sys/class/kfd/kfd/proc"
    bed.sh("bookworm", f"mkdir -p {computing}/1 && echo 5 > {computing}/1/vram_10007")
    hosts = {
        "undrained": ("trixie", due),
        "in_use": ("bookworm", {**due, "rocm_drained": True}),
        "no_leave": ("trixie", {**due, "rocm_allow_reboot": False, "rocm_drained": True}),
        "no_need": ("trixie", {"rocm_allow_reboot": True, "rocm_drained": True}),
    }
    results, output = bed.play(hosts, entry="reboot")
    bed.sh("bookworm", f"rm -r {computing}")
    assert (
        "undrained: a reboot is due because of a reason, but 1 container(s) run: drain the node and set rocm_drained to true."
        " Nothing was stopped." in results["undrained"]["msg"]
    ), output
    assert "the GPUs are in use by pid 1 (" in results["in_use"]["msg"]
    assert "which is not our server: stop the process first" in results["in_use"]["msg"]
    for name in ("no_leave", "no_need"):
        assert (results[name]["failures"], results[name]["changed"]) == (0, 0), output
    # A newer kernel without the driver, and a driver that somebody loaded by hand.
    bed.sh("trixie", "mkdir -p /boot; touch /boot/vmlinuz-999.0-test")
    bed.sh("bookworm", "echo 'blacklist amdgpu' > /etc/modprobe.d/vendor.conf")
    drained = {**due, "rocm_drained": True}
    results, output = bed.play({"kernel": ("trixie", drained), "kept_out": ("bookworm", drained)}, entry="reboot")
    bed.sh("trixie", "rm /boot/vmlinuz-999.0-test")
    bed.sh("bookworm", "rm /etc/modprobe.d/vendor.conf")
    assert (
        "because of a reason, but the next boot takes kernel 999.0-test, which amdgpu was not built for"
        in results["kernel"]["msg"]
    ), output
    assert "but amdgpu is kept out by /etc/modprobe.d/vendor.conf and nothing here" in results["kept_out"]["msg"]
    assert all(result["msg"].endswith("Nothing was stopped.") for result in results.values())
    assert {suite: bed.booted(suite) for suite in SUITES} == before
    assert [bed.server(suite)[0] for suite in SUITES]


def test_after_the_boot_nothing_is_left_to_do_and_a_newer_release_does_not_tempt(bed):
    before = {suite: bed.files(suite) for suite in SUITES}
    wanted = {"rocm_users": ["ops"], "rocm_load_blacklisted_driver": True}
    results, output = bed.play(
        {"bookworm": ("bookworm", wanted), "trixie": ("trixie", {"rocm_driver_version": "31.40"})},
    )
    for result in results.values():
        assert (result["failures"], result["changed"], result["reasons"]) == (0, 0, []), output
        # One look is all that it costs.
        assert result["tasks"] == ["Probe GPUs, driver and kernel"], output
    assert {suite: bed.files(suite) for suite in SUITES} == before


def test_a_kernel_that_came_without_the_driver_gets_it_built(bed):
    """The package is installed and allowed, but nothing of it is there for this kernel: DKMS is asked, and says why not."""
    keep = f"mv {MODULE} /amdgpu.ko; cp -r /node/sys /inbox; rm /inbox/module/amdgpu/version /inbox/module/amdgpu/srcversion"
    broken = "printf '#!/bin/sh\\necho \"Error! Bad return status\" >&2; exit 10\\n' > /usr/sbin/dkms; chmod +x /usr/sbin/dkms"
    bed.sh("bookworm", f"{keep}; {broken}")
    hosts = {"bookworm": ("bookworm", {"rocm_sysfs_root": "/inbox"})}
    results, output = bed.play(hosts)
    assert (
        f"is installed but built no module for kernel {KERNEL} (found: {MODULE}; DKMS says Error! Bad return status). See /var/lib"
        in results["bookworm"]["msg"]
    ), output
    bed.sh(
        "bookworm",
        f'printf \'#!/bin/sh\\n[ "$1 $3" = "autoinstall {KERNEL}" ] && mv /amdgpu.ko {MODULE}\\n\' > /usr/sbin/dkms',
    )
    results, output = bed.play(hosts)
    assert results["bookworm"]["msg"].startswith(f"bookworm: {WAITS}, and a reboot is not allowed"), output
    bed.sh("bookworm", f"test -e {MODULE}; rm -r /inbox /usr/sbin/dkms")


def test_a_driver_that_is_kept_out_is_named_and_loaded_before_docker_on_request(bed):
    """modprobe is a program of the test: no kernel takes the module. What the role writes and starts is real."""
    bed.sh(
        "bookworm",
        "echo 'install amdgpu /bin/false' > /etc/modprobe.d/vendor.conf; mv /sbin/modprobe /sbin/modprobe.real;"
        'printf \'#!/bin/sh\\n[ "$*" != "--ignore-install amdgpu" ] || cp -r /node/sys/module /unloaded/\\n\' > /sbin/modprobe;'
        "chmod +x /sbin/modprobe; cp -r /unloaded /deaf",
    )
    unloaded = {"rocm_sysfs_root": "/unloaded"}
    word = "kernel command line: module_blacklist=amdgpu"
    barred = {
        **PROBE,
        "driver": {**PROBE["driver"], "on_disk": MODULE},
        "kernel": {**PROBE["kernel"], "blacklisted_by": [word]},
    }
    hosts = {
        "bookworm": ("bookworm", unloaded),
        "barred": (
            "bookworm",
            {"rocm_probe": barred, "rocm_install_driver": False, "rocm_load_blacklisted_driver": True},
        ),
    }
    results, output = bed.play(hosts)
    assert f"kept out by {word}, which the kernel holds to however it is loaded" in results["barred"]["msg"], output
    assert (
        "amdgpu is installed but kept out by /etc/modprobe.d/vendor.conf. Some vendors do that on purpose"
        in results["bookworm"]["msg"]
    ), output
    wanted = {**unloaded, "rocm_load_blacklisted_driver": True}
    # Beside one whose kernel does not take it.
    deaf = {**wanted, "rocm_sysfs_root": "/deaf"}
    results, output = bed.play({"bookworm": ("bookworm", wanted), "deaf": ("bookworm", deaf)})
    assert results["bookworm"]["failures"] == 0, output
    assert f"deaf: amdgpu ({MODULE}) was told to load and is not in the kernel." in results["deaf"]["msg"], output
    assert "Before=docker.service" in bed.sh("bookworm", "systemctl cat vllm-fleet-amdgpu.service")
    assert bed.sh("bookworm", "systemctl is-enabled vllm-fleet-amdgpu.service; ls /unloaded/module").split() == [
        "enabled",
        "amdgpu",
    ]
    results, output = bed.play({"bookworm": ("bookworm", wanted)})
    assert (results["bookworm"]["failures"], results["bookworm"]["changed"]) == (0, 0), output
    assert results["bookworm"]["tasks"] == ["Probe GPUs, driver and kernel"], output
    bed.sh(
        "bookworm",
        "rm -r /etc/modprobe.d/vendor.conf /deaf; mv /sbin/modprobe.real /sbin/modprobe; systemctl disable -q vllm-fleet-amdgpu",
    )


# As much of update-grub as the command line takes.
UPDATE_GRUB = """\
#!/bin/sh
mkdir -p /boot/grub
GRUB_CMDLINE_LINUX_DEFAULT=quiet
for file in /etc/default/grub.d/*.cfg; do . "$file"; done
echo "linux /vmlinuz ro $GRUB_CMDLINE_LINUX_DEFAULT" > /boot/grub/grub.cfg
"""


def test_access_and_kernel_settings(bed):
    """Users into the groups, a rule for device nodes with a wrong group, GRUB's drop-in; then nothing more to do."""
    bed.sh(
        "bookworm",
        "chgrp root /dev/kfd; chmod 600 /dev/kfd; useradd other; rm -rf /boot/grub /etc/default/grub.d;"
        "printf '#!/bin/sh\\nexit 1\\n' > /usr/sbin/update-grub; chmod +x /usr/sbin/update-grub",
    )
    settings = {
        "rocm_users": ["other"],
        # The machine's, and already so on most: written down for the next boot, and set to what it is.
        "rocm_disable_numa_balancing": NUMA_BALANCING == "0",
        "rocm_manage_kernel_cmdline": True,
        # Not on the command line of any machine, and one that the probe does not ask for.
        "rocm_kernel_cmdline": ["pci=bfsort", "intel_iommu=on"],
    }
    hosts = {"bookworm": ("bookworm", settings), "trixie": ("trixie", {**settings, "rocm_users": []})}
    results, output = bed.play(hosts, "--check")
    assert results["bookworm"]["failures"] == 0, output
    assert "and GRUB (update-grub) is not there to add it" in results["trixie"]["msg"]
    # What a failed update-grub did not do is still owed, although the drop-in is there.
    results, output = bed.play({"bookworm": ("bookworm", settings)})
    assert (results["bookworm"]["failures"], results["bookworm"]["tasks"][-1]) == (
        1,
        "Update the boot loader's configuration",
    ), output
    bed.sh("bookworm", f"printf '%s' '{UPDATE_GRUB}' > /usr/sbin/update-grub")
    results, output = bed.play({"bookworm": ("bookworm", settings)})
    assert results["bookworm"]["reasons"] == ["the kernel runs without pci=bfsort intel_iommu=on"], output
    assert sorted(bed.sh("bookworm", "id -nG other").split()) == ["other", "render", "video"]
    assert 'GROUP="render", MODE="0660"' in bed.sh("bookworm", "cat /etc/udev/rules.d/70-amdgpu.rules")
    assert "linux /vmlinuz ro quiet pci=bfsort intel_iommu=on" in bed.sh("bookworm", "cat /boot/grub/grub.cfg")
    if NUMA_BALANCING == "0":
        assert bed.sh("bookworm", "cat /etc/sysctl.d/60-vllm-fleet-rocm.conf") == "kernel.numa_balancing=0"
    # What udev does with the rule, which no container has.
    bed.sh("bookworm", "chgrp render /dev/kfd; chmod 660 /dev/kfd")
    results, output = bed.play({"bookworm": ("bookworm", settings)})
    assert (results["bookworm"]["failures"], results["bookworm"]["changed"]) == (0, 0), output
    assert not {
        "Ensure the users are in the GPU groups",
        "Ensure the udev rules give the GPU device nodes to the render group",
    } & set(results["bookworm"]["tasks"])


def test_another_release_when_told_and_a_node_that_serves_nobody_is_rebooted_for_it(bed):
    """Up and down. With leave an idle node is rebooted in the same run; one that serves is left to its wave."""
    bed.sh("bookworm", "docker rm -f vllm")
    told = {"rocm_allowed_driver_versions": [], "rocm_allow_reboot": True}
    hosts = {
        "bookworm": ("bookworm", {**told, "rocm_driver_version": "31.40"}),
        "trixie": ("trixie", {**told, "rocm_driver_version": "30.10.2", "rocm_allow_driver_downgrade": True}),
    }
    # A boot that comes up, but with the driver of nobody's choice.
    bed.sh(
        "bookworm",
        f"mv /usr/local/sbin/load-amdgpu /; printf '#!/bin/sh\\nmv {MODULE} /\\n' > /usr/local/sbin/load-amdgpu",
    )
    bed.sh("bookworm", "chmod +x /usr/local/sbin/load-amdgpu")
    unasked = ("trixie", {**told, "rocm_driver_version": "30.10.2"})
    results, output = bed.play({"bookworm": hosts["bookworm"], "unasked": unasked})
    assert (
        f"bookworm: rebooted into kernel {KERNEL}, but amdgpu is 6.16.13 where that of the distribution is on disk"
        " (allowed: 31.40)." in results["bookworm"]["msg"]
    ), output
    assert "the driver here is release 30.30.4 and 30.10.2 would replace it." in results["unasked"]["msg"]
    bed.sh("bookworm", f"mv /load-amdgpu /usr/local/sbin/; mv /amdgpu.ko {MODULE}")
    before = {suite: bed.booted(suite) for suite in SUITES}
    results, output = bed.play(hosts)
    assert [result["failures"] + result["unreachable"] for result in results.values()] == [0, 0], output
    assert bed.version("bookworm") == "1:6.19.14.31400000-2364437.22.04", output
    assert bed.version("trixie") == "1:6.14.14.30100200-2226257.24.04", output
    assert results["bookworm"]["reasons"] == []
    assert results["trixie"]["reasons"] == ["the amdgpu module on disk (6.14.14) is not the one in memory (6.16.13)"]
    assert "Not rebooted now, 1 container(s) run: that follows when the node has been drained." in output
    assert bed.booted("bookworm") != before["bookworm"]
    assert bed.booted("trixie") == before["trixie"]
    bed.server("trixie")
    bed.sh("trixie", "docker rm -f vllm")
    bed.boot("trixie")
    results, output = bed.play({"trixie": hosts["trixie"]})
    result = results["trixie"]
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
