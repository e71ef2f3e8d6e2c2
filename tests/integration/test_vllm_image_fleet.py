# SPDX-License-Identifier: Apache-2.0
"""The role vllm_image over real nodes: built once and the same everywhere, by archive, by registry, from the controller.

The engine of the third node keeps its images in containerd's store, where an image has another id.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import tarfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import play
import pytest
from fleet import Fleet

from ansible.module_utils.vllm_fleet.server import release

pytestmark = pytest.mark.engine

NODES = ("node1", "node2", "node3")
PORT = 5443
DOCKERFILE = """\
FROM scratch
COPY root /
COPY weight /weight
COPY content /content
CMD ["/bin/sleep", "infinity"]
"""
#: A checkout on the build host whose image can run: one program with its libraries, and 12 MB in a layer of its own.
CONTEXT = f"""
set -eu
mkdir -p /srv/vllm/docker /srv/vllm/root && cd /srv/vllm
cp --parents -L /bin/sleep $(ldd /bin/sleep | grep -o '/[^ ]*') root
head -c 12000000 /dev/urandom >weight
echo one >content
cat >docker/Dockerfile.rocm <<'END'
{DOCKERFILE}END
git init -q . && git add . && git -c user.name=t -c user.email=t@example.invalid commit -qm one
"""


#: Overlayfs does not stack on itself, so containerd's folder goes to the disk that Docker's is on.
CONTAINERD_STORE = """
set -eu
systemctl stop docker.socket docker containerd
mkdir -p /var/lib/docker/containerd /etc/docker && mount --bind /var/lib/docker/containerd /var/lib/containerd
echo '{"features": {"containerd-snapshotter": true}}' >/etc/docker/daemon.json
systemctl start containerd docker
docker info --format '{{.DriverStatus}}' | grep -q io.containerd.snapshotter
"""


@dataclass(frozen=True)
class Run:
    """One run of the role on the fleet."""

    rc: int
    output: str

    def changed(self, *hosts: str) -> bool:
        """Whether exactly these hosts changed something, and none failed."""
        found = re.findall(r"^(node\d)\s.*changed=(\d+).*failed=(\d+)", self.output, re.MULTILINE)
        assert {host for host, _, _ in found} >= set(hosts) and self.rc == 0, self.output
        return {host for host, count, _ in found if count != "0"} == set(hosts)


class Site:
    """The fleet with the role's variables."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet, self.folder = fleet, folder

    def run(self, *more: str, **variables: Any) -> Run:
        with self.start(*more, **variables) as process:
            output, _ = process.communicate(timeout=300)
        return Run(process.returncode, output)

    def start(self, *more: str, **variables: Any) -> subprocess.Popen[str]:
        said = {
            "vllm_image_name": "vllm-rocm",
            "vllm_image_tag": "v1",
            "vllm_image_source": "build",
            "vllm_image_build_context": "/srv/vllm",
            "vllm_image_build_target": "",
            "vllm_image_min_free_gib": 0.2,
            "vllm_image_build_min_free_gib": 0.2,
            "vllm_image_cache_path": "/var/cache/vllm-fleet",
            "vllm_image_become": True,
            **variables,
        }
        tasks = [{"name": "Image", "ansible.builtin.include_role": {"name": "vllm_image"}}]
        told = [
            {
                "name": "Test",
                "hosts": "vllm",
                "gather_facts": False,
                "any_errors_fatal": True,
                "vars": said,
                "tasks": tasks,
            }
        ]
        path = self.folder / f"play-{uuid.uuid4().hex[:6]}.yml"
        path.write_text(json.dumps(told), encoding="utf-8")
        command = [play.PLAYBOOK, "-i", str(self.folder / "inventory.yml"), str(path), *more]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=play.environment(),
            cwd=play.ROOT,
            start_new_session=True,
        )

    def sh(self, node: str, script: str) -> str:
        return self.fleet.exec(node, ["bash", "-c", script]).stdout.strip()

    def contents(self, ref: str) -> list[str]:
        """What the nodes have under a name: the layers, which both of Docker's stores call alike."""
        ask = ["docker", "image", "inspect", "--format", "{{.RootFS.Layers}}", ref]
        return [self.fleet.exec(node, ask, check=False).stdout.strip() for node in NODES]

    def id(self, ref: str, node: str = "node1") -> str:
        return self.sh(node, f"docker image inspect --format '{{{{.Id}}}}' {ref}")

    def slow(self, rate: str) -> None:
        """What the build host sends is slow, so that half-way is a state that lasts."""
        self.sh("node1", f"tc qdisc replace dev eth0 root tbf rate {rate} burst 32kb latency 400ms")

    def fast(self) -> None:
        self.sh("node1", "tc qdisc del dev eth0 root 2>/dev/null || true")

    def nothing_is_left(self) -> None:
        """No port, no unit, no certificate, no archive, no name of a registry that is gone."""
        for node in NODES:
            assert f":{PORT}" not in self.sh(node, "ss -Hltn"), node
            assert not self.sh(node, "systemctl list-units --all --plain --no-legend 'vllm-image*'"), node
            left = "ls -d /etc/docker/certs.d/*/* /run/vllm-fleet/vllm-image* /var/cache/vllm-fleet/*.tar* "
            left += "/var/cache/vllm-fleet/registry-* /var/cache/vllm-fleet/vllm-image-* /root/.cache/vllm-fleet/*.tar* 2>/dev/null || true"
            assert not self.sh(node, left), node
            refs = "docker images --digests --format '{{.Repository}}@{{.Digest}}' | grep 5443 || true"
            assert not self.sh(node, refs), node


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("image-fleet")
    fleet = Fleet(f"image-{uuid.uuid4().hex[:6]}")
    fleet.up(folder, ["bookworm", "bookworm", "trixie"])
    try:
        fleet.exec(
            "node1",
            ["bash", "-c", "command -v git || (apt-get update && apt-get install -y git) >/dev/null"],
            timeout=300,
        )
        fleet.exec("node1", ["bash", "-c", CONTEXT])
        fleet.exec("node3", ["bash", "-c", CONTAINERD_STORE])
        yield Site(fleet, folder)
    finally:
        fleet.down()


