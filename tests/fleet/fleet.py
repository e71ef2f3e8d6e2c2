#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A real fleet on one machine: nodes with systemd, sshd and an engine of their own, reached by Ansible over SSH.

A node is a container of the local Docker engine. The tool keeps no state: everything it makes carries the label
``io.vllm-fleet.testbed=<fleet>``, is found by it and removed by it.

    fleet.py up --name demo --nodes 2xbookworm,2xtrixie --gateway bookworm --dir /tmp/demo
    ansible -i /tmp/demo/inventory.yml all -m ansible.builtin.ping
    fleet.py down
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import owner
import yaml
from addresses import ADDRESS_BLOCK, beside, free_blocks, uplink_mtu
from cut import Cut, cut_script
from inside import inside
from node_image import SUITES, VARIANTS, FleetError, cache_directory, docker, ensure_image, run, tar_of

LABEL = "io.vllm-fleet.testbed"
LABEL_NODE = "io.vllm-fleet.testbed.node"
LABEL_GROUP = "io.vllm-fleet.testbed.group"
LABEL_SUITE = "io.vllm-fleet.testbed.suite"
LABEL_DIRECTORY = "io.vllm-fleet.testbed.directory"
LABEL_OWNER = "io.vllm-fleet.testbed.owner"
# Of volumes that nodes mount and that a fleet's maker filled.
LABEL_FILES = "io.vllm-fleet.testbed.files"

USER = "ops"
# Seconds from power-on to "running" and an answering sshd; about 3 here for one node, 10 for five at once.
BOOT_DEADLINE = 120.0
# Written by `up` into its directory, removed by `down`.
FILES = ("inventory.yml", "ssh_config", "known_hosts", "id_ed25519", "id_ed25519.pub")
# Linux capabilities by number, as Docker spells them. 38 to 40 (PERFMON, BPF, CHECKPOINT_RESTORE) are left out:
# Docker 20.10 refuses a container that names them.
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"),
)

Say = Callable[[str], None]


def say_now(line: str) -> None:
    """Print a progress line at once, also into a pipe."""
    print(line, flush=True)


def capabilities(bounding_set: int) -> list[str]:
    """Names of the capabilities in a bounding set (CapBnd of /proc/<pid>/status) that Docker 20.10 knows."""
    return [name for number, name in enumerate(CAPABILITIES) if bounding_set >> number & 1]


def machine_capabilities() -> list[str]:
    """Capabilities a node can get: ``--privileged`` asks for all of them and fails where the machine lacks one."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if not match:
        raise FleetError("/proc/self/status has no CapBnd line: this is not a Linux machine that can hold nodes.")
    return capabilities(int(match[1], 16))


def parse_nodes(text: str) -> list[str]:
    """``2xbookworm,trixie`` -> one suite per node, in order."""
    suites: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:(\d+)x)?([a-z]+)", part.strip())
        if not match or match[2] not in SUITES or not 1 <= int(match[1] or 1) <= 64:
            raise FleetError(
                f"--nodes: cannot read {part.strip()!r}; expected [COUNTx]SUITE with a suite of {', '.join(SUITES)}, "
                "such as 2xbookworm,2xtrixie."
            )
        suites += [match[2]] * int(match[1] or 1)
    return suites


@dataclass(frozen=True)
class Node:
    """One machine of a fleet."""

    name: str
    container: str
    group: str
    suite: str
    address: str

    @property
    def state(self) -> str:
        """Docker's word for the container: running, exited, ..."""
        return docker("inspect", "--format", "{{.State.Status}}", self.container)


