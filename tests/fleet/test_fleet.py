# SPDX-License-Identifier: Apache-2.0
"""The test-bed itself: what the other scenarios stand on has to hold first."""

import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import owner
import pytest
from cut import cut_script
from fleet import Fleet, capabilities, fleets, inotify_lack, inotify_left, parse_nodes, remove_orphans
from node_image import FleetError, docker, tar_of

ROOT = Path(__file__).resolve().parents[2]
TINY = "vllm-fleet-testbed-tiny:1"


@pytest.mark.parametrize(
    ("text", "suites"),
    [
        ("bookworm", ["bookworm"]),
        ("2xbookworm,1xtrixie", ["bookworm", "bookworm", "trixie"]),
        ("trixie, 2xbookworm", ["trixie", "bookworm", "bookworm"]),
    ],
)
def test_nodes_are_read(text: str, suites: list[str]) -> None:
    assert parse_nodes(text) == suites


@pytest.mark.parametrize("text", ["", "jammy", "0xtrixie", "65xtrixie", "2x", "trixie;bookworm", "2xbookworm,"])
def test_unreadable_nodes_are_named(text: str) -> None:
    with pytest.raises(FleetError, match=r"cannot read .* such as 2xbookworm,2xtrixie"):
        parse_nodes(text)


@pytest.mark.parametrize("name", ["", "Demo", "a b", "-x", "x" * 32, "x_y"])
def test_unusable_fleet_name_is_refused(name: str) -> None:
    with pytest.raises(FleetError, match="expected up to 31"):
        Fleet(name)


@pytest.mark.parametrize(
    ("bounding_set", "count", "absent"),
    [
        (0x1FFFFFFFFFF, 38, set()),  # a whole kernel 5.9 or newer: three names that Docker 20.10 does not know stay out
        (0x1FFFEFFFFFF, 37, {"SYS_RESOURCE"}),
        (0xA80425FB, 14, {"SYS_ADMIN", "NET_ADMIN"}),  # Docker's default
    ],
)
def test_capabilities_follow_the_bounding_set(bounding_set: int, count: int, absent: set[str]) -> None:
    names = capabilities(bounding_set)
    assert len(names) == count
    assert not absent & set(names)
    assert not {"BPF", "PERFMON", "CHECKPOINT_RESTORE"} & set(names)
    assert "SETFCAP" in names


def test_a_machine_without_inotify_objects_is_said_once() -> None:
    said = inotify_lack("Failed to create inotify object: Too many open files\n" * 20)
    limit = Path("/proc/sys/fs/inotify/max_user_instances").read_text().strip()
    assert said == f"fs.inotify.max_user_instances ({limit}) is used up: raise it (sysctl), or remove other fleets."
    assert inotify_lack("Failed to open /dev/kfd: Too many open files") == inotify_lack("") == ""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # as many as are open
    try:
        left = inotify_left()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert inotify_lack(left) == said


def test_cut_script_takes_back_what_it_adds() -> None:
    lines = cut_script("cut-1", 5).splitlines()
    added = [line.split(" -I ")[1] for line in lines if " -I " in line]
    assert len(added) == 2
    assert [line.split(" -D ")[1] for line in lines if " -D " in line] == added