def edit(site: Site, content: str) -> str:
    """Commit a change on the build host; the tag that names it."""
    commit = "git -c user.name=t -c user.email=t@example.invalid commit -qam edit"
    return "v1-g" + site.sh(
        "node1", f"cd /srv/vllm && echo {content} >content && {commit} && git rev-parse --short=12 HEAD"
    )


def received(site: Site, node: str) -> int:
    return int(site.sh(node, "cat /sys/class/net/eth0/statistics/rx_bytes"))


def test_built_once_it_is_the_same_on_every_node(site: Site) -> None:
    tag = edit(site, "first")
    predicted = site.run("--check")
    assert predicted.changed(*NODES), predicted.output
    assert site.contents("vllm-rocm:v1") == ["", "", ""]

    # Through a registry; what is lost comes by an archive, in the next test.
    first = site.run(vllm_image_distribution="registry")
    assert first.changed(*NODES), first.output
    made = site.contents("vllm-rocm:v1")
    assert made[0] and made == [made[0]] * 3
    assert site.contents(f"vllm-rocm:{tag}") == made
    assert site.id("vllm-rocm:v1") == site.id("vllm-rocm:v1", "node2") != site.id("vllm-rocm:v1", "node3")
    site.nothing_is_left()
    again = site.run()
    assert again.changed(), again.output
    # A probe and two remarks, no further task on any node: what a run costs that has nothing to do.
    ran = re.findall(r"^ok: vllm_image : (.*) \[", again.output, re.MULTILINE)
    assert ran == [
        "Get the revision of the vLLM checkout",
        "Probe the image",
    ]


