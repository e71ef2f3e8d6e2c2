# SPDX-License-Identifier: Apache-2.0
"""What a power cut, or a full disk, leaves on a real file system.

For a power cut the image of a file system is copied while it is mounted, and the copy is mounted.

The copy holds what the file system had brought to its disk by then, and its journal. A sync of another file just
before makes the journal hold every name: a file whose name came before its content is then empty in the copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_hf_cache import COMMIT, REPO, FakeCache, blob_name, model_files

from ansible.module_utils.vllm_fleet.common import durable
from ansible.module_utils.vllm_fleet.container import dockerd
from ansible.module_utils.vllm_fleet.container.plan import Plan, Trust
from ansible.module_utils.vllm_fleet.server.lifecycle import Lifecycle
from ansible.module_utils.vllm_fleet.server.observe import Observation
from ansible.module_utils.vllm_fleet.server.options import ServerOptions
from ansible.module_utils.vllm_fleet.server.state import NodeState
from ansible.module_utils.vllm_fleet.watchdog import journal
from ansible.module_utils.vllm_fleet.weights import fetch, snapshot
from ansible.module_utils.vllm_fleet.weights.layout import Repository

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="mounts file systems of its own, which takes root"
)
#: By default ext4 syncs what replaces a file by a rename. Others do not, so that help is switched off.
OPTIONS = "loop,noauto_da_alloc"


class Disk:
    """A file system in a file."""

    def __init__(self, folder: Path) -> None:
        self.image, self.at, self._stack = folder / "disk", folder / "mounted", contextlib.ExitStack()
        subprocess.run(["truncate", "-s", "20M", self.image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True)
        self.mount(self.image, self.at)

    def mount(self, image: Path, at: Path) -> None:
        at.mkdir()
        done = subprocess.run(["mount", "-o", OPTIONS, image, at], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system of its own here: {done.stderr.strip()}")
        self._stack.callback(subprocess.run, ["umount", at], check=True)

    def fill(self) -> None:
        """Take all that is free, to the last byte."""
        with (self.at / "filling").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 10, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size):
                        pass

    def cut(self) -> Path:
        """Return what is there after a power cut now."""
        durable.write(self.at / "another", b"x")
        after = self.image.with_name("after")
        subprocess.run(["cp", "--sparse=always", self.image, after], check=True)
        self.mount(after, self.at.with_name("rebooted"))
        return self.at.with_name("rebooted")

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path)
    yield made
    made.close()


def test_what_is_not_synced_is_lost(disk):
    (disk.at / "part").write_text("new")
    (disk.at / "part").replace(disk.at / "file")
    assert (disk.cut() / "file").read_text() == ""  # else this test would prove nothing


def test_what_the_node_remembers_is_there(disk):
    node = NodeState(str(disk.at / "state"), "vllm")
    key = node.fingerprint_key(create=True)
    node.note_trust("good", Trust.CONFIRMED, ("good",))
    node.note_failure("bad", {"msg": "why"})
    node.note_stopping(("good", "2026-01-01T00:00:00Z"))
    journal.write_whole(disk.at / "run" / "watchdog.json", {"state": "well"})
    after = disk.cut()
    found = NodeState(str(after / "state"), "vllm")
    assert (found.trust("good"), found.fingerprint_key(create=False)) == (Trust.CONFIRMED, key)
    assert (found.failure("bad") or {})["msg"] == "why"
    assert found.stopping() == ("good", "2026-01-01T00:00:00Z")
    assert journal.read(after / "run" / "watchdog.json") == {"state": "well"}


def test_dockers_configuration_is_there(disk):
    (disk.at / "docker").mkdir()
    path = disk.at / "docker" / "daemon.json"
    engine = dockerd.Dockerd(dockerd.Settings(config_path=str(path), config={"live-restore": True}))
    engine._write("/bin/true")
    assert json.loads((disk.cut() / "docker" / "daemon.json").read_text()) == {"live-restore": True}


@pytest.mark.parametrize("move", [False, True])
def test_weights_that_a_marker_calls_whole_are_there(disk, tmp_path, move):
    files = model_files()
    seed = FakeCache(tmp_path / "seed", files)
    there = Repository(seed.cache, REPO)
    found = fetch.Result(snapshot.Report(there, "main"))
    fetch.verified(fetch.Request(there, "main"), found)
    staging = disk.at / "staging"  # as a swarm, rsync or a push leaves it: written just now
    staging.mkdir()
    for path, content in files.items():
        (staging / blob_name(path, content)).write_bytes(content)
    asked = fetch.Request(
        Repository(disk.at / "cache", REPO),
        "main",
        source=str(staging),
        manifest=fetch.export(found.report),
        move=move,
        margin=0,
    )
    result = fetch.Result(snapshot.Report(asked.repository, "main"))
    fetch.present(asked, result)
    assert result.report.hashed
    after = Repository(disk.cut() / "cache", REPO)
    assert after.marker(COMMIT).exists()
    assert snapshot.inspect(after, "main", "full").sentence() == result.report.sentence()


def test_a_full_disk_keeps_what_is_known_and_hinders_no_way_back(disk):
    def again():
        options = ServerOptions(model="org/m", rocm=False, state="restored", state_dir=str(disk.at / "state"))
        return Lifecycle(options, None, host="node7")

    node = again().context.node
    with node.lock(1):
        node.note_trust("good", Trust.CONFIRMED, ("good",))
    config = disk.at / "daemon.json"
    config.write_text("{}")
    disk.fill()
    before = sorted(path.name for path in disk.at.rglob("*"))
    with pytest.raises(OSError, match="No space left"):
        node.note_trust("new", Trust.READY, ("good", "new"))
    engine = dockerd.Dockerd(dockerd.Settings(config_path=str(config), config={"live-restore": True}))
    with pytest.raises(OSError, match="No space left"):
        engine._write("/bin/true")
    assert (node.trust("good"), config.read_text()) == (Trust.CONFIRMED, "{}")
    going = again()
    with node.lock(1):
        going._note_restoring(Observation("vllm", "restored", {"Id": "good"}, None, Plan((), watch=True)))
    assert "no space left to write" in going.state.notes[0]
    assert sorted(path.name for path in disk.at.rglob("*")) == before  # no halves are left
