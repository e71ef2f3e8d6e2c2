"""The role vllm_image over real nodes: built once and the same everywhere, by archive, by registry, from the controller."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import play
import pytest
from fleet import Fleet

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
#: A checkout on the build host whose image can run: one program with its libraries, and 30 MB in a layer of its own.
CONTEXT = f"""
set -eu
mkdir -p /srv/vllm/docker /srv/vllm/root && cd /srv/vllm
cp --parents -L /bin/sleep $(ldd /bin/sleep | grep -o '/[^ ]*') root
head -c 30000000 /dev/urandom >weight
echo one >content
cat >docker/Dockerfile.rocm <<'END'
{DOCKERFILE}END
git init -q . && git add . && git -c user.name=t -c user.email=t@example.invalid commit -qm one
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
        done = subprocess.run(
            command, capture_output=True, text=True, env=play.environment(), cwd=play.ROOT, check=False
        )
        return Run(done.returncode, done.stdout + done.stderr)

    def sh(self, node: str, script: str) -> str:
        return self.fleet.exec(node, ["bash", "-c", script]).stdout.strip()

    def ids(self, ref: str, nodes: tuple[str, ...] = NODES) -> list[str]:
        ask = ["docker", "image", "inspect", "--format", "{{.Id}}", ref]
        return [self.fleet.exec(node, ask, check=False).stdout.strip() for node in nodes]

    def nothing_is_left(self) -> None:
        """No port, no unit, no certificate, no archive, no name of a registry that is gone."""
        for node in NODES:
            assert f":{PORT}" not in self.sh(node, "ss -Hltn"), node
            assert not self.sh(node, "systemctl list-units --all --plain --no-legend 'vllm-image*'"), node
            left = "ls -d /etc/docker/certs.d/*/* /run/vllm-fleet/vllm-image* /var/cache/vllm-fleet/*.tar* "
            left += "/var/cache/vllm-fleet/registry-* /var/cache/vllm-fleet/vllm-image-* 2>/dev/null || true"
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
    assert site.ids("vllm-rocm:v1") == ["", "", ""]

    first = site.run()
    assert first.changed(*NODES), first.output
    ids = site.ids("vllm-rocm:v1")
    assert ids[0] and ids == [ids[0]] * 3
    assert site.ids(f"vllm-rocm:{tag}") == ids
    site.nothing_is_left()
    again = site.run()
    assert again.changed(), again.output
    # A probe and two remarks, no further task on any node: what a run costs that has nothing to do.
    ran = re.findall(r"^TASK \[vllm_image : (.*)\] \*", again.output, re.MULTILINE)
    assert [name for name in ran if name.startswith(("Look", "Read", "Check", "Get"))] == [
        "Read the revision of the checkout",
        "Look for the image",
    ]


def test_a_node_that_lost_it_gets_the_same_again(site: Site) -> None:
    before = site.ids("vllm-rocm:v1")
    tags = site.sh("node2", "docker images --format '{{.Repository}}:{{.Tag}}' vllm-rocm").split()
    site.sh("node2", f"docker rmi {' '.join(tags)}")
    # The build host is not part of this run, and is where it comes from all the same. It may not be reached: then the
    # run ends with a reason, and nothing stays open.
    address = site.fleet.node("node1").address
    reject = f"-d {address} -p tcp --dport {PORT} -j REJECT --reject-with tcp-reset"
    site.sh("node2", f"iptables -w -I OUTPUT {reject}")
    refused = site.run("--limit", "node2")
    assert refused.rc != 0 and "loading vllm-rocm:v1 from node1: failed" in refused.output, refused.output
    assert f"{address}:{PORT}" in refused.output and "Connection refused" in refused.output, refused.output
    site.nothing_is_left()
    site.sh("node2", f"iptables -w -D OUTPUT {reject}")
    found = site.run("--limit", "node2")
    assert found.changed("node2"), found.output
    assert site.ids("vllm-rocm:v1") == before
    site.nothing_is_left()


def test_an_edit_goes_through_a_registry_while_the_old_server_serves(site: Site) -> None:
    (old,) = set(site.ids("vllm-rocm:v1"))
    ask = "docker inspect --format '{{.State.Running}} {{.State.StartedAt}} {{.Image}}' vllm"
    for node in NODES:
        site.sh(node, "docker run -d --name vllm vllm-rocm:v1")
    serving = [site.sh(node, ask) for node in NODES]
    edit(site, "second")
    told = site.run("--check", "--diff")
    assert told.changed(*NODES) and re.search(rf"^-.*{old}", told.output, re.MULTILINE), told.output
    second = site.run(vllm_image_distribution="registry")
    assert second.changed(*NODES), second.output
    ids = site.ids("vllm-rocm:v1")
    assert ids == [ids[0]] * 3 and ids[0] not in ("", old)
    site.nothing_is_left()

    # Of the next one only the layer that differs travels: the other one has 30 MB.
    edit(site, "third")
    before = received(site, "node3")
    assert site.run(vllm_image_distribution="registry").changed(*NODES)
    assert received(site, "node3") - before < 15_000_000
    third = site.ids("vllm-rocm:v1")
    assert third == [third[0]] * 3 and third[0] not in ("", ids[0], old)
    assert [site.sh(node, ask) for node in NODES] == serving