@pytest.fixture(scope="module")
def tiny() -> Iterator[str]:
    """An image with `cat`, its libraries and nothing else."""
    program = shutil.which("cat") or "/bin/cat"
    libraries = re.findall(r"/\S+", subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout)
    archive = subprocess.run(
        ["tar", "--create", "--dereference", "--absolute-names", program, *libraries], check=True, capture_output=True
    ).stdout
    docker("import", "--change", f'CMD ["{program}", "/etc/hostname"]', "-", TINY, stdin=archive)
    yield TINY
    docker("image", "rm", "--force", TINY)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What the fleet said."""
    return []


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> Iterator[Fleet]:
    """One Debian 12 and one Debian 13 node with engines."""
    fleet = Fleet(f"selftest-{os.getpid()}", lines.append)
    # A space in the path: the files written there must hold.
    fleet.up(tmp_path_factory.mktemp("the fleet"), ["bookworm", "trixie"])
    yield fleet
    fleet.down()


def ansible(fleet: Fleet, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [Path(sys.executable).with_name("ansible"), "-i", f"{fleet.directory}/inventory.yml", "-o", "all", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def ssh(fleet: Fleet, node: str, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["ssh", "-F", f"{fleet.directory}/ssh_config", "-o", "ConnectTimeout=1", "-o", "BatchMode=yes", node, *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.engine
def test_ansible_reaches_every_node_over_ssh(fleet: Fleet) -> None:
    ping = ansible(fleet, "--become", "-m", "ansible.builtin.ping")
    assert ping.returncode == 0, ping.stdout + ping.stderr
    assert ping.stdout.count("pong") == 2
    who = ansible(
        fleet, "-m", "ansible.builtin.command", "-a", "sh -c 'id -un; sudo -n id -un; . /etc/os-release; echo $ID'"
    )
    assert who.stdout.count(r"ops\nroot\ndebian") == 2, who.stdout + who.stderr


@pytest.mark.engine
def test_a_node_looks_like_a_machine(fleet: Fleet) -> None:
    nodes = fleet.nodes
    assert [(node.name, node.suite, node.group) for node in nodes] == [
        ("node1", "bookworm", "vllm"),
        ("node2", "trixie", "vllm"),
    ]
    for node in nodes:
        assert fleet.exec(node.name, ["hostname"]).stdout.strip() == node.name
        assert fleet.exec(node.name, ["systemctl", "is-system-running"]).stdout.strip() == "running"
        assert (
            fleet.exec(node.name, ["stat", "-c", "%F %G %a", "/dev/kfd", "/dev/dri/renderD128"]).stdout.splitlines()
            == ["character special file render 660"] * 2
        )
        # Nodes find each other by name.
        assert fleet.exec(node.name, ["getent", "hosts", "node1"]).stdout.split()[0] == nodes[0].address
    identities = {fleet.exec(node.name, ["cat", "/etc/machine-id"]).stdout for node in nodes}
    assert len(identities) == 2


@pytest.mark.engine
def test_a_node_installs_packages(fleet: Fleet) -> None:
    script = "apt-get update -qq && cd /tmp && apt-get download -qq hello && ls hello_*.deb"
    for node in fleet.nodes:
        assert "hello_" in fleet.exec(node.name, ["sh", "-c", script]).stdout


@pytest.mark.engine
def test_a_node_runs_a_container_from_a_loaded_image(fleet: Fleet, tiny: str, lines: list[str]) -> None:
    lines.clear()
    fleet.load([tiny])
    assert [re.sub(r"\d+ MB, in \S+ s", "", line) for line in lines] == [
        f"node1: loaded {tiny}, ",
        f"node2: loaded {tiny}, ",
    ]
    lines.clear()
    fleet.load([tiny])
    assert lines == [f"node1: has {tiny}", f"node2: has {tiny}"]
    for node in fleet.nodes:
        run = ["docker", "run", "--rm", "--hostname", "within", "--device", "/dev/kfd", tiny]
        assert fleet.exec(node.name, run).stdout.strip() == "within"


@pytest.mark.engine
def test_a_cut_link_fails_and_comes_back(fleet: Fleet) -> None:
    with fleet.cut("node1", 60) as cut:
        assert ssh(fleet, "node1", "true").returncode == 255
        assert ssh(fleet, "node2", "true").returncode == 0
        # The node itself lives on.
        assert fleet.exec("node1", ["systemctl", "is-active", "ssh"]).stdout.strip() == "active"
        cut.restore()
        assert ssh(fleet, "node1", "true").returncode == 0
    fleet.cut("node2", 1).wait(10)
    assert ssh(fleet, "node2", "true").returncode == 0
    assert "cut-" not in fleet.exec("node2", ["iptables", "-S"]).stdout


@pytest.mark.engine
def test_a_node_survives_a_power_cut(fleet: Fleet, tiny: str) -> None:
    fleet.load([tiny], ["node2"])
    start = [
        "docker",
        "run",
        "--detach",
        "--interactive",
        "--restart",
        "unless-stopped",
        "--name",
        "lasting",
        tiny,
        "cat",
    ]
    fleet.exec("node2", start)
    address = fleet.node("node2").address
    fleet.off("node2")
    assert fleet.node("node2").state == "exited"
    assert ssh(fleet, "node2", "true").returncode == 255
    fleet.on("node2")
    assert fleet.node("node2").address == address
    # The same host key, the same disk, the nested engine with its container, new device files.
    assert ssh(fleet, "node2", "hostname").stdout.strip() == "node2"
    names = fleet.exec("node2", ["docker", "ps", "--format", "{{.Names}} {{.State}}"]).stdout.split("\n")
    assert "lasting running" in names
    assert fleet.exec("node2", ["stat", "-c", "%G", "/dev/kfd"]).stdout.strip() == "render"


@pytest.mark.engine
def test_unknown_names_are_answered_with_the_known(fleet: Fleet) -> None:
    with pytest.raises(FleetError, match="has no node 'node9'; its nodes: node1, node2"):
        fleet.exec("node9", ["true"])
    with pytest.raises(FleetError, match="is there already"):
        Fleet(fleet.name).up(Path("unused"), ["bookworm"])


def slices() -> set[Path]:
    """The groups of this machine's own systemd, which are not those of nodes."""
    groups = (path for pattern in ("*", "*/*") for path in Path("/sys/fs/cgroup").glob(pattern))
    return {path for path in groups if path.name in ("init.scope", "system.slice", "user.slice")}