def greeted(address: str) -> bool:
    """Whether an SSH server greets at this address."""
    try:
        with socket.create_connection((address, 22), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def inotify_lack(said: str) -> str:
    """Return what to do where ``said``, the words of a node that did not boot, is that inotify is used up; empty otherwise."""
    if not re.search(r"inotify.*Too many open files", said):
        return ""
    limit = Path("/proc/sys/fs/inotify/max_user_instances").read_text(encoding="ascii").strip()
    return f"fs.inotify.max_user_instances ({limit}) is used up: raise it (sysctl), or remove other fleets."


def inotify_left(wanted: int = 8) -> str:
    """Ask the kernel for what a booting systemd takes; return its words where it refuses, as `inotify_lack` reads them."""
    libc = ctypes.CDLL(None, use_errno=True)
    opened: list[int] = []
    try:
        for _ in range(wanted):
            if (one := libc.inotify_init()) < 0:
                return f"inotify: {os.strerror(ctypes.get_errno())}"
            opened.append(one)
    finally:
        for one in opened:
            os.close(one)
    return ""


class Fleet:
    """A fleet by name. ``up`` makes it; every other method finds it by its label."""

    def __init__(self, name: str, say: Say = say_now) -> None:
        """Take the name, which prefixes every Docker object, and where progress lines go."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
            raise FleetError(
                f"Fleet name {name!r}: expected up to 31 of a-z, 0-9 and '-', starting with a letter or digit."
            )
        self.name, self.say = name, say

    # -- what is there

    @property
    def _filter(self) -> tuple[str, str]:
        return ("--filter", f"label={LABEL}={self.name}")

    @property
    def nodes(self) -> list[Node]:
        """All nodes of the fleet, powered or not, in the order of their names."""
        ids = docker("ps", "-aq", *self._filter).split()
        found = []
        for data in json.loads(docker("inspect", *ids)) if ids else []:
            labels, networks = data["Config"]["Labels"], data["NetworkSettings"]["Networks"]
            given = networks.get(self.name, {}).get("IPAMConfig") or {}
            address = given.get("IPv6Address") or given.get("IPv4Address", "")
            container = data["Name"].lstrip("/")
            found.append(Node(labels[LABEL_NODE], container, labels[LABEL_GROUP], labels[LABEL_SUITE], address))
        return sorted(found, key=lambda node: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", node.name)])

    def node(self, name: str) -> Node:
        """The node with this name, short (``node1``) or as the container is called (``demo-node1``)."""
        nodes = self.nodes
        for node in nodes:
            if name in (node.name, node.container):
                return node
        names = ", ".join(node.name for node in nodes) or "none"
        raise FleetError(f"Fleet {self.name} has no node {name!r}; its nodes: {names}.")

    def leftovers(self) -> list[str]:
        """Docker objects that carry the fleet's label; empty after ``down``."""
        found = [f"container {name}" for name in docker("ps", "-aq", *self._filter).split()]
        found += [f"network {name}" for name in docker("network", "ls", "-q", *self._filter).split()]
        return found + [f"volume {name}" for name in docker("volume", "ls", "-q", *self._filter).split()]

    @property
    def directory(self) -> Path | None:
        """Where ``up`` wrote the inventory; None without a fleet."""
        ids = docker("network", "ls", "-q", *self._filter).split()
        if not ids:
            return None
        template = f'{{{{index .Labels "{LABEL_DIRECTORY}"}}}}'
        return Path(docker("network", "inspect", "--format", template, ids[0]))

    # -- life and death

    def up(
        self,
        directory: Path,
        suites: Sequence[str],
        *,
        gateways: Sequence[str] = (),
        variant: str = "engine",
        gpus: int = 1,
        mounts: Sequence[str] = (),
        ipv6: bool = False,
        keep_on_failure: bool = False,
        lasting: bool = False,
    ) -> list[Node]:
        """Boot one node per suite, plus gateways (always bare), and write what Ansible needs into ``directory``.

        ``gpus`` is the number of stand-in GPU device files per node, ``mounts`` are more mounts of group vllm's nodes,
        as docker's --volume takes them. With ``ipv6`` Ansible reaches the nodes by IPv6; they have IPv4 as well until
        `drop_ipv4`, so that they can install packages where the archive has no IPv6. Returns when systemd has finished booting and
        sshd lets the user in on every node. A fleet that does not come up is removed again, unless asked to keep it.
        Unless it is ``lasting``, a fleet is this process's: when that is gone, the next `up` of any fleet removes it.
        """
        remove_orphans(self.say)
        if self.leftovers():
            raise FleetError(f"Fleet {self.name} is there already; `fleet.py down --name {self.name}` removes it.")
        images = {suite: ensure_image(suite, variant, say=self.say) for suite in dict.fromkeys(suites)}
        gateway_images = {suite: ensure_image(suite, "bare", say=self.say) for suite in dict.fromkeys(gateways)}
        directory = directory.resolve()
        directory.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        try:
            subnet = self._create_network(directory, "" if lasting else owner.of(), ipv6=ipv6)
            addresses = (str(address) for address in itertools.islice(subnet.hosts(), 9, None))
            plan = [(f"node{n}", "vllm", suite, images[suite], gpus) for n, suite in enumerate(suites, 1)]
            plan += [(f"gateway{n}", "gateway", suite, gateway_images[suite], 0) for n, suite in enumerate(gateways, 1)]
            public = self._create_keys(directory)
            known_hosts = []
            for name, group, suite, image, devices in plan:
                address = next(addresses)
                self._create_node(
                    Node(name, f"{self.name}-{name}", group, suite, address),
                    image,
                    devices,
                    mounts if group == "vllm" else (),
                )
                known_hosts.append(f"{address} {self._give_keys(f'{self.name}-{name}', public)}")
            (directory / "known_hosts").write_text("\n".join(known_hosts) + "\n", encoding="utf-8")
            nodes = self.nodes
            self._write_files(directory, nodes)
            docker("start", *(node.container for node in nodes))
            deadline = time.monotonic() + BOOT_DEADLINE
            for node in nodes:
                self._await_boot(node, deadline)
                run(["ssh", "-F", str(directory / "ssh_config"), node.name, "sudo", "-n", "true"], timeout=30)
                self.say(f"{node.name}: {node.suite} at {node.address}, up after {time.monotonic() - start:.1f} s")
        except BaseException:
            if not keep_on_failure:
                self.down()
            raise
        return nodes

    def down(self) -> None:
        """Remove every container, network and volume of this fleet and the files of ``up``; fine if there are none."""
        directory = self.directory
        self._close_connections()
        for kind, listing, removal in (
            ("container", ("ps", "-aq", *self._filter), ("rm", "--force", "--volumes")),
            ("volume", ("volume", "ls", "-q", *self._filter), ("volume", "rm")),
            ("volume", ("volume", "ls", "-q", "--filter", f"label={LABEL_FILES}={self.name}"), ("volume", "rm")),
            ("network", ("network", "ls", "-q", *self._filter), ("network", "rm")),
        ):
            if ids := docker(*listing).split():
                docker(*removal, *ids)
                self.say(f"{self.name}: removed {len(ids)} {kind}{'s' * (len(ids) > 1)}")
        if directory and directory.is_dir():
            for name in FILES:
                (directory / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the caller keeps files of its own there
                directory.rmdir()

    def off(self, node_name: str, *, clean: bool = False) -> None:
        """Cut a node's power, or shut it down in order with ``clean``. Its disk stays."""
        container = self.node(node_name).container
        docker("stop", "--time", "60", container) if clean else docker("kill", container)

    def on(self, node_name: str) -> None:
        """Power a node on and wait until it has booted."""
        node = self.node(node_name)
        docker("start", node.container)
        self._await_boot(node, time.monotonic() + BOOT_DEADLINE)

    def drop_ipv4(self) -> None:
        """Leave the nodes the loopback's IPv4 and their IPv6 alone; a power cycle brings the rest back."""
        for node in self.nodes:
            self.exec(node.name, ["ip", "-4", "address", "flush", "dev", "eth0"])

    # -- use

    def exec(
        self, node_name: str, command: Sequence[str], *, check: bool = True, timeout: float | None = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root on a node, past SSH; output as text. A failure is an error unless ``check`` is off."""
        # Not by asking Docker for the nodes first: a wait that looks five times a second would keep a core busy.
        container = f"{self.name}-{node_name.removeprefix(f'{self.name}-')}"
        try:
            return run(inside(container, *command), check=check, timeout=timeout)
        except FleetError:
            self.node(node_name)  # says which nodes there are
            raise

    @contextlib.contextmanager
    def password_sudo(self, password: str, node_names: Sequence[str] = ()) -> Iterator[None]:
        """Have sudo want a password of the connecting user meanwhile, as servers do; on all nodes or those named."""
        rule = f"/etc/sudoers.d/{USER}"
        nodes = node_names or [node.name for node in self.nodes]
        for name in nodes:
            account = shlex.quote(f"{USER}:{password}")
            self.exec(name, ["bash", "-ec", f"chpasswd <<<{account}; sed -i 's/NOPASSWD: //' {rule}"])
        try:
            yield
        finally:
            for name in nodes:
                self.exec(
                    name, ["bash", "-ec", f"echo '{USER} ALL=(ALL) NOPASSWD: ALL' >{rule}; usermod -p '*' {USER}"]
                )

    def load(self, images: Sequence[str], node_names: Sequence[str] = ()) -> None:
        """Copy images of the local engine into the nodes' engines (all of group vllm, or those named), one at a time.

        A node that has the same image id under the same name is passed over.
        """
        nodes = [self.node(name) for name in node_names] or [node for node in self.nodes if node.group == "vllm"]
        for image in images:
            wanted = json.loads(docker("image", "inspect", image))[0]
            megabytes = wanted["Size"] / 1e6
            missing = []
            for node in nodes:
                ask = inside(node.container, "docker", "image", "inspect", "--format", "{{.Id}}", image)
                if run(ask, check=False).stdout.strip() == wanted["Id"]:
                    self.say(f"{node.name}: has {image}")
                else:
                    missing.append(node)
            if not missing:
                continue
            # Saving takes half as long as loading: once for all nodes.
            with tempfile.NamedTemporaryFile(dir=cache_directory(), prefix="load-", suffix=".tar") as archive:
                docker("save", "--output", archive.name, image, timeout=None)
                for node in missing:
                    start = time.monotonic()
                    with Path(archive.name).open("rb") as content:
                        loader = inside(node.container, "docker", "load", "--quiet", stdin=True)
                        done = subprocess.run(loader, stdin=content, capture_output=True, text=True, check=False)
                    if done.returncode:
                        raise FleetError(f"{node.name}: could not load {image}: {done.stderr.strip()}")
                    seconds = time.monotonic() - start
                    self.say(f"{node.name}: loaded {image}, {megabytes:.0f} MB, in {seconds:.1f} s")

    def cut(self, node_name: str, seconds: float) -> Cut:
        """Drop every SSH packet from and to a node for some seconds. Returns as soon as the cut is in force.

        The rule and its timer live in the node, so the link is mended even if the caller dies, and a power cycle
        leaves nothing behind on this machine.
        """
        node = self.node(node_name)
        rule = f"cut-{os.getpid()}-{time.monotonic_ns()}"
        process = subprocess.Popen(
            inside(node.container, "bash", "-c", cut_script(rule, seconds)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout and process.stderr
        if process.stdout.readline().strip() != "cut":
            raise FleetError(f"{node.name}: could not cut SSH: {process.stderr.read().strip()}")
        process.stderr.close()
        return Cut(node.container, process, rule)

    # -- parts of up

    def _create_network(self, directory: Path, mine: str, *, ipv6: bool) -> IPv4Network | IPv6Network:
        """Create the fleet's network on the first free /24; another fleet may take one at the same moment.

        Returns what the nodes' addresses are of. Docker gives each network IPv4, so one with IPv6 has both.
        """
        options = ["--label", f"{LABEL}={self.name}", "--label", f"{LABEL_DIRECTORY}={directory}"]
        options += ["--label", f"{LABEL_OWNER}={mine}"]
        options += ["--opt", f"com.docker.network.driver.mtu={min(1500, uplink_mtu())}"]
        for block in free_blocks(self.name):
            more = ["--ipv6", "--subnet", str(beside(block))] if ipv6 else []
            made = run(["docker", "network", "create", "--subnet", str(block), *more, *options, self.name], check=False)
            if made.returncode == 0:
                return beside(block) if ipv6 else block
            if "overlap" not in made.stderr:
                raise FleetError(f"Docker cannot create the network {self.name}: {made.stderr.strip()}")
        raise FleetError(f"No free /24 is left in {ADDRESS_BLOCK}.")

    @staticmethod
    def _create_keys(directory: Path) -> str:
        """Create the fleet's SSH key pair and return the public key."""
        key = directory / "id_ed25519"
        for old in (key, key.with_suffix(".pub")):
            old.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vllm-fleet-testbed", "-f", str(key)])
        return key.with_suffix(".pub").read_text(encoding="ascii")

    def _create_node(self, node: Node, image: str, gpus: int, mounts: Sequence[str] = ()) -> None:
        volume = f"{node.container}-docker"
        docker("volume", "create", "--label", f"{LABEL}={self.name}", volume)
        arguments = ["create", "--name", node.container, "--hostname", node.name]
        arguments += ["--network", self.name, "--network-alias", node.name]
        arguments += ["--ip6" if ":" in node.address else "--ip", node.address]
        for label, value in (
            (LABEL, self.name),
            (LABEL_NODE, node.name),
            (LABEL_GROUP, node.group),
            (LABEL_SUITE, node.suite),
        ):
            arguments += ["--label", f"{label}={value}"]
        for capability in machine_capabilities():
            arguments += ["--cap-add", capability]
        for option in ("seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"):
            arguments += ["--security-opt", option]
        # A private cgroup namespace: with the machine's tree mounted instead, a node's systemd remounts and adds to it.
        arguments += ["--device-cgroup-rule", "a *:* rwm", "--cgroupns", "private"]
        arguments += ["--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec", "--shm-size", "1g"]
        arguments += ["--env", "container=docker", "--env", f"NODE_GPUS={gpus}", "--stop-signal", "SIGRTMIN+3"]
        for mount in mounts:
            arguments += ["--volume", mount]
        # overlay2 does not stack on overlay2: the nested engine's storage is a volume.
        docker(*arguments, "--volume", f"{volume}:/var/lib/docker", image)

    @staticmethod
    def _give_keys(container: str, public: str) -> str:
        """Put a new host key and the fleet's public key into an unbooted node; return the host's public key."""
        with tempfile.TemporaryDirectory() as folder:
            key = Path(folder) / "host"
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", container, "-f", str(key)])
            private, host = key.read_text(encoding="ascii"), key.with_suffix(".pub").read_text(encoding="ascii")
        files = {
            "/etc/ssh/ssh_host_ed25519_key": (private, 0o600, 0),
            "/etc/ssh/ssh_host_ed25519_key.pub": (host, 0o644, 0),
            "/root/.ssh/authorized_keys": (public, 0o600, 0),
            f"/home/{USER}/.ssh/authorized_keys": (public, 0o600, 1000),
        }
        docker("cp", "-", f"{container}:/", stdin=tar_of(files))
        return host.strip()

    def _await_boot(self, node: Node, deadline: float) -> None:
        """Wait until systemd has finished booting and sshd answers, or fail with what a person needs to see.

        systemd says itself when it is done (``--wait``); asking is repeated only until it can be asked at all.
        """
        state = ""
        while (left := deadline - time.monotonic()) > 0:
            ask = inside(node.container, "systemctl", "is-system-running", "--wait")
            state = run(["timeout", f"{left:.1f}", *ask], check=False).stdout.strip()
            if state == "running" and greeted(node.address):
                return
            if state in ("degraded", "maintenance") or node.state != "running":
                break
            time.sleep(0.1)
        failed = run(["docker", "exec", node.container, "systemctl", "--failed", "--no-pager"], check=False).stdout
        journal = run(
            ["docker", "exec", node.container, "journalctl", "-p", "err", "-n", "20", "--no-pager"], check=False
        )
        logs = run(["docker", "logs", node.container], check=False)
        said = f"{failed}{journal.stdout}{logs.stderr}"
        # A systemd that gets no inotify object at its start may end without a word.
        if lack := inotify_lack(f"{said}{logs.stdout}") or inotify_lack(inotify_left()):
            raise FleetError(f"{node.name} ({node.suite}) did not boot: {lack}")
        raise FleetError(
            f"{node.name} ({node.suite}) did not boot: container {node.state}, systemd {state or 'silent'}; expected "
            f"running.\n{said}"
        )

    # -- what Ansible and people need

    @property
    def _control_prefix(self) -> str:
        """Start of the fleet's SSH control sockets, new with every `up`.

        A master connection that an earlier fleet left at the same address would be taken for this one's otherwise.
        """
        network = docker("network", "ls", "-q", *self._filter)
        return f"vf-{network[:12] or 'none'}-"

    def _write_files(self, directory: Path, nodes: Sequence[Node]) -> None:
        ssh = {
            "UserKnownHostsFile": f'"{directory}/known_hosts"',
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
        }
        groups: dict[str, dict[str, dict[str, dict[str, str]]]] = {"vllm": {"hosts": {}}, "gateway": {"hosts": {}}}
        for node in nodes:
            groups[node.group]["hosts"][node.name] = {"ansible_host": node.address, "testbed_suite": node.suite}
        key = str(directory / "id_ed25519")
        inventory = {
            "all": {
                "vars": {
                    "ansible_user": USER,
                    "ansible_ssh_private_key_file": key,
                    "ansible_ssh_common_args": " ".join(f"-o {shlex.quote(f'{k}={v}')}" for k, v in ssh.items()),
                    "ansible_control_path": f"%(directory)s/{self._control_prefix}%%C",
                    "ansible_python_interpreter": "/usr/bin/python3",
                },
                "children": groups,
            }
        }
        text = yaml.safe_dump(inventory, sort_keys=False, width=1000)
        (directory / "inventory.yml").write_text(f"---\n{text}", encoding="utf-8")
        lines = []
        for node in nodes:
            lines += [f"Host {node.name} {node.container}", f"  HostName {node.address}"]
        lines += ["Host *", f"  User {USER}", f'  IdentityFile "{key}"']
        lines += [f"  {option} {value}" for option, value in ssh.items()]
        (directory / "ssh_config").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _close_connections(self) -> None:
        """End the SSH masters that Ansible keeps open to this fleet."""
        for control in Path("~/.ansible/cp").expanduser().glob(f"{self._control_prefix}*"):
            run(["ssh", "-o", f"ControlPath={control}", "-O", "exit", "any"], check=False)
            control.unlink(missing_ok=True)


def fleets() -> list[str]:
    """Names of all fleets on this machine's engine."""
    template = f'{{{{.Label "{LABEL}"}}}}'
    names = docker("ps", "-a", "--filter", f"label={LABEL}", "--format", template).splitlines()
    names += docker("network", "ls", "--filter", f"label={LABEL}", "--format", template).splitlines()
    names += docker("volume", "ls", "--filter", f"label={LABEL}", "--format", template).splitlines()
    return sorted(set(names))


def remove_orphans(say: Say = say_now) -> None:
    """Remove the fleets whose process was killed: their nodes come back with every start of the engine."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    template = f'{{{{.Label "{LABEL}"}}}} {{{{.Label "{LABEL_OWNER}"}}}}'
    with (directory / "orphans.lock").open("a") as lock:  # two runs would remove the same
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The network is made first and removed last: a fleet that was left half-way has it.
        for line in docker("network", "ls", "--filter", f"label={LABEL_OWNER}", "--format", template).splitlines():
            name, _, whose = line.partition(" ")
            if owner.is_gone(whose):
                say(f"{name}: its process is gone")
                Fleet(name, say).down()


def chosen(name: str | None) -> Fleet:
    """The fleet asked for, by name or because it is the only one."""
    there = fleets()
    if name in there or (not name and len(there) == 1):
        return Fleet(name or there[0])
    missing = f"There is no fleet {name}" if name else "Which fleet? Give --name"
    raise FleetError(f"{missing}; there are: {', '.join(there) or 'none, `fleet.py up` makes one'}.")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description="A fleet of test nodes as containers of the local Docker engine.")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument(
        "--name", default=os.environ.get("VLLM_FLEET_NAME"), help="the fleet; not needed if there is one"
    )
    verbs = top.add_subparsers(dest="verb", required=True)

    image = verbs.add_parser("image", help="build or import a node image")
    image.add_argument("suite", choices=SUITES)
    image.add_argument(
        "--variant", choices=VARIANTS, default="engine", help="bare: no Docker; engine: Docker installed"
    )
    image.add_argument("--rebuild", action="store_true", help="build anew although the inputs have not changed")

    up = verbs.add_parser("up", parents=[named], help="boot a fleet")
    up.add_argument("--nodes", required=True, metavar="2xbookworm,2xtrixie", help="nodes of group vllm")
    up.add_argument("--gateway", default="", metavar="bookworm", help="nodes of group gateway, always bare")
    up.add_argument("--variant", choices=VARIANTS, default="engine")
    up.add_argument("--gpus", type=int, default=1, help="stand-in GPU device files per node (1)")
    up.add_argument("--dir", type=Path, required=True, help="where inventory, keys and ssh_config go")
    up.add_argument("--keep-on-failure", action="store_true", help="leave a fleet that does not come up, to look at it")

    load = verbs.add_parser("load", parents=[named], help="copy local images into the nodes' engines")
    load.add_argument("image", nargs="+")
    load.add_argument("--node", action="append", default=[], help="only this node; may be repeated")

    execute = verbs.add_parser("exec", parents=[named], help="run a command as root on a node: exec NODE -- COMMAND")
    execute.add_argument("node")
    execute.add_argument("command", nargs=argparse.REMAINDER)

    cut = verbs.add_parser("cut", parents=[named], help="drop a node's SSH packets for some seconds")
    cut.add_argument("node")
    cut.add_argument("seconds", type=float)
    cut.add_argument("--no-wait", action="store_true", help="return when the cut is in force; it ends by itself")

    off = verbs.add_parser("off", parents=[named], help="cut a node's power")
    off.add_argument("node")
    off.add_argument("--clean", action="store_true", help="shut down in order instead")
    verbs.add_parser("on", parents=[named], help="power a node on").add_argument("node")

    verbs.add_parser("list", help="show fleets and nodes")
    down = verbs.add_parser("down", parents=[named], help="remove a fleet with everything it made")
    down.add_argument("--all", action="store_true", help="remove every fleet")
    return top


def execute(options: argparse.Namespace) -> None:
    """Run a command with this process's terminal and end with its exit code."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise FleetError("exec: which command? fleet.py exec NODE -- COMMAND")
    terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
    container = chosen(options.name).node(options.node).container
    os.execvp("docker", ["docker", "exec", "-i", *terminal, container, *command])  # noqa: S606 - no shell wanted


def down(options: argparse.Namespace) -> None:
    """Remove the fleet asked for; a fleet that is not there is no error."""
    there = fleets()
    doomed = there if options.all or not there else [options.name or chosen(None).name]
    for name in doomed:
        Fleet(name).down()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb."""
    options = parser().parse_args(arguments)
    match options.verb:
        case "image":
            say_now(ensure_image(options.suite, options.variant, rebuild=options.rebuild, say=say_now))
        case "up":
            gateways = parse_nodes(options.gateway) if options.gateway else []
            Fleet(options.name or "testbed").up(
                options.dir,
                parse_nodes(options.nodes),
                gateways=gateways,
                variant=options.variant,
                gpus=options.gpus,
                keep_on_failure=options.keep_on_failure,
                lasting=True,
            )
            say_now(f"ansible -i {options.dir / 'inventory.yml'} all -m ansible.builtin.ping")
        case "load":
            chosen(options.name).load(options.image, options.node)
        case "exec":
            execute(options)
        case "cut":
            cut = chosen(options.name).cut(options.node, options.seconds)
            if not options.no_wait:
                cut.wait()
        case "off":
            chosen(options.name).off(options.node, clean=options.clean)
        case "on":
            chosen(options.name).on(options.node)
        case "list":
            for name in fleets():
                for node in Fleet(name).nodes:
                    say_now(f"{name}  {node.name}  {node.group}  {node.suite}  {node.address}  {node.state}")
        case "down":
            down(options)


if __name__ == "__main__":
    try:
        main()
    except FleetError as error:
        sys.exit(f"fleet.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