def test_pruning_leaves_what_is_needed(site: Site) -> None:
    current, serving = site.ids("vllm-rocm:v1")[0], site.sh("node1", "docker inspect --format '{{.Image}}' vllm")
    listed = "docker images --no-trunc --format '{{.ID}}' | sort -u"
    before = [site.sh(node, listed).split() for node in NODES]
    (other,) = set(before[0]) - {current, serving}
    record = {"image_id": other}
    site.sh(
        "node1",
        f"mkdir -p /var/lib/vllm-fleet/vllm/releases && echo '{json.dumps(record)}' >/var/lib/vllm-fleet/vllm/releases/1.json",
    )
    predicted = site.run("--check", vllm_image_prune=True)
    assert predicted.changed("node2", "node3"), predicted.output
    pruned = site.run(vllm_image_prune=True)
    assert pruned.changed("node2", "node3"), pruned.output
    assert [site.sh(node, listed).split() for node in NODES] == [
        before[0],
        sorted({current, serving}),
        sorted({current, serving}),
    ]
    assert site.run(vllm_image_prune=True).changed()


def test_an_archive_of_the_controller_goes_where_it_is_missing(site: Site, tmp_path: Path) -> None:
    name = f"image-fleet-{uuid.uuid4().hex[:6]}:1"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        member = tarfile.TarInfo("content")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"one"))
    subprocess.run(["docker", "import", "-", name], input=content.getvalue(), check=True, capture_output=True)
    try:
        subprocess.run(["docker", "save", "--output", str(tmp_path / "image.tar"), name], check=True)
        inspect = ["docker", "image", "inspect", "--format", "{{.Id}}", name]
        wanted = subprocess.run(inspect, check=True, capture_output=True, text=True).stdout.strip()
    finally:
        subprocess.run(["docker", "rmi", name], check=True, capture_output=True)
    asked = {"vllm_image_source": "archive", "vllm_image_archive_location": "controller", "vllm_image_tag": "2"}
    asked |= {"vllm_image_archive": str(tmp_path / "image.tar"), "vllm_image_name": "sent"}
    assert site.run("--check", **asked).changed(*NODES)
    sent = site.run(**asked)
    assert sent.changed(*NODES), sent.output
    assert site.ids("sent:2") == [wanted] * 3
    site.sh("node3", f"docker rmi sent:2 {name}")
    again = site.run(**asked)
    assert again.changed("node3"), again.output
    assert site.ids("sent:2") == [wanted] * 3
    site.nothing_is_left()


def test_a_registry_of_ones_own_and_a_tag_that_moves_there(site: Site) -> None:
    # A registry on one node, which every node reaches on its own loopback: no TLS, as Docker allows it there.
    program = "/var/cache/vllm-fleet/docker-registry/usr/bin/docker-registry"
    config = "version: 0.1\nstorage: {filesystem: {rootdirectory: /srv/registry}}\nhttp: {addr: ':5001'}\n"
    site.sh(
        "node1",
        f'printf "{config}" >/srv/registry.yml && systemd-run --unit registry {program} serve /srv/registry.yml',
    )
    address = site.fleet.node("node1").address
    for node in NODES:
        listen = "systemd-run --unit loop --socket-property=ListenStream=127.0.0.1:5000"
        site.sh(node, f"{listen} /lib/systemd/systemd-socket-proxyd {address}:5001")
    older = site.ids("vllm-rocm:v1")[0]
    edit(site, "fourth")
    own = {"vllm_image_distribution": "registry", "vllm_image_registry": "127.0.0.1:5000/team"}
    built = site.run(**own)
    assert built.changed(*NODES), built.output
    ids = site.ids("vllm-rocm:v1")
    assert ids == [ids[0]] * 3 and ids[0] not in ("", older)

    by_tag = {"vllm_image_source": "pull", "vllm_image_name": "127.0.0.1:5000/team/vllm-rocm"}
    pulled = site.run(**by_tag)
    assert pulled.changed(*NODES), pulled.output
    assert site.ids("127.0.0.1:5000/team/vllm-rocm:v1") == ids
    assert len(re.findall(r"^ok: \[", pulled.output.split("Ask the registry")[1].split("TASK")[0], re.MULTILINE)) == 1
    site.sh(
        "node1", f"docker tag {older} 127.0.0.1:5000/team/vllm-rocm:v1 && docker push 127.0.0.1:5000/team/vllm-rocm:v1"
    )
    predicted = site.run("--check", "--diff", **by_tag)
    assert predicted.changed(*NODES) or predicted.changed("node2", "node3"), predicted.output
    assert re.search(rf"^-.*{ids[0]}", predicted.output, re.MULTILINE), predicted.output
    moved = site.run(**by_tag)
    assert moved.rc == 0, moved.output
    assert site.ids("127.0.0.1:5000/team/vllm-rocm:v1") == [older] * 3
    assert site.run(**by_tag).changed()