def test_a_node_that_lost_it_gets_the_same_again(site: Site) -> None:
    before = site.contents("vllm-rocm:v1")
    tags = site.sh("node2", "docker images --format '{{.Repository}}:{{.Tag}}' vllm-rocm").split()
    site.sh("node2", f"docker rmi {' '.join(tags)}")
    # The build host is not part of this run, and is where it comes from all the same. It may not be reached: then the
    # run ends with a reason, and nothing stays open.
    address = site.fleet.node("node1").address
    reject = f"-d {address} -p tcp --dport {PORT} -j REJECT --reject-with tcp-reset"
    site.sh("node2", f"iptables -w -I OUTPUT {reject}")
    # A run that was killed days ago has left its archive.
    left = "/var/cache/vllm-fleet/vllm-image-0123456789ab.tar"
    site.sh("node1", f"touch -d '2 days ago' {left} {left}.mine")
    refused = site.run("--limit", "node2")
    site.sh("node1", f"rm {left}.mine")
    assert refused.rc != 0 and "loading vllm-rocm:v1 from node1: failed" in refused.output, refused.output
    assert f"{address}:{PORT}" in refused.output and "Connection refused" in refused.output, refused.output
    site.nothing_is_left()
    site.sh("node2", f"iptables -w -D OUTPUT {reject}")
    found = site.run("--limit", "node2")
    assert found.changed("node2"), found.output
    assert site.contents("vllm-rocm:v1") == before
    site.nothing_is_left()


def test_an_edit_goes_through_a_registry_while_the_old_server_serves(site: Site) -> None:
    (old,) = set(site.contents("vllm-rocm:v1"))
    old_id = site.id("vllm-rocm:v1")
    ask = "docker inspect --format '{{.State.Running}} {{.State.StartedAt}} {{.Image}}' vllm"
    for node in NODES:
        site.sh(node, "docker run -d --name vllm vllm-rocm:v1")
    serving = [site.sh(node, ask) for node in NODES]
    edit(site, "second")
    told = site.run("--check", "--diff")
    assert told.changed(*NODES) and re.search(rf"^-.*{old_id}", told.output, re.MULTILINE), told.output
    before = received(site, "node3")
    second = site.run(vllm_image_distribution="registry")
    assert second.changed(*NODES), second.output
    # Only the layer that differs travels to one that has the first from a registry: the other layer has 12 MB.
    assert received(site, "node3") - before < 9_000_000
    made = site.contents("vllm-rocm:v1")
    assert made == [made[0]] * 3 and made[0] not in ("", old)
    site.nothing_is_left()
    assert [site.sh(node, ask) for node in NODES] == serving


def test_pruning_leaves_what_is_needed(site: Site) -> None:
    for node in ("node1", "node2"):
        between = "printf 'FROM vllm-rocm:v1\nLABEL between=yes\n' | docker build --quiet --tag vllm-rocm:v1-gbetween -"
        site.sh(node, between)
    listed = "docker images --no-trunc --format '{{.ID}}' | sort -u"
    before = {node: set(site.sh(node, listed).split()) for node in NODES}
    needed = {
        node: {site.id("vllm-rocm:v1", node), site.sh(node, "docker inspect --format '{{.Image}}' vllm")}
        for node in NODES
    }
    (other,) = before["node1"] - needed["node1"]
    # The record of a release that a rollback may go to, as the run before writes it; the node's folder is another one.
    spec = {"image": "vllm-rocm:v1", "image_id": other, "model": "acme/tiny", "env": {}}
    record = release.build(1, {"Id": "c1", "Name": "/vllm"}, spec, [], None, {}, "2026-01-01T00:00:00Z")
    folder = "/srv/state/vllm/releases"
    prune = {"vllm_image_prune": True, "vllm_server_state_dir": "/srv/state"}
    # containerd's store keeps nothing of a tag that a pull has moved, unless a container uses it.
    more = [node for node in ("node2", "node3") if before[node] - needed[node]]
    assert "node2" in more
    # What cannot be read may name the last good image: nothing goes there, and the deployment goes on.
    site.sh("node1", f"mkdir -p {folder} && echo '{{' >{folder}/000001.json")
    predicted = site.run("--check", **prune)
    assert predicted.changed(*more), predicted.output
    said = " ".join(predicted.output.split())
    assert f"no image is removed: {folder}/000001.json does not say" in said, predicted.output
    site.sh("node1", f"cat >{folder}/000001.json <<'END'\n{json.dumps(record)}\nEND")
    pruned = site.run(**prune)
    assert pruned.changed(*more), pruned.output
    after = {node: set(site.sh(node, listed).split()) for node in NODES}
    # That of a container is kept there too, but not listed once its name has moved.
    assert after == {"node1": before["node1"], "node2": needed["node2"], "node3": needed["node3"] & before["node3"]}


