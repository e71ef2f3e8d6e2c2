# SPDX-License-Identifier: Apache-2.0
"""How long until the last of N nodes has a verified copy, in copies: a swarm against rsync from one node.

Eight network namespaces with a bridge in one of their own, every link shaped alike in both directions; one node has a
synthetic snapshot, the others have nothing. The programs run with the command lines that the role hf_cache gives them,
and a node counts as done when hf_snapshot has hashed everything and written the snapshot. One copy is what rsync needs
for one node. Run as root; prints a table, writes results/distribution.json and the curve as results/distribution.svg.
Needs aria2, opentracker, mktorrent and rsync. It takes about four minutes.

The links have 50 Mbit/s because aria2 works by a clock of one second: it announces itself, connects and accepts (three
peers at a time) in a second each, and shows up to a second late that it has everything. These four seconds do not grow
with the snapshot. They are over half a copy of 84 MB at 100 Mbit/s, a quarter at 50 Mbit/s, nothing for a real model.
The processors are not the limit: at 100 Mbit/s on a quiet machine, its two were 60 to 75 % idle in the transfer, and
eight aria2c together used 5 s of processor time in a transfer of 15 s.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]

from fake_hf_cache import COMMIT, REPO, FakeCache, model_files  # noqa: E402
from svg import Series, line_chart  # noqa: E402

import plugin_utils  # noqa: E402, F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.weights import fetch, snapshot  # noqa: E402
from ansible.module_utils.vllm_fleet.weights import torrent as torrents  # noqa: E402
from ansible.module_utils.vllm_fleet.weights.layout import Repository  # noqa: E402

COUNTS = (2, 4, 8)
SHARDS, SHARD_FLOATS = 40, 1 << 19
RATE = "50mbit"
PORT, TRACKER_PORT = 6881, 6969
LIMIT = 300.0


class Net:
    """Namespaces `<prefix>0` to `<prefix>7` at 10.222.0.10 and up, on a bridge in `<prefix>sw`."""

    def __init__(self, count: int) -> None:
        """Make them."""
        self.prefix = f"vfd{os.getpid() % 10000}"
        self.names = [f"{self.prefix}-{number}" for number in range(count)]
        self.switch = f"{self.prefix}-sw"
        self.addresses = [f"10.222.0.{10 + number}" for number in range(count)]
        for name in (self.switch, *self.names):
            _ip("netns", "add", name)
        _ip("-n", self.switch, "link", "add", "sw0", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "sw0", "up")
        for number, name in enumerate(self.names):
            port = f"p{number}"
            _ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", self.switch, "link", "set", port, "master", "sw0", "up")
            _ip("-n", name, "addr", "add", f"{self.addresses[number]}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            for space, link in ((name, "eth0"), (self.switch, port)):
                shape = ["tc", "qdisc", "add", "dev", link, "root", "tbf", "rate", RATE, "burst", "64kb"]
                subprocess.run(["ip", "netns", "exec", space, *shape, "latency", "200ms"], check=True)

    def start(self, number: int, argv: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program on a node."""
        with log.open("wb") as output:
            command = ["ip", "netns", "exec", self.names[number], *argv]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    def close(self) -> None:
        """Remove them."""
        for name in (*self.names, self.switch):
            subprocess.run(["ip", "netns", "del", name], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def place(cache: Path, seed: FakeCache) -> None:
    """Make the staged blobs of a node a snapshot, hashed; the node counts as done afterwards."""
    manifest = fetch.export(snapshot.inspect(Repository(seed.cache, REPO), COMMIT))
    staging = cache / ".vllm-fleet" / "staging" / COMMIT
    repository = Repository(cache, REPO)
    request = fetch.Request(repository, COMMIT, source=str(staging), manifest=manifest, move=True, margin=0)
    result = fetch.Result(snapshot.Report(repository, COMMIT))
    fetch.present(request, result)
    if not result.report.complete:
        raise SystemExit(f"{cache} is not complete")


def all_at_once(count: int, receive: Callable[[int], None]) -> float:
    """Let nodes 1 to count - 1 receive; return the seconds until the last is done."""
    began, failures = time.monotonic(), []

    def run(number: int) -> None:
        try:
            receive(number)
        except BaseException as error:  # noqa: BLE001 - the main thread reports it
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"a node did not get it: {failures[0]}")
    return time.monotonic() - began


def by_rsync(net: Net, count: int, seed: FakeCache, folder: Path) -> float:
    """Copy from node 0 to all others at the same time, by an rsync daemon."""
    config = folder / "rsyncd.conf"
    config.write_text(f"use chroot = no\nuid = 0\ngid = 0\n[blobs]\npath = {seed.repo / 'blobs'}\nread only = yes\n")
    argv = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--address={net.addresses[0]}", "--port=8730"]
    daemon = net.start(0, argv, folder / "daemon.log")
    time.sleep(0.5)

    def receive(number: int) -> None:
        cache = folder / f"node{number}"
        staging = cache / ".vllm-fleet" / "staging" / COMMIT
        staging.mkdir(parents=True)
        source = f"rsync://{net.addresses[0]}:8730/blobs/"
        argv = ["rsync", "--times", "--dirs", "--copy-links", source, f"{staging}/"]
        if net.start(number, argv, folder / f"rsync{number}.log").wait(LIMIT):
            raise RuntimeError((folder / f"rsync{number}.log").read_text()[-300:])
        place(cache, seed)

    try:
        return all_at_once(count, receive)
    finally:
        daemon.terminate()
        daemon.wait()


