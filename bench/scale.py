# SPDX-License-Identifier: Apache-2.0
"""What a deployment costs with many hosts: several stand-in servers on each of four test nodes, over SSH.

Each inventory host has a name and a port of its own and one of four real nodes behind it, so that the controller has
as much to do as with as many machines. For each number of hosts: the first deployment in one wave, nothing to change,
how all servers are, one flag of all servers changed, nothing to change with one node off.

    python bench/scale.py 4 16 64 200
    python bench/scale.py 200 --short
    python bench/scale.py 4 --ready-after 5

Prints a table, writes bench/results/scale.json and draws docs/images/scale.svg (``--picture``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "integration"), str(ROOT / "tests" / "fleet"), str(ROOT / "tests")]

MODEL = "acme/tiny"
NODES = ["bookworm", "bookworm", "trixie", "trixie"]
#: Seconds between two looks at the memory of the controller's processes.
SAMPLE = 0.25
FIRST_PORT = 18000
#: Seconds from the start of a stand-in's container until it is ready.
READY_AFTER = 1.0


class Watched:
    """A command whose wall time, processor time and memory are measured, of all processes that it starts.

    Processor time is user and system of the command and all its children that were waited for; the SSH masters that
    outlive it are not among them. Memory is the highest sum of PSS, in bytes: pages that processes share count once.
    """

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        """Run the command to its end."""
        self._peak, self._ended = 0, threading.Event()
        began = time.monotonic()
        log = tempfile.TemporaryFile()  # noqa: SIM115
        pid = os.posix_spawn(
            "/usr/bin/env",
            ["env", *command],
            environ,
            setsid=True,
            file_actions=[(os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)],
        )
        sampler = threading.Thread(target=self._sample, args=(pid,))
        sampler.start()
        try:
            _, status, usage = os.wait4(pid, 0)
        except BaseException:
            # It is in a session of its own, so that the terminal's Ctrl-C does not reach it.
            os.killpg(pid, signal.SIGTERM)
            raise
        finally:
            self._ended.set()
            sampler.join()
        self.wall = time.monotonic() - began
        self.cpu = usage.ru_utime + usage.ru_stime
        self.memory = self._peak
        self.code = os.waitstatus_to_exitcode(status)
        log.seek(0)
        self.output = log.read().decode(errors="replace")

    def _sample(self, root: int) -> None:
        while not self._ended.wait(SAMPLE):
            parents = {}
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            # Ansible's workers are in sessions of their own, but children all the same.
            family, grown = {root}, True
            while grown:
                more = {pid for pid, parent in parents.items() if parent in family} - family
                family, grown = family | more, bool(more)
            total = 0
            for pid in family:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    total += next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
            self._peak = max(self._peak, total * 1024)


class Bench:
    """A fleet of four nodes with as many servers as asked for, one inventory host each."""

    def __init__(
        self, folder: Path, fleet: Any, image: str, identity: str, seed: Any, *, ready_after: float = READY_AFTER
    ) -> None:
        """Take the running fleet, the image that its nodes have, and the cache on this machine with the model.

        A server is ready ``ready_after`` seconds after its container's start.
        """
        self.folder, self.fleet, self.seed, self.ready_after = folder, fleet, seed, ready_after
        self.image, self.identity = image, identity

    def inventory(self, hosts: int) -> Path:
        """Write an inventory with that many hosts over the four nodes."""
        given = yaml.safe_load((self.folder / "fleet" / "inventory.yml").read_text())
        nodes = list(given["all"]["children"]["vllm"]["hosts"].values())
        name, _, tag = self.image.partition(":")
        given["all"]["children"]["vllm"] = {
            "hosts": {
                f"host{number}": {
                    **nodes[number % len(nodes)],
                    "vllm_node": f"node{number % len(nodes)}",
                    "vllm_server_name": f"vllm-{number}",
                    "vllm_server_port": FIRST_PORT + number,
                }
                for number in range(hosts)
            },
            "vars": {
                "vllm_server_model": MODEL,
                "vllm_server_revision": self.seed.commit,
                "vllm_server_accelerator": "cpu",
                "vllm_server_args": {"max-model-len": 512},
                "vllm_server_env": {"STANDIN_START_SECONDS": str(self.ready_after)},
                "vllm_image_source": "archive",
                "vllm_image_archive": "/nowhere.tar",
                "vllm_image_expected_id": self.identity,
                "vllm_image_name": name,
                "vllm_image_tag": tag,
                "hf_cache_source": "controller",
                "hf_cache_controller_path": str(self.seed.cache),
                "hf_cache_path": "/var/lib/huggingface",
                "hf_cache_create": True,
                # Servers that share a machine would warm the same files at once.
                "hf_cache_prewarm": "off",
                "rollout_waves": ["100%"],
            },
        }
        path = self.folder / f"hosts-{hosts}.yml"
        path.write_text(yaml.safe_dump(given, sort_keys=False, width=1000))
        return path

    def deploy(self, hosts: int, **edit: Any) -> Watched:
        """Run deploy.yml as a user does."""
        command = [
            sys.executable,
            "-m",
            "ansible",
            "playbook",
            "-i",
            str(self.inventory(hosts)),
            str(ROOT / "deploy.yml"),
        ]
        if edit:
            command += ["-e", json.dumps(edit)]
        environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        # A user's Python keeps what it compiled.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        return Watched(command, environ)

    def health(self, hosts: int) -> Watched:
        """Ask how all servers are, as a user does."""
        return Watched([str(ROOT / "scripts/health"), "-i", str(self.inventory(hosts))], dict(os.environ))

    def prepare(self) -> None:
        """Deploy one server on each node and remove it: programs and weights are there afterwards."""
        done = self.deploy(len(NODES))
        if done.code:
            raise SystemExit(f"the nodes could not be prepared: code {done.code}\n{done.output[-8000:]}")
        self.empty()

    def empty(self) -> None:
        """Remove all servers and what is known of them from the nodes."""
        for node in self.fleet.nodes:
            self.fleet.exec(
                node.name, ["sh", "-c", "docker ps -aq | xargs -r docker rm -f; rm -rf /var/lib/vllm-fleet/*"]
            )

    def measure(self, hosts: int, *, short: bool = False) -> dict[str, dict[str, float]]:
        """Deploy, deploy again, edit, and deploy with a node off: seconds of wall and processor, bytes of memory.

        ``short`` is the first three alone.
        """
        rows: dict[str, dict[str, float]] = {}

        def keep(what: str, done: Watched, *, code: int = 0, changed: bool | None = None) -> None:
            recap = [line for line in done.output.splitlines() if "unreachable=" in line]
            wrong = changed is False and not all("changed=0 " in line for line in recap)
            if done.code != code or wrong:
                raise SystemExit(f"{what}, {hosts} hosts: code {done.code}, not as expected\n{done.output[-8000:]}")
            rows[what] = {"wall": done.wall, "cpu": done.cpu, "cpu_per_host": done.cpu / hosts, "memory": done.memory}
            print(
                f"{hosts:>4} hosts  {what:<22} {done.wall:7.1f} s  {done.cpu:7.1f} CPU-s  "
                f"{done.cpu / hosts:5.2f} per host  {done.memory / 1e6:5.0f} MB",
                flush=True,
            )

        keep("first deployment", self.deploy(hosts))
        keep("nothing to change", self.deploy(hosts), changed=False)
        keep("health", self.health(hosts))
        if short:
            self.empty()
            return rows
        keep("one flag changed", self.deploy(hosts, vllm_server_args={"max-model-len": 256}))
        self.fleet.off("node4")
        try:
            # Unreachable hosts end a deployment with Ansible's own code for them.
            keep("one node off", self.deploy(hosts, vllm_server_args={"max-model-len": 256}), code=4)
        finally:
            self.fleet.on("node4")
        self.empty()
        return rows


def run(sizes: list[int], ready_after: float = READY_AFTER, *, short: bool = False) -> dict[str, Any]:
    """Measure each number of hosts on one fleet."""
    import docker  # noqa: PLC0415
    import standin  # noqa: PLC0415
    from fake_hf_cache import FakeCache  # noqa: PLC0415
    from fleet import Fleet  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    fleet = Fleet(f"scale-{os.getpid()}")
    engine = docker.from_env()
    image = standin.build_image(engine)
    seed = FakeCache(folder / "seed", repo_id=MODEL)
    try:
        fleet.up(folder / "fleet", NODES)
        fleet.load([image])
        bench = Bench(folder, fleet, image, engine.images.get(image).id, seed, ready_after=ready_after)
        bench.prepare()
        return {str(hosts): bench.measure(hosts, short=short) for hosts in sizes}
    finally:
        fleet.down()
        shutil.rmtree(folder, ignore_errors=True)


def picture(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Draw wall seconds over the number of hosts, one line for each kind of run."""
    from svg import Series, line_chart  # noqa: PLC0415

    kinds = list(next(iter(results.values())))
    series = [
        Series(kind, [(float(n), rows[kind]["wall"]) for n, rows in results.items() if kind in rows]) for kind in kinds
    ]
    return line_chart(
        "What a deployment costs",
        "stand-in servers on four nodes; the controller and the nodes share 2 cores",
        "servers, each an inventory host",
        "seconds",
        series,
        log=True,
    )


def main() -> None:
    """Measure, show, keep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("hosts", nargs="*", type=int, default=[4, 16, 64, 200])
    parser.add_argument("--ready-after", type=float, default=READY_AFTER, metavar="SECONDS", help="of a server's start")
    parser.add_argument("--short", action="store_true", help="the first deployment and nothing to change, no more")
    parser.add_argument("--picture", action="store_true", help="draw docs/images/scale.svg")
    options = parser.parse_args()
    folder = ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    kept = folder / "scale.json"
    # With what was measured before, so that a curve need not be of one run. Measure all anew after a change.
    results = json.loads(kept.read_text()) if kept.exists() else {}
    results |= run(options.hosts, options.ready_after, short=options.short)
    results = dict(sorted(results.items(), key=lambda one: int(one[0])))
    kept.write_text(json.dumps(results, indent=2) + "\n")
    if options.picture:
        images = ROOT / "docs" / "images"
        images.mkdir(exist_ok=True)
        (images / "scale.svg").write_text(picture(results))


if __name__ == "__main__":
    main()
