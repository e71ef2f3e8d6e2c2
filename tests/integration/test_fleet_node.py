# SPDX-License-Identifier: Apache-2.0
"""A node of the test fleet, with systemd, SSH and an engine: what preflight leaves of it, and Docker's own repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import play
import pytest
import yaml
from aptrepo import build as aptrepo
from fleet import Fleet
from inside import inside
from node_image import docker, run
from sysfs import trees

pytestmark = pytest.mark.engine

SUITE = "trixie"


class Bed:
    """One node and a way to run plays on it."""

    def __init__(self, folder: Path, fleet: Fleet) -> None:
        self.folder = folder
        self.node = fleet.nodes[0]
        inventory = yaml.safe_load((folder / "fleet/inventory.yml").read_text())
        self.ssh = inventory["all"]["vars"]

    def sh(self, script: str) -> str:
        return run(inside(self.node.container, "bash", "-c", script)).stdout.strip()

    def run(self, *command: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run ``command`` with an inventory of this node."""
        hosts = {self.node.name: {"ansible_host": self.node.address}}
        path = self.folder / "inventory.yml"
        path.write_text(json.dumps({"vllm": {"hosts": hosts, "vars": {**self.ssh, **variables}}}), encoding="utf-8")
        return subprocess.run(
            [command[0], "-i", str(path), *command[1:]],
            cwd=self.folder,
            env=play.environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    folder = tmp_path_factory.mktemp("node")
    fleet = Fleet(f"rocm-node-{os.getpid()}", say=lambda _: None)
    try:
        fleet.up(folder / "fleet", [SUITE])
        yield Bed(folder, fleet)
    finally:
        fleet.down()


#: Everything that a look could have changed: files with their content, modes and owners, links, what Docker has, kernel
#: settings, mounts, services. Logs of the login itself are not the look's. Of /usr, which is most of a node, the time of the
#: last change of each file stands for its content: no write leaves that as it was.
SEEN = r"""
cd /
find / -xdev \( -path /usr -o -path /var/log -o -path /var/cache/node-python -o -path /home/ops/.ansible -o -path /proc -o -path /sys \) -prune -o -type f -print0 \
  | sort -z | xargs -0 sha256sum
find /usr -xdev -type f -printf '%p %s %C@\n' | sort
find / -xdev \( -path /var/log -o -path /var/cache/node-python -o -path /home/ops/.ansible -o -path /proc -o -path /sys \) -prune -o -printf '%p %y %m %U %G %l\n' | sort
docker ps --all --no-trunc --format '{{.ID}} {{.State}}'
docker images --no-trunc --format '{{.ID}} {{.Repository}}:{{.Tag}}'; docker volume ls; docker network ls --no-trunc
for file in $(find /proc/sys/vm /proc/sys/kernel /proc/sys/net/core -maxdepth 1 -type f -perm /222 \
  ! -name ns_last_pid ! -name stat_refresh ! -name compact_memory ! -name drop_caches | sort); do
  echo "$file $(tr '\n' ' ' < $file 2>/dev/null)"; done
awk '{ print $2, $3 }' /proc/mounts | grep -v overlay
systemctl list-unit-files --no-legend --plain
systemctl list-units --type=service --no-legend --plain --state=running | awk '{ print $1 }' | grep -v -e '^user@'
"""


#: The emulated tree in the place of the node's own, where the commands of a report look; and an amd-smi that says how it was asked.
AS_ITS_OWN = """
for part in class module bus; do mount --bind /node/sys/$part /sys/$part; done
printf '#!/bin/sh\\necho asked for "$@"\\n' > /usr/local/bin/amd-smi; chmod +x /usr/local/bin/amd-smi
python3 -c 'import time; time.sleep(600)' --api-key s3cret >/dev/null 2>&1 &
mkdir -p /node/sys/class/kfd/kfd/proc/$!; echo 30000000000 > /node/sys/class/kfd/kfd/proc/$!/vram_10007
"""


def test_looks_leave_the_node_as_it_was_and_tell_what_it_is(bed: Bed, tmp_path: Path) -> None:
    """preflight with every check on, and the report of a node: what it has, file by file, is the same before and after."""
    tree = trees.mi300x(tmp_path / "tree")
    bed.sh("rm -rf /node; docker rm -f other 2>/dev/null || true")  # of a try before
    docker("cp", str(tree.root), f"{bed.node.container}:/node")
    bed.sh("tar -c --dereference $(ldd /bin/sleep | grep -o '/[^ ]*') /bin/sleep 2>/dev/null | docker import - sleep:1")
    bed.sh("docker run --detach --name other sleep:1 /bin/sleep infinity")
    bed.sh(AS_ITS_OWN)
    variables = {
        "vllm_server_model": "acme/tiny",
        "vllm_image_name": "acme",
        "vllm_image_tag": "1",
        "vllm_image_source": "archive",
        "preflight_proc_root": "/node/proc",
        "preflight_disk_image": 1000000,
        "preflight_disk_weights": 1000000,
        "preflight_idle_vram": 40_000_000_000,
        "vllm_server_args": {"gpu-memory-utilization": 0.8},
        "preflight_clock": True,
        "preflight_sysctls": {"vm.swappiness": 1},
    }
    before = bed.sh(SEEN).splitlines()
    done = bed.run(str(play.ROOT / "scripts/preflight"), **variables)
    report = bed.run(str(play.ROOT / "scripts/hardware-report"))
    after = bed.sh(SEEN).splitlines()
    bed.sh("kill $(ls /sys/class/kfd/kfd/proc); umount /sys/class /sys/module /sys/bus")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("GPU count", "port 8000", "cache", "clock", "vm.swappiness", "disk of /home/ops/.cache/huggingface"):
        assert f"  {line} " in done.stdout
    assert "/home/ops/.cache/huggingface, to be made" in done.stdout
    assert len(before) > 10000
    assert sorted(set(before) ^ set(after)) == []

    text = report.stdout
    assert (report.returncode, report.stderr) == (0, ""), text + report.stderr
    assert text.startswith("Please look this through, then send it back with:")
    assert text.count('"name": "AMD Instinct MI300X"') == 16  # the GPUs, and what is on the bus
    total = tree.model.vram_total
    for piece in (
        '"command": "python3 -c import time; time.sleep(600) --api-key ***"',
        f"==== uname -srm\n{os.uname().sysname} {os.uname().release}",
        'NAME="Debian GNU/Linux"',
        "/sys/module/amdgpu/version:6.16.13",
        "/sys/class/kfd/kfd/topology/nodes/8/properties:gfx_target_version 90402",
        f"/sys/class/drm/renderD184/device/mem_info_vram_total:{total}",
        "/sys/class/drm/renderD128/device/current_compute_partition:SPX",
        "/vram_10007:30000000000",
        "==== /usr/local/bin/amd-smi metric --ecc --json\nasked for metric --ecc --json",
        "==== getent group video render\nvideo:x:44:",
    ):
        assert piece in text, text
    assert "s3cret" not in text
    # A tool that is not there is said to be missing and ends nothing.
    assert re.search(r"dkms: (command )?not found", text)


def test_a_report_of_a_node_out_of_reach_is_none() -> None:
    command = [str(play.ROOT / "scripts/hardware-report"), "-i", "127.0.0.1,", "-e", "ansible_port=9"]
    done = subprocess.run(command, env=play.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4, done.stdout
    assert "UNREACHABLE" in done.stdout
    assert "Please look this through" not in done.stdout


@pytest.fixture(scope="module")
def docker_ce(bed: Bed) -> Iterator[dict[str, Any]]:
    """Docker's repository, signed, with the engine of the node itself in its packages; the node is left without one."""
    archive, programs = bed.folder / "engine.tar", bed.folder / "programs"
    files = "dpkg -L docker.io docker-cli containerd runc | grep -v -e /usr/share -e /etc/init | while read -r f; do [ ! -f $f ] || echo $f; done"
    bed.sh(f"{files} | tar -c --dereference -f /engine.tar -T - 2>/dev/null")
    docker("cp", f"{bed.node.container}:/engine.tar", str(archive))
    with tarfile.open(archive) as tar:
        tar.extractall(programs)  # noqa: S202  of our own node; Python 3.11.2 of Debian 12 has no filter for it
    archive.unlink()
    bed.sh(
        "rm /engine.tar; docker rm -f $(docker ps -aq) >/dev/null; systemctl stop docker.socket docker containerd;"
        " DEBIAN_FRONTEND=noninteractive apt-get remove -y -q docker.io docker-cli containerd runc >/dev/null; ! command -v dockerd"
    )
    root = bed.folder / "repo"
    with tempfile.TemporaryDirectory(prefix="key") as home:
        key = aptrepo.make_key(Path(home))
        aptrepo.build_docker_ce(root, key, programs, "debian", SUITE)
        aptrepo.make_key(Path(home), "Somebody else <else@example.invalid>")
        (root / "both.asc").write_text(key.gpg("--armor", "--export"))
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True, timeout=30)
    handler = partial(SimpleHTTPRequestHandler, directory=str(root))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer((bed.node.address.rpartition(".")[0] + ".1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "docker_engine_source": "docker_ce",
        "docker_engine_repo_url": f"http://{server.server_address[0]}:{server.server_address[1]}",
        "docker_engine_repo_key_fingerprint": key.fingerprint,
    }
    server.shutdown()
    server.server_close()


def role(bed: Bed, *flags: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    tasks = [play.role("docker_engine")]
    path = bed.folder / "play.yml"
    path.write_text(json.dumps([{"name": "Test", "hosts": "vllm", "gather_facts": False, "tasks": tasks}]))
    return bed.run(play.PLAYBOOK, str(path), *flags, **variables)


def test_dockers_repository_is_trusted_by_its_key_and_told_off_in_one_sentence(
    bed: Bed, docker_ce: dict[str, Any]
) -> None:
    cases = {
        "the key at .* has the fingerprint [0-9A-F]{40}, expected A{40}: it is not trusted": {
            "docker_engine_repo_key_fingerprint": "A" * 40
        },
        "the key at .*/both.asc has the fingerprint [0-9A-F]{40}, [0-9A-F]{40}, expected [0-9A-F]{40}: it is not": {
            "docker_engine_repo_key_url": docker_ce["docker_engine_repo_url"] + "/both.asc"
        },
        "the key of Docker's repository cannot be had from http://127.0.0.1:9/debian/gpg": {
            "docker_engine_repo_url": "http://127.0.0.1:9"
        },
        "Docker's repository http://.*/debian nosuch cannot be read: .* does not have a Release file": {
            "docker_engine_repo_suite": "nosuch"
        },
    }
    for sentence, wrong in cases.items():
        done = role(bed, **{**docker_ce, **wrong})
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 2, said
        assert re.search(f"node1: {sentence}", said), said
        assert "not added" in said
        assert bed.sh("ls /etc/apt/sources.list.d | grep -c docker || true") == "0"


def test_docker_ce_is_installed_from_a_mirror_and_configured(bed: Bed, docker_ce: dict[str, Any]) -> None:
    """Packages, source and pin are Docker's; keys of others in daemon.json stay; again, nothing changes."""
    bed.sh(
        'mkdir -p /etc/docker; echo \'{"max-concurrent-downloads": 5, "log-opts": {"tag": "x"}}\' > /etc/docker/daemon.json'
    )
    wanted = {**docker_ce, "docker_engine_registry_mirrors": ["https://mirror.example"]}
    dry = role(bed, "--check", **wanted)
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert "Would install docker-ce, docker-ce-cli, containerd.io, docker-buildx-plugin" in dry.stdout
    assert bed.sh("command -v dockerd || true") == ""
    done = role(bed, **wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert bed.sh("dpkg-query -W -f '${Package} ${Version} ' docker-ce containerd.io") == (
        "containerd.io 5:99.0.0-1 docker-ce 5:99.0.0-1"
    )
    assert bed.sh("grep -v ^# /etc/apt/sources.list.d/docker.sources").splitlines() == [
        "Types: deb",
        f"URIs: {docker_ce['docker_engine_repo_url']}/debian",
        f"Suites: {SUITE}",
        "Components: stable",
        "Architectures: amd64",
        "Signed-By: /etc/apt/keyrings/docker.gpg",
    ]
    assert "release o=Docker" in bed.sh("cat /etc/apt/preferences.d/docker")
    info = json.loads(bed.sh("docker info --format '{{json .}}'"))
    assert (info["LiveRestoreEnabled"], info["LoggingDriver"]) == (True, "json-file")
    assert info["RegistryConfig"]["Mirrors"] == ["https://mirror.example/"]
    assert json.loads(bed.sh("cat /etc/docker/daemon.json")) == {
        "max-concurrent-downloads": 5,
        "log-opts": {"tag": "x", "max-size": "100m", "max-file": "5"},
        "log-driver": "json-file",
        "live-restore": True,
        "registry-mirrors": ["https://mirror.example"],
    }
    assert bed.sh("systemctl is-enabled docker; systemctl is-active docker").split() == ["enabled", "active"]
    again = role(bed, **wanted)
    assert "changed=0" in again.stdout, again.stdout + again.stderr


def test_docker_with_userns_remap_is_refused(bed: Bed) -> None:
    """The compile cache is root's on the node, and root in a container would be somebody else."""
    remap = """echo '{"userns-remap": "default"}' >/etc/docker/daemon.json; systemctl restart docker"""
    bed.sh(f"mkdir -p /etc/docker; test ! -e /etc/docker/daemon.json; {remap}")
    try:
        done = bed.run(
            str(play.ROOT / "scripts/preflight"),
            vllm_server_model="acme/tiny",
            vllm_server_accelerator="cpu",
            vllm_image_name="acme",
            vllm_image_tag="1",
            vllm_image_source="archive",
            vllm_image_archive="/nowhere.tar",
        )
    finally:
        bed.sh("rm /etc/docker/daemon.json; systemctl restart docker")
    assert done.returncode == 1, done.stdout + done.stderr
    says = (
        "node1: users in containers: expected those of the node, found others (userns-remap); remove userns-remap from"
    )
    assert says in " ".join(done.stdout.split()), done.stdout