def by_swarm(net: Net, count: int, seed: FakeCache, folder: Path) -> float:
    """Spread from node 0 in a swarm. The torrent is made beforehand, as the copy's hashes are: both read everything."""
    torrent, share = folder / "t.torrent", folder / "share" / COMMIT
    share.parent.mkdir()
    share.symlink_to(seed.repo / "blobs")
    announce = f"http://{net.addresses[0]}:{TRACKER_PORT}/announce"
    size = sum(map(len, seed.files.values()))
    argv = torrents.mktorrent_argv(COMMIT, announce, size, str(share), str(torrent))
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    parsed = torrents.read_torrent(torrent.read_bytes())
    (folder / "whitelist").write_text(parsed.info_hash + "\n")
    folder.chmod(0o755)
    running = []
    argv = torrents.tracker_argv(net.addresses[0], TRACKER_PORT, str(folder), "whitelist")
    running.append(net.start(0, argv, folder / "tracker.log"))
    argv = torrents.aria2_argv(str(torrent), str(share.parent), net.addresses[0], PORT, seed="made")
    running.append(net.start(0, argv, folder / "seed.log"))
    time.sleep(1.5)

    def receive(number: int) -> None:
        cache, log = folder / f"node{number}", folder / f"peer{number}.log"
        staging = cache / ".vllm-fleet" / "staging"
        staging.mkdir(parents=True)
        argv = torrents.aria2_argv(str(torrent), str(staging), net.addresses[number], PORT, seed="no")
        peer = net.start(number, argv, log)
        running.append(peer)
        deadline = time.monotonic() + LIMIT
        while not torrents.read_progress(log.read_text(), size).seeding:
            if peer.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text()[-300:])
            time.sleep(0.2)
        place(cache, seed)

    try:
        return all_at_once(count, receive)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def verification(folder: Path, shards: int = 163, runs: int = 5) -> float:
    """Return the seconds a quick verification of a large snapshot takes (the best of some): sparse files of 4.3 GB."""
    cache = FakeCache(folder / "large", model_files(shards, 16))
    listing = json.loads(cache.tree.read_text())
    for path, entry in listing["files"].items():
        if path.endswith(".safetensors"):
            os.truncate(cache.blob(path), 4_300_000_000)
            entry["size"] = entry["lfs_size"] = 4_300_000_000
    cache.tree.write_text(json.dumps(listing))
    times = []
    for _ in range(runs):
        began = time.monotonic()
        report = snapshot.inspect(Repository(cache.cache, REPO), COMMIT)
        times.append(time.monotonic() - began)
        if not report.complete:
            raise SystemExit(report.sentence())
    return min(times)


def run(counts: tuple[int, ...] = COUNTS) -> dict[str, Any]:
    """Measure all; gives seconds, and multiples of one copy, by way and number of nodes."""
    if os.geteuid() != 0:
        raise SystemExit("Network namespaces need root.")
    if absent := [name for name in ("aria2c", "opentracker", "mktorrent", "rsync", "tc") if not shutil.which(name)]:
        raise SystemExit(f"Install {', '.join(absent)} first.")
    seconds: dict[str, dict[int, float]] = {"swarm": {}, "rsync": {}}
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as base:
        Path(base).chmod(0o755)
        seed = FakeCache(Path(base) / "seed", model_files(SHARDS, SHARD_FLOATS))
        quick = verification(Path(base))
        net = Net(max(counts))
        try:
            for way, function in (("rsync", by_rsync), ("swarm", by_swarm)):
                for count in counts:
                    folder = Path(base) / f"{way}{count}"
                    folder.mkdir()
                    seconds[way][count] = round(function(net, count, seed, folder), 2)
                    shutil.rmtree(folder)
        finally:
            net.close()
    one = seconds["rsync"][min(counts)]
    copies = {way: {count: round(value / one, 2) for count, value in found.items()} for way, found in seconds.items()}
    bytes_ = sum(map(len, seed.files.values()))
    return {
        "bytes": bytes_,
        "files": len(seed.files),
        "link": RATE,
        "seconds": seconds,
        "copies": copies,
        "quick_verification_163_shards_seconds": round(quick, 4),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nodes", default=",".join(map(str, COUNTS)), help="numbers of nodes, the first for one copy")
    counts = tuple(int(word) for word in parser.parse_args(arguments).nodes.split(","))
    found = run(counts)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "distribution.json").write_text(json.dumps(found, indent=2) + "\n")
    series = [
        Series("rsync from one node", [(count, found["copies"]["rsync"][count]) for count in counts]),
        Series("swarm", [(count, found["copies"]["swarm"][count]) for count in counts]),
    ]
    picture = line_chart(
        "Time until the last node has a verified copy",
        f"{found['bytes'] / 1e6:.0f} MB in {found['files']} files, links of {RATE}; 1 = one copy to one node",
        "nodes, one of which has it at the start",
        "copies",
        series,
    )
    (RESULTS / "distribution.svg").write_text(picture)
    print("nodes   rsync            swarm")
    for count in counts:
        cells = [
            f"{found['seconds'][way][count]:6.1f} s {found['copies'][way][count]:5.2f} x" for way in ("rsync", "swarm")
        ]
        print(f"{count:5}   " + "  ".join(cells))
    print(f"quick verification of 163 shards: {found['quick_verification_163_shards_seconds'] * 1000:.1f} ms")
    print(f"picture: {RESULTS / 'distribution.svg'}")


if __name__ == "__main__":
    main()