def test_an_archive_of_the_controller_goes_where_it_is_missing(site: Site, tmp_path: Path) -> None:
    name = f"image-fleet-{uuid.uuid4().hex[:6]}:2"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        member = tarfile.TarInfo("content")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"one"))
    subprocess.run(["docker", "import", "-", name], input=content.getvalue(), check=True, capture_output=True)
    try:
        subprocess.run(["docker", "save", "--output", str(tmp_path / "image.tar"), name], check=True)
        inspect = ["docker", "image", "inspect", "--format", "{{.RootFS.Layers}}", name]
        wanted = subprocess.run(inspect, check=True, capture_output=True, text=True).stdout.strip()
    finally:
        subprocess.run(["docker", "rmi", name], check=True, capture_output=True)
    asked = {"vllm_image_source": "archive", "vllm_image_archive_location": "controller", "vllm_image_tag": "2"}
    asked |= {"vllm_image_archive": str(tmp_path / "image.tar"), "vllm_image_name": "sent"}
    # Into a folder that root alone may open, where the user of one node needs a password for sudo, and has none at first.
    asked["vllm_image_cache_path"] = "/root/.cache/vllm-fleet"
    password = "p'w \"x$y`"
    with site.fleet.password_sudo(password, ["node3"]):
        refused = site.run("--limit", "node3", **asked)
        assert refused.rc != 0 and not site.contents("sent:2")[2], refused.output
        sent = site.run(**asked, ansible_become_password=password)
        assert sent.changed(*NODES), sent.output
        assert password not in sent.output
    assert site.contents("sent:2") == [wanted] * 3
    site.nothing_is_left()


def test_a_registry_of_ones_own_and_a_tag_that_moves_there(site: Site) -> None:
    # A registry on one node, which every node reaches on its own loopback: no TLS, as Docker allows it there.
    program = "/var/lib/vllm-fleet/programs/docker-registry/usr/bin/docker-registry"
    config = "version: 0.1\nstorage: {filesystem: {rootdirectory: /srv/registry}}\nhttp: {addr: ':5001'}\n"
    site.sh(
        "node1",
        f'printf "{config}" >/srv/registry.yml && systemd-run --unit registry {program} serve /srv/registry.yml',
    )
    address = site.fleet.node("node1").address
    for node in NODES:
        listen = "systemd-run --unit loop --socket-property=ListenStream=127.0.0.1:5000"
        site.sh(node, f"{listen} /lib/systemd/systemd-socket-proxyd {address}:5001")
    older, older_id = site.contents("vllm-rocm:v1")[0], site.id("vllm-rocm:v1")
    edit(site, "fourth")
    own = {"vllm_image_distribution": "registry", "vllm_image_registry": "127.0.0.1:5000/team"}
    built = site.run(**own)
    assert built.changed(*NODES), built.output
    made = site.contents("vllm-rocm:v1")
    assert made == [made[0]] * 3 and made[0] not in ("", older)

    by_tag = {"vllm_image_source": "pull", "vllm_image_name": "127.0.0.1:5000/team/vllm-rocm"}
    pulled = site.run(**by_tag)
    assert pulled.changed(*NODES), pulled.output
    assert site.contents("127.0.0.1:5000/team/vllm-rocm:v1") == made
    asked = re.findall(
        r"^ok: vllm_image : Get the digest of the image's tag from the registry.* \[(.*)\]$",
        pulled.output,
        re.MULTILINE,
    )
    assert len(asked) == 1 and asked[0] in NODES, pulled.output  # one of them for all
    site.sh(
        "node1",
        f"docker tag {older_id} 127.0.0.1:5000/team/vllm-rocm:v1 && docker push 127.0.0.1:5000/team/vllm-rocm:v1",
    )
    newer = site.id("vllm-rocm:v1")
    moved = site.run("--diff", **by_tag)
    assert moved.changed(*NODES) or moved.changed("node2", "node3"), moved.output
    assert re.search(rf"^-.*{newer}", moved.output, re.MULTILINE), moved.output
    assert site.contents("127.0.0.1:5000/team/vllm-rocm:v1") == [older] * 3


