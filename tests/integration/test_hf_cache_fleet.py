# SPDX-License-Identifier: Apache-2.0
"""hf_cache on three real nodes: a swarm, what goes wrong in one, and what is left afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_hf_cache import COMMIT, FakeCache, model_files
from hub_standin import CANARY, Hub, hub_reads

from ansible.module_utils.vllm_fleet.weights.torrent import service_argv

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "fleet"))
from fleet import Fleet  # noqa: E402
from node_image import docker, tar_of  # noqa: E402

HF = "/home/ops/.cache/huggingface"
NODES = ["node1", "node2", "node3"]
SMALL = "/srv/hf"
SHARD = "model-00002-of-00008.safetensors"
ABSENT = "model-00003-of-00008.safetensors"
MB = 10**6
PASSWORD = "p'w \"x$y`"

pytestmark = pytest.mark.engine


def commit(number: int) -> str:
    return f"{number:x}" * 40


@dataclass
class Bed:
    """The fleet, the controller's cache, and the play that a user would write."""

    fleet: Fleet
    folder: Path

    def model(self, number: int, megabytes: int = 16) -> FakeCache:
        """A model of its own in the controller's cache."""
        files = model_files(8, megabytes * MB // 32)
        files["config.json"] = json.dumps({"model": number}).encode()
        # Every model has contents of its own: with those of another they would count as there already.
        for name in list(files):
            if name.endswith(".safetensors"):
                files[name] = files[name][:-8] + number.to_bytes(8, "little")
        return FakeCache(self.folder / "seed", files, repo_id=f"org/model{number}", commit=commit(number))

    def command(self, repo_id: str, variables: dict[str, Any]) -> list[str]:
        play = {
            "name": "Weights",
            "hosts": "vllm",
            "become": True,
            "gather_facts": False,
            "any_errors_fatal": variables.pop("fatal", True),
            "roles": [{"role": "hf_cache"}],
        }
        mode = ["--check"] if variables.pop("check", False) else []
        path = self.folder / "play.yml"
        path.write_text(json.dumps([play]))
        settings = {
            "hf_cache_repo_id": repo_id,
            "hf_cache_source": "controller",
            "hf_cache_controller_path": str(self.folder / "seed"),
            "hf_cache_margin": 0,
            # aria2 gives a peer its turn every 10 s: on a busy machine that is no standstill yet.
            "hf_cache_stall": 25,
            "hf_cache_swarm_lease": 45,
            **variables,
        }
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        return [program, *mode, "-i", f"{self.fleet.directory}/inventory.yml", "-e", json.dumps(settings), str(path)]

    def start(self, repo_id: str, **variables: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(repo_id, variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
                "COLUMNS": "2000",
                "ANSIBLE_SSH_RETRIES": "1",  # a node that is off is off
            },
            start_new_session=True,
        )

    def run(self, repo_id: str, *, code: int = 0, **variables: Any) -> str:
        process = self.start(repo_id, **variables)
        try:
            output, _ = process.communicate(timeout=240)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == code or (code and process.returncode), output
        return output

    def sh(self, node: str, script: str) -> str:
        return self.fleet.exec(node, ["sh", "-c", script]).stdout.strip()

    def listening(self, node: str) -> set[str]:
        """Addresses at which anything listens, other than on loopback."""
        lines = self.sh(node, "ss -Hltnu").splitlines()
        return {line.split()[4] for line in lines if not re.match(r"(127\.|\[::1\])", line.split()[4])}

    def nothing_is_left(self) -> None:
        look = "systemctl list-units --all --no-legend --plain 'vllm-fleet-*'; grep restrict /home/ops/.ssh/authorized_keys;"
        look += " ls -d /run/vllm-fleet /tmp/hf_cache.* 2>/dev/null || true"
        for node in NODES:
            assert {item.rsplit(":", 1)[1] for item in self.listening(node)} == {"22"}, node
            assert self.sh(node, look) == "", node

    def received(self, node: str) -> int:
        return int(self.sh(node, "cat /sys/class/net/eth0/statistics/rx_bytes"))

    def staged(self, node: str, cache: str = HF) -> int:
        return int(self.sh(node, f"du -scB1 {cache}/hub/*/.vllm-fleet 2>/dev/null | tail -1 | cut -f1 || true") or 0)

    @contextlib.contextmanager
    def small_disk(self, node: str, size: str) -> Iterator[None]:
        """Give a node a cache whose hub is a link to a disk of this size, all of which may be used."""
        self.sh(node, f"mkdir -p /mnt/small {SMALL} && mount -t tmpfs -o size={size} none /mnt/small")
        self.sh(node, f"mkdir /mnt/small/hub && ln -s /mnt/small/hub {SMALL}/hub")
        host_vars = Path(str(self.fleet.directory)) / "host_vars"
        host_vars.mkdir()
        (host_vars / f"{node}.yml").write_text(f"hf_cache_path: {SMALL}\n")
        try:
            yield
        finally:
            (host_vars / f"{node}.yml").unlink()
            host_vars.rmdir()
            self.sh(node, f"umount /mnt/small && rm -r {SMALL}")

    def slow(self, rate: str, *nodes: str) -> None:
        """What a node sends is slow, so that half-way is a state that lasts."""
        for node in nodes or NODES:
            self.sh(node, f"tc qdisc replace dev eth0 root tbf rate {rate} burst 32kb latency 400ms")

    def fast(self) -> None:
        for node in NODES:
            self.sh(node, "tc qdisc del dev eth0 root 2>/dev/null || true")

    def pull(self, node: str, folder: Path) -> Path:
        """Copy a node's cache to this machine, links as links."""
        command = ["docker", "exec", self.fleet.node(node).container, "tar", "-C", HF, "-cf", "-", "hub"]
        archive = subprocess.run(command, capture_output=True, check=True).stdout
        folder.mkdir()
        subprocess.run(["tar", "-C", str(folder), "-xf", "-"], input=archive, check=True)
        return folder

    def put(self, node: str, cache: FakeCache) -> None:
        """Give a node a cache, as its user's."""
        with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as tar:
            tar.add(cache.cache, arcname=HF.lstrip("/"))
        subprocess.run(
            ["docker", "exec", "-i", self.fleet.node(node).container, "tar", "-C", "/", "-xf", "-"],
            input=buffer.getvalue(),
            check=True,
        )
        self.sh(node, "chown -hR ops:ops /home/ops/.cache")

    def complete(self, node: str, model: FakeCache, cache: str = HF) -> bool:
        base = f"{cache}/hub/{model.repo.name}"
        script = f"cd {base}/blobs 2>/dev/null && for f in *; do [ ${{#f}} = 64 ] && echo $f $f; done | sha256sum -c --quiet && cat {base}/refs/main"
        done = self.fleet.exec(node, ["sh", "-c", script], check=False)
        return done.returncode == 0 and done.stdout == model.commit


def until(condition: Callable[[], Any], seconds: float = 90, process: subprocess.Popen[str] | None = None) -> None:
    """Wait for a state; a run that ends or does not get there shows what it said."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or (process and process.poll() is not None):
            if process and process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            raise AssertionError("it did not come to that: " + (process.communicate(timeout=60)[0] if process else ""))
        time.sleep(0.5)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    fleet = Fleet(f"weights-{os.getpid()}", lambda _: None)
    fleet.up(tmp_path_factory.mktemp("fleet"), ["bookworm", "trixie", "trixie"])
    try:
        yield Bed(fleet, tmp_path_factory.mktemp("controller"))
    finally:
        fleet.down()


def test_a_swarm_brings_it_to_every_node_and_a_second_run_finds_it(bed: Bed, tmp_path: Path, hub_python: str) -> None:
    model = bed.model(1)
    # node1 has it already, as huggingface_hub 2 leaves it: a shard in the shared store; and its user's token.
    there = FakeCache(tmp_path / "user", model.files, repo_id=model.repo_id, commit=model.commit)
    there.share(SHARD)
    (there.cache / "token").write_text(CANARY)
    bed.put("node1", there)
    # What the time of a unit has ended is not started again: at the end there is none.
    bed.sh("node1", shlex.join(service_argv("vllm-fleet-over", ["sleep", "99"], seconds=1, log="/tmp/over")))
    before = bed.sh("node1", f"cd {HF} && find . -path ./.vllm-fleet -prune -o -printf '%p %i %T@ %m %s %l\\n' | sort")
    # Check mode says who would change, and touches nobody.
    look = (
        f"find {HF} -path '*/hub*' -o -name staging; systemctl list-units --all --no-legend --plain 'vllm-fleet-swarm*'"
    )
    untouched = {node: bed.sh(node, look) for node in NODES}
    output = bed.run(model.repo_id, check=True)
    assert [
        node for node in NODES if re.search(rf"^{node} .* changed=[1-9].* failed=0 ", output, re.MULTILINE)
    ] == NODES[1:]
    assert {node: bed.sh(node, look) for node in NODES} == untouched

    output = bed.run(model.repo_id)
    for node in ("node2", "node3"):
        assert f"[{node}] {model.repo_id}: all 16.0 MB there" in output
        assert bed.complete(node, model), node
        wrong = f"find {HF} ! -user ops; find {HF}/hub -type f ! -perm 0644 -o -type d ! -perm 0755;"
        assert bed.sh(node, f"{wrong} find {HF} -name token -o -name staging | xargs -r ls") == ""
    assert "the seed cache on the controller" not in output
    after = bed.sh("node1", f"cd {HF} && find . -path ./.vllm-fleet -prune -o -printf '%p %i %T@ %m %s %l\\n' | sort")
    assert after == before
    bed.nothing_is_left()
    for node in ("node2", "node3"):
        snapshot = hub_reads(hub_python, bed.pull(node, tmp_path / node), model.repo_id)
        assert {path: (snapshot / path).read_bytes() for path in model.files} == model.files

    again = bed.run(model.repo_id)
    assert not re.search(r"changed=[1-9]", again)
    assert again.count("TASK") <= 5


def test_peer_killed_run_interrupted_seed_gone_and_taken_up_each_time(bed: Bed) -> None:
    model = bed.model(2, 20)
    total = sum(map(len, model.files.values()))
    bed.put("node1", FakeCache(bed.folder / "half", model.files, repo_id=model.repo_id, commit=model.commit))
    bed.slow("8mbit")  # what follows is looked at from outside: on a busy machine most would have arrived meanwhile
    begin = {node: bed.received(node) for node in ("node2", "node3")}
    process = bed.start(model.repo_id)
    until(lambda: bed.staged("node2") > 3 * MB, process=process)
    # Both directions only: the one address, on every node that takes part.
    for node in NODES:
        address = bed.fleet.node(node).address
        ports = {f"{address}:6881"} | ({f"{address}:6969"} if node == "node1" else set())
        assert {item for item in bed.listening(node) if not item.endswith(":22")} == ports, node
    bed.sh("node3", f"systemctl kill --signal KILL vllm-fleet-swarm-{model.commit[:12]}-peer")
    here = bed.staged("node3")
    until(lambda: bed.staged("node3") > here + MB, process=process)  # it came back by itself and goes on
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert "RECAP" not in output
    bed.slow("64kbit")  # until their lease is over the peers go on among themselves: not so far that nothing is left
    until(lambda: all({item.rsplit(":", 1)[1] for item in bed.listening(node)} == {"22"} for node in NODES), 120)

    bed.slow("4mbit")
    process = bed.start(model.repo_id)
    here = bed.staged("node2")
    until(lambda: bed.staged("node2") > here + MB, process=process)
    bed.fleet.off("node1")
    output, _ = process.communicate(timeout=240)
    assert process.returncode, output
    said = re.search(r"node2: org/model2 did not arrive: nothing has arrived for \d+ s at (\d+) of \d+ bytes", output)
    assert said, output
    assert int(said[1]) < total
    assert "; node1, which has all of it: the node cannot be reached (" in output
    for node in ("node2", "node3"):
        assert bed.sh(node, f"ls {HF}/hub/{model.repo.name}/refs 2>/dev/null || true") == ""  # nothing resolves
        assert {item.rsplit(":", 1)[1] for item in bed.listening(node)} == {"22"}

    bed.fleet.on("node1")
    bed.slow("16mbit")
    kept = {node: bed.received(node) for node in begin}
    bed.run(model.repo_id)
    bed.fast()
    for node in NODES:
        assert bed.complete(node, model), node
    for node, first in begin.items():
        rest, everything = bed.received(node) - kept[node], bed.received(node) - first
        assert rest < total, f"{node} received {rest} of {total} bytes again"
        # Once over all three runs, but for pieces under way, Ansible and TCP; a node sends as well, and is acknowledged.
        assert everything < 1.5 * total, f"{node} received {everything} bytes for {total}"
    bed.nothing_is_left()


def test_a_corrupt_seed_is_named_and_nothing_is_spread_until_it_is_repaired(bed: Bed, tmp_path: Path) -> None:
    model = bed.model(3)
    # One file is absent and one is wrong: what the first is repaired with says nothing of the other.
    spoilt = FakeCache(tmp_path / "spoilt", model.files, repo_id=model.repo_id, commit=model.commit)
    content = bytearray(model.files[SHARD])
    content[-1] ^= 1
    spoilt.blob(SHARD).write_bytes(content)
    spoilt.blob(ABSENT).unlink()
    bed.put("node1", spoilt)
    output = bed.run(model.repo_id, code=2)
    assert f"{SHARD}: its content hashes to" in output
    for node in ("node2", "node3"):
        assert bed.sh(node, f"ls {HF}/hub | grep model3 || true") == ""
    assert "vllm-fleet-swarm" not in bed.sh("node1", "systemctl list-units --all --plain 'vllm-fleet-*' || true")

    # Hashed, the fault shows in the probe, and the one file comes anew. At the same time: the seed's ports are closed,
    # and the disk of one node is too small.
    bed.sh("node1", "iptables -I INPUT -p tcp -m multiport --dports 6881,6969 ! -s $(hostname -i) -j DROP")
    try:
        # The user's sudo wants a password: what is sent from here, and from node to node over SSH, does not ask for it.
        with bed.small_disk("node3", "8m"), bed.fleet.password_sudo(PASSWORD):
            become = {"ansible_become_password": PASSWORD}
            output = bed.run(model.repo_id, code=2, hf_cache_verify="full", fatal=False, **become)
    finally:
        bed.sh("node1", "iptables -D INPUT 1")
    assert re.search(r"\[node2\] no swarm here: TCP port 6969 \(tracker\) of \S+ cannot be reached", output), output
    assert "The weights go by rsync over SSH instead" in output
    assert re.search(rf"The disk of {SMALL} has \d+ bytes free", output)
    for node in ("node1", "node2"):
        assert bed.complete(node, model), node
    assert not bed.complete("node3", model)
    # All models so far lie side by side.
    assert bed.sh("node2", f"ls {HF}/hub").split() == [
        "models--org--model1",
        "models--org--model2",
        "models--org--model3",
    ]
    bed.nothing_is_left()


def test_the_seed_alone_downloads_through_a_bad_hub_and_a_disk_fills_up_meanwhile(bed: Bed, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    for python in ("3.11", "3.13"):  # of Debian 12 and 13
        fetch = [sys.executable, "-m", "pip", "download", "-q", "-d", str(wheels), "--only-binary", ":all:"]
        subprocess.run([*fetch, "--python-version", python, "huggingface_hub==2.4.0"], check=True)
    pip = tar_of({"/etc/pip.conf": ("[global]\nno-index = true\nfind-links = /opt/wheels\n", 0o644, 0)})
    for node in bed.fleet.nodes:
        docker("cp", str(wheels), f"{node.container}:/opt/wheels")
        docker("cp", "-", f"{node.container}:/", stdin=pip)
    gateway = json.loads(docker("network", "inspect", bed.fleet.name))[0]["IPAM"]["Config"][0]
    host = gateway.get("Gateway") or re.sub(r"\.0/24$", ".1", gateway["Subnet"])
    nodes = {node.address for node in bed.fleet.nodes}
    files = model_files(4, MB)
    total = sum(map(len, files.values()))
    source: dict[str, Any] = {"hf_cache_source": "hub", "hf_cache_hub_stall": 4, "hf_cache_prune": True}
    bed.slow("16mbit")
    with serving(Hub(files, host=host)) as hub, bed.small_disk("node3", f"{total + 6 * MB}"):
        source |= {"hf_cache_hub_endpoint": hub.url, "hf_token": CANARY}
        hub.trouble = {
            "model-00001-of-00004.safetensors": ["429"],
            "model-00002-of-00004.safetensors": ["stall"],
            "model-00003-of-00004.safetensors": ["drop", "drop"],
            "listing": ["503"],
        }
        process = bed.start("org/model", **source, fatal=False)
        # Room enough at first; then something else fills the disk while the weights arrive.
        until(lambda: bed.staged("node3", SMALL) > 6 * MB, 200, process)
        bed.sh("node3", "dd if=/dev/zero of=/mnt/small/other bs=1M status=none 2>/dev/null || true")
        output, _ = process.communicate(timeout=240)
        assert process.returncode, output
        assert [host for host in NODES if re.search(rf"^{host} .* failed=0 ", output, re.MULTILINE)] == NODES[:2]
        assert not any(hub.trouble.values())
        # The seed downloads. The controller, by one of its own addresses, asks for the list of files and nothing else.
        assert set(hub.callers) & nodes == {bed.fleet.node("node1").address}
        assert re.search(r"\[node1\] org/model: downloading \d+ % of ", output), output
        assert "node3: org/model did not arrive: the disk got full; make room and run again" in output
        assert "RETRYING" not in output and CANARY not in output
        arrived = bed.staged("node3", SMALL)
        assert MB < arrived < total
        for name in ("node1", "node2"):
            base = f"{HF}/hub/models--org--model"
            assert int(bed.sh(name, f"ls {base}/snapshots/{COMMIT} | wc -l")) == len(files)
            assert bed.sh(name, f"find {base} -type l -lname '*/blobs/??/*'") == ""
        bed.nothing_is_left()

        # With room again the rest comes; for one node, rsync without a swarm, from the address for these things.
        # Interrupted, the copy goes on by itself, and the next run joins it.
        bed.sh("node3", "rm /mnt/small/other && apt-get install -qqy rsync >/dev/null")
        bed.sh("node1", "ip address add 198.18.0.1/32 dev lo")
        bed.sh("node3", f"ip route add 198.18.0.1 via {bed.fleet.node('node1').address}")
        source["hf_cache_swarm_address"] = "198.18.0.1"
        bed.fast()
        # Where there is something of a file, rsync needs little of these numbers; of one it needs all, for two minutes.
        bed.sh("node3", f"rm $(ls -S {SMALL}/hub/models--org--model/.vllm-fleet/{COMMIT}/* | head -1)")
        bed.slow("256kbit", "node1")
        begin = bed.received("node3")
        process = bed.start("org/model", **source)
        until(
            lambda: bed.sh(
                "node3",
                "pgrep -f '^rsync .* seed::blobs' >/dev/null && grep -h HostName.198.18.0.1 /tmp/hf_cache.*/config || true",
            ),
            90,
            process,
        )
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        job = f"/root/.cache/vllm-fleet/jobs/rsync-{COMMIT}"
        asked, copy = (bed.sh("node3", look) for look in (f"stat -c %y {job}/mutex", f"cat {job}/current.json"))
        process = bed.start("org/model", **source)
        until(lambda: bed.sh("node3", f"stat -c %y {job}/mutex") != asked, 90, process)
        bed.fast()
        output, _ = process.communicate(timeout=240)
        assert not process.returncode, output
        assert bed.sh("node3", f"cat {job}/current.json") == copy, output
        assert "Start the swarm's tracker" not in output
        assert bed.received("node3") - begin < total
        assert int(bed.sh("node3", f"ls {SMALL}/hub/models--org--model/snapshots/{COMMIT} | wc -l")) == len(files)
        assert set(hub.callers) & nodes == {bed.fleet.node("node1").address}

        # Told so, every node downloads by itself.
        hub.callers.clear()
        each = {**source, "hf_cache_distribution": "hub", "hf_cache_path": "/srv/each", "hf_cache_create": True}
        output = bed.run("org/model", **each)
        assert set(hub.callers) & nodes == nodes
        assert "Start the swarm's tracker" not in output
        for name in NODES:
            assert int(bed.sh(name, f"ls /srv/each/hub/models--org--model/snapshots/{COMMIT} | wc -l")) == len(files)
            assert bed.sh(name, f"grep -rlF {CANARY} /srv/each || true") == ""
            bed.sh(name, "rm -r /srv/each")
        assert not re.search(r"failed=[1-9]", output)
    for name in NODES:
        assert bed.sh(name, f"grep -rlF {CANARY} /home/ops /root /tmp /run/vllm-fleet /etc 2>/dev/null || true") == (
            f"{HF}/token" if name == "node1" else ""
        )
    bed.nothing_is_left()


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        hub.shutdown()
        thread.join()
        hub.server_close()