@pytest.mark.engine
def test_down_leaves_nothing(tmp_path: Path) -> None:
    """A bare node has no Docker; a fleet that is gone has left no object, no file, and the machine's cgroups alone."""
    machine, ident = slices(), "none"
    fleet = Fleet(f"selftest-bare-{os.getpid()}", lambda _: None)
    try:
        (node,) = fleet.up(tmp_path / "fleet", [], gateways=["bookworm"])
        ident = docker("inspect", "--format", "{{.Id}}", node.container).strip()
        assert (node.name, node.group) == ("gateway1", "gateway")
        assert fleet.exec("gateway1", ["sh", "-c", "command -v docker dockerd"], check=False).stdout == ""
        assert sorted(path.name for path in (tmp_path / "fleet").iterdir()) == [
            "id_ed25519",
            "id_ed25519.pub",
            "inventory.yml",
            "known_hosts",
            "ssh_config",
        ]
    finally:
        fleet.down()
    assert fleet.leftovers() == []
    assert fleet.name not in fleets()
    for listing in (["ps", "-a", "--format", "{{.Names}}"], ["volume", "ls", "-q"], ["network", "ls"]):
        assert fleet.name not in docker(*listing)
    assert not (tmp_path / "fleet").exists()
    # What else runs on this machine has groups of its own, which come and go meanwhile.
    assert slices() == machine
    assert [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if ident in folder] == []
    fleet.down()


@pytest.mark.engine
def test_a_fleet_whose_maker_was_killed_is_removed_by_the_next(tmp_path: Path) -> None:
    """A lasting one stays, as does one whose maker lives."""
    made = {name: f"selftest-{name}-{os.getpid()}" for name in ("lasting", "killed", "mine")}
    script = "import sys; from fleet import *; from pathlib import Path; name, folder, lasting = sys.argv[1:]\n"
    script += "Fleet(name).up(Path(folder), [], gateways=['bookworm'], lasting=bool(lasting))\n"
    script += "print('made', flush=True); sys.stdin.read()"
    lines: list[str] = []
    try:
        for name in ("lasting", "killed"):  # the last, as the next `up` removes it
            maker = subprocess.Popen(
                [sys.executable, "-c", script, made[name], str(tmp_path / name), "yes" if name == "lasting" else ""],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            )
            assert maker.stdout
            assert any(line == "made\n" for line in maker.stdout)
            maker.send_signal(signal.SIGKILL)
            maker.communicate()
        Fleet(made["mine"], lines.append).up(tmp_path / "mine", [], gateways=["bookworm"])
        assert Fleet(made["killed"]).leftovers() == []
        assert not (tmp_path / "killed").exists()
        remove_orphans(lines.append)
        assert {made["lasting"], made["mine"]} <= set(fleets())
        assert f"{made['lasting']}: its process is gone" not in lines
    finally:
        for name in made.values():
            Fleet(name, lines.append).down()


def test_an_owner_is_gone_when_its_number_was_given_to_another() -> None:
    me = owner.of()
    boot, process, begun = me.split(":")
    assert not owner.is_gone(me)
    for other in (f"{boot}:{process}:{int(begun) + 1}", f"before:{process}:{begun}", f"{boot}:{2**22 + 1}:{begun}"):
        assert owner.is_gone(other), other
    for none in ("", "no owner", f"{boot}:x:1"):
        assert not owner.is_gone(none), none
    ended = subprocess.Popen(["sleep", "100"])
    whose = owner.of(ended.pid)
    assert not owner.is_gone(whose)
    ended.kill()
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie has ended
    assert owner.is_gone(whose)
    ended.wait()
    assert owner.is_gone(whose)


def test_tar_keeps_modes_and_owners() -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_of({"/a/b": ("text", 0o600, 1000)}))) as archive:
        (entry,) = archive.getmembers()
    assert (entry.name, entry.mode, entry.uid, entry.gid, entry.size) == ("a/b", 0o600, 1000, 1000, 4)