# -- when something breaks on the way ------------------------------------------------------------------------------


def until(site: Site, node: str, script: str, process: subprocess.Popen[str]) -> None:
    """Wait for a state of a node; a run that ends first shows what it said."""
    deadline = time.monotonic() + 120
    while not site.sh(node, f"{script} || true"):
        if process.poll() is not None or time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(process.communicate()[0])
        time.sleep(0.5)


CONNECTED = f"ss -Htn state established '( sport = :{PORT} )' | grep -v 127.0.0.1"


@dataclass
class Dying:
    """The run whose registry died: Docker tries again for most of a minute, and other tests go on meanwhile."""

    process: subprocess.Popen[str] | None = None


@pytest.fixture(scope="module")
def dying() -> Dying:
    return Dying()


def test_a_registry_dies_in_the_middle_of_a_run(site: Site, dying: Dying) -> None:
    """What becomes of the run is looked at below."""
    edit(site, "fifth")
    # 12 MB that no node has, at 2 MB a second.
    site.sh("node1", "cd /srv/vllm && head -c 12000000 /dev/urandom >weight")
    site.slow("16mbit")
    try:
        dying.process = site.start(vllm_image_distribution="registry")
        until(site, "node1", CONNECTED, dying.process)
        site.sh("node1", "systemctl kill --signal KILL 'vllm-image-*.service'")
        assert dying.process.poll() is None
    finally:
        site.fast()


def test_a_builder_that_cannot_do_it_is_refused_before_anything_is_built(site: Site) -> None:
    # The third node's client has no buildx plugin, and without it this Docker has no BuildKit.
    dockerfile = "FROM scratch\nRUN --mount=type=cache,target=/root/.cache true\n"
    site.sh("node3", f"mkdir -p /srv/own/docker && printf '{dockerfile}' >/srv/own/docker/Dockerfile.rocm")
    own = {"vllm_image_name": "own", "vllm_image_build_host": "node3", "vllm_image_build_context": "/srv/own"}
    refused = site.run("--limit", "node3", **own, vllm_image_build_revision="1")
    assert refused.rc != 0 and "no docker command on node3 has it: install the buildx plugin" in " ".join(
        refused.output.split()
    ), refused.output
    assert "(line 2:RUN --mount=type=cache" in refused.output
    assert "TASK [vllm_image : Build the image]" not in refused.output


def test_built_on_the_controller_it_is_sent(site: Site, tmp_path: Path) -> None:
    name, context = f"image-fleet-{uuid.uuid4().hex[:6]}", tmp_path / "vllm"
    (context / "docker").mkdir(parents=True)
    (context / "docker" / "Dockerfile.rocm").write_text("FROM scratch\nCOPY content /content\n", encoding="utf-8")
    (context / "content").write_bytes(os.urandom(3_000_000))
    asked = {"vllm_image_name": name, "vllm_image_build_host": "localhost", "vllm_image_build_revision": "1"}
    asked |= {"vllm_image_build_context": str(context), "vllm_image_cache_path": str(tmp_path / "cache")}
    try:
        # The other end breaks off.
        site.sh("node2", "printf '#!/bin/sh\\nexit 12\\n' >/usr/local/bin/rsync && chmod +x /usr/local/bin/rsync")
        broken = site.run(**asked)
        assert broken.rc != 0 and "rsync error" in broken.output, broken.output
        assert not list((tmp_path / "cache").glob("*.tar*"))
        site.sh("node2", "rm /usr/local/bin/rsync")
        sent = site.run(**asked)
        assert sent.rc == 0, sent.output
        inspect = ["docker", "image", "inspect", "--format", "{{.RootFS.Layers}}", f"{name}:v1"]
        wanted = subprocess.run(inspect, check=True, capture_output=True, text=True).stdout.strip()
        assert site.contents(f"{name}:v1") == [wanted] * 3
        assert site.run(**asked).changed()
        assert not list((tmp_path / "cache").glob("*.tar*"))
        for node in NODES:
            assert not site.sh(node, f"ls {tmp_path}/cache/*.tar* 2>/dev/null || true"), node
    finally:
        site.sh("node2", "rm -f /usr/local/bin/rsync")
        listed = subprocess.run(
            ["docker", "images", "--quiet", name], capture_output=True, text=True, check=True
        ).stdout
        if listed.split():
            subprocess.run(["docker", "rmi", "--force", *set(listed.split())], check=True, capture_output=True)


def test_the_run_whose_registry_died_says_so_and_leaves_nothing_and_another_is_killed(site: Site, dying: Dying) -> None:
    assert dying.process
    output, _ = dying.process.communicate(timeout=240)
    assert dying.process.returncode and re.search(
        r"(pushing|pulling) vllm-rocm:v1 .*: failed with exit code 1", output
    ), output
    assert "Docker says: " in output, output
    site.nothing_is_left()

    # The controller is killed while an archive travels: the nodes finish what they began, and the build host stops
    # serving when nobody is connected any more. That, too, is looked at below.
    site.slow("16mbit")
    try:
        process = site.start("-e", "__vllm_image_idle=45")
        until(site, "node1", CONNECTED, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finally:
        site.fast()


def test_a_server_is_the_same_or_not_in_containerds_store_too(site: Site, standin_image: str) -> None:
    site.fleet.load([standin_image], ["node3"])
    asked = {"name": "standin", "image": standin_image, "model": "acme/tiny", "port": 8000, "accelerator": "cpu"}
    asked |= {"gpu_memory_policy": "off", "ready_timeout": 60}

    def server(*more: str) -> str:
        inventory = ["-i", str(site.folder / "inventory.yml"), "node3", "--become", *more]
        command = [
            str(Path(play.PLAYBOOK).with_name("ansible")),
            *inventory,
            "-m",
            "vllm_server",
            "-a",
            json.dumps(asked),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, env=play.environment(), cwd=play.ROOT, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "node3 | CHANGED" in server()
    assert "node3 | SUCCESS" in server()
    before = site.id(standin_image, "node3")
    site.sh("node3", f"printf 'FROM {standin_image}\nLABEL moved=yes\n' | docker build --quiet --tag {standin_image} -")
    told = server("--check", "--diff")
    assert re.search(rf"^-.*{before[7:19]}", told, re.MULTILINE), told
    assert re.search(rf"^\+.*{site.id(standin_image, 'node3')[7:19]}", told, re.MULTILINE), told


def test_what_a_killed_run_began_ends_by_itself_and_the_next_run_takes_it_up(site: Site) -> None:
    deadline = time.monotonic() + 120
    while site.sh("node1", f"ss -Hltn 'sport = :{PORT}'"):
        assert time.monotonic() < deadline, site.sh("node1", "systemctl status 'vllm-image-*'")
        time.sleep(0.5)
    # Of a killed run through a registry, Docker's certificate stays, on nodes that lack nothing any more too.
    folder = f"/etc/docker/certs.d/{site.fleet.node('node1').address}:{PORT}"
    site.sh("node3", f"mkdir -p {folder} && touch {folder}/client.key {folder}/vllm-fleet")
    site.sh("node2", "docker rmi -f $(docker images -q vllm-rocm:v1)")
    again = site.run(vllm_image_distribution="registry")
    assert again.rc == 0, again.output
    made = site.contents("vllm-rocm:v1")
    assert made == [made[0]] * 3 and made[0]
    site.nothing_is_left()
