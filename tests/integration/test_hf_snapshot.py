# SPDX-License-Identifier: Apache-2.0
"""hf_snapshot on real files and file systems, with a real huggingface_hub as the reader."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hf_cache import COMMIT, REPO, XET, FakeCache, blob_name, model_files, tree_of
from hf_snapshot_tools import ROOT, four_ways, module, start
from hub_standin import CANARY, hub_reads

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def seed(tmp_path: Path) -> FakeCache:
    return FakeCache(tmp_path / "seed")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".cache" / "huggingface"


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", *options, str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB: ext4 on a loop device where there is one, else tmpfs."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(2 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(mounted(tmp_path / "disk", "-o", "loop", str(image)))
        except subprocess.CalledProcessError:
            yield stack.enter_context(mounted(tmp_path / "ram", "-t", "tmpfs", "-o", "size=2m", "none"))


# The whole way, as a user goes it


def test_by_the_ansible_command_in_check_mode_and_for_real(seed: FakeCache, target: Path) -> None:
    options = f"repo_id={REPO} cache={target} source={seed.cache} margin=0"
    results = []
    for mode in (["--check", "--diff"], []):
        done = subprocess.run(
            [Path(sys.executable).with_name("ansible"), "localhost", "-m", "hf_snapshot", "-a", options, *mode],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(done.stdout)
        assert target.exists() is (mode != ["--check", "--diff"])
    assert ["CHANGED" in output for output in results] == [True, True]
    assert f"+snapshots/{COMMIT}/{SHARD} -> blobs/" in results[0]
    assert f'"commit": "{COMMIT}"' in results[1]


def test_what_check_mode_says_is_what_is_done_and_huggingface_hub_reads_it(
    seed: FakeCache, target: Path, hub_python: str
) -> None:
    before = tree_of(seed.cache)
    check, real, again, again_check = four_ways({"cache": str(target), "source": str(seed.cache)})
    assert [result["changed"] for result in (check, real, again, again_check)] == [True, True, False, False]
    assert check["actions"] == real["actions"]
    assert check["diff"] == real["diff"]
    assert again["diff"]["before"] == again["diff"]["after"] == ""
    for result in (check, real, again):
        assert (result["commit"], result["complete"], result["files"]) == (COMMIT, True, len(seed.files))
        assert result["bytes"] == sum(map(len, seed.files.values()))
    written = [line.split()[0] for line in real["diff"]["after"].splitlines()]
    repo = target / "hub" / seed.repo.name
    assert all(os.path.lexists(repo / name) for name in written)
    assert {str(path.relative_to(repo)) for path in repo.rglob("*") if not path.is_dir()} == set(written)
    snapshot = hub_reads(hub_python, target)
    assert {path: (snapshot / path).read_bytes() for path in seed.files} == seed.files
    assert (repo / "refs" / "main").read_bytes() == COMMIT.encode()
    assert tree_of(seed.cache) == before


def test_modes_let_a_container_of_any_user_read_and_the_files_are_not_the_sources(
    seed: FakeCache, target: Path
) -> None:
    seed.blob(SHARD).chmod(0o400)
    os.umask(0o077)
    try:
        module(cache=str(target), source=str(seed.cache))
    finally:
        os.umask(0o022)
    for path in target.rglob("*"):
        if not path.is_symlink() and ".vllm-fleet" not in path.parts:
            assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
            assert path.is_dir() or path.stat().st_nlink == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")
def test_run_as_root_new_files_belong_to_the_owner_of_the_folder() -> None:
    with tempfile.TemporaryDirectory() as folder:  # one that others may enter, unlike pytest's
        top = Path(folder)
        top.chmod(0o755)
        source, target = FakeCache(top / "seed"), top / "home/.cache/huggingface"
        (top / "home").mkdir()
        os.chown(top / "home", 4711, 4712)
        for result in four_ways({"cache": str(target), "source": str(source.cache)}):
            assert "failed" not in result, result
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in target.rglob("*")} == {(4711, 4712)}
        assert target.stat().st_uid == target.parent.stat().st_uid == 4711


# A cache that is there


def test_a_complete_cache_of_the_user_is_used_and_not_touched(seed: FakeCache, target: Path) -> None:
    user = FakeCache(target)
    payload = user.share(SHARD)
    (target / "token").write_text(CANARY)
    before = tree_of(target)
    for result in four_ways({"cache": str(target), "source": str(seed.cache)}):
        assert (result["changed"], result["complete"]) == (False, True)
    assert tree_of(target) == before
    assert payload.stat().st_mode & 0o777 == 0o444


def test_a_source_with_shared_blobs_arrives_as_real_files_and_the_token_stays(seed: FakeCache, target: Path) -> None:
    seed.share(SHARD)
    (seed.cache / "token").write_text(CANARY)
    assert module(cache=str(target), source=str(seed.cache))["changed"]
    blob = target / "hub" / seed.repo.name / "blobs" / blob_name(SHARD, seed.files[SHARD])
    assert not blob.is_symlink()
    assert blob.read_bytes() == seed.files[SHARD]
    assert not any(content == CANARY.encode() for _kind, _mode, content in tree_of(target).values())
    assert XET not in " ".join(tree_of(target))


Damage = Callable[[FakeCache], object]
REPAIRS: dict[str, tuple[Damage, bool]] = {
    # what is wrong, and whether contents must come from the source
    "newline in the ref": (lambda cache: cache.ref().write_text(COMMIT + "\n"), False),
    "no link": (lambda cache: (cache.snapshot / SHARD).unlink(), False),
    "no blob": (lambda cache: cache.blob(SHARD).unlink(), True),
    "truncated blob": (lambda cache: os.truncate(cache.blob(SHARD), 10), True),
    "dangling link to the shared store": (lambda cache: cache.share(SHARD).unlink(), True),
    "truncated payload in the shared store": (lambda cache: os.truncate(cache.share(SHARD), 10), True),
    "link to another shard": (
        lambda cache: (
            (cache.snapshot / SHARD).unlink(),
            (cache.snapshot / SHARD).symlink_to(cache.blob("model-00001-of-00003.safetensors")),
        ),
        False,
    ),
}


@pytest.mark.parametrize("fault", REPAIRS)
def test_only_what_is_missing_or_wrong_is_written(seed: FakeCache, target: Path, fault: str, hub_python: str) -> None:
    damage, needs_source = REPAIRS[fault]
    user = FakeCache(target)
    damage(user)
    sound = {
        path: (user.blob(path).stat().st_ino, user.blob(path).stat().st_mtime_ns)
        for path in user.files
        if path != SHARD
    }
    alone = module(cache=str(target), check=True)
    assert bool(alone.get("failed")) is needs_source
    results = four_ways({"cache": str(target), "source": str(seed.cache)})
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert results[0]["diff"] == results[1]["diff"]
    written = [line for line in results[1]["diff"]["after"].splitlines() if line.startswith("blobs/")]
    assert len(written) == needs_source
    assert {path: (user.blob(path).stat().st_ino, user.blob(path).stat().st_mtime_ns) for path in sound} == sound
    assert (hub_reads(hub_python, target) / SHARD).read_bytes() == seed.files[SHARD]


def test_a_flipped_bit_is_repaired_by_a_full_run(seed: FakeCache, target: Path) -> None:
    user = FakeCache(target)
    content = bytearray(seed.files[SHARD])
    content[-1] ^= 1
    user.blob(SHARD).write_bytes(content)
    assert module(cache=str(target), state="verified")["complete"]
    found = module(cache=str(target), state="verified", verify="full")
    assert (found["failed"], found["corrupt"], found["failure"]["class"]) == (True, [SHARD], "weights_corrupt")
    assert SHARD in found["msg"]
    results = four_ways({"cache": str(target), "source": str(seed.cache), "verify": "full"})
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert user.blob(SHARD).read_bytes() == seed.files[SHARD]


def test_leftovers_go_when_a_download_is_taken_up_but_not_while_someone_writes_them(
    seed: FakeCache, target: Path
) -> None:
    import fcntl

    user = FakeCache(target)
    user.blob(SHARD).unlink()
    dead = user.repo / "blobs" / f"{'1' * 64}.12345678.incomplete"
    alive = user.repo / "blobs" / f"{'2' * 64}.12345678.incomplete"
    lock = target / "hub" / ".locks" / user.repo.name / f"{'2' * 64}.lock"
    lock.parent.mkdir(parents=True)
    dead.write_bytes(b"x")
    alive.write_bytes(b"x")
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        result = module(cache=str(target), source=str(seed.cache))
    assert "remove 1 files" in result["actions"]
    assert (dead.exists(), alive.exists()) == (False, True)


def test_a_ref_of_the_user_that_stands_for_another_commit_stays(seed: FakeCache, target: Path) -> None:
    other = FakeCache(target, {"config.json": b"{}"}, commit="b" * 40)
    result = module(cache=str(target), source=str(seed.cache), revision=COMMIT)
    assert (result["changed"], result["complete"]) == (True, True)
    assert other.ref().read_text() == "b" * 40
    assert module(cache=str(target), state="verified", revision=COMMIT)["complete"]


# Interruptions


def test_killed_in_the_middle_nothing_resolves_and_the_next_run_takes_it_up(
    tmp_path: Path, target: Path, hub_python: str
) -> None:
    seed = FakeCache(tmp_path / "seed")
    size = 192 << 20  # sparse zeros: long enough on its way to be met there
    big = hashlib.sha256(b"\0" * size).hexdigest()
    with (seed.repo / "blobs" / big).open("wb") as file:
        file.truncate(size)
    (seed.snapshot / "big.safetensors").symlink_to(f"../../blobs/{big}")
    listing = json.loads(seed.tree.read_text())
    listing["files"]["big.safetensors"] = {"size": size, "blob_id": "0" * 40, "lfs_sha256": big, "lfs_size": size}
    seed.tree.write_text(json.dumps(listing))
    options = {"cache": str(target), "source": str(seed.cache)}
    blobs = target / "hub" / seed.repo.name / "blobs"

    def half() -> list[Path]:
        return list(blobs.glob(f".{big}.*.vllm-fleet.incomplete"))

    process = start(options)
    deadline = time.monotonic() + 60
    while not (half() and any((blobs / blob_name(path, seed.files[path])).exists() for path in seed.files)):
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert half()
    assert not (blobs / big).exists()
    assert not (blobs.parent / "refs").exists()
    finished = {path: path.stat().st_mtime_ns for path in blobs.iterdir() if not path.name.startswith(".")}
    assert finished
    found = module(cache=str(target), state="verified")
    assert (found["failed"], found["complete"]) == (True, False)

    result = module(**options)
    assert result["complete"], result
    assert int(re.findall(r"write (\d+) blobs", result["actions"][0])[0]) == len(seed.files) + 1 - len(finished)
    assert not half()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert hub_reads(hub_python, target).name == COMMIT
    assert not module(**options)["changed"]


def test_two_runs_at_a_time_do_the_work_once(seed: FakeCache, target: Path) -> None:
    runs = [start({"cache": str(target), "source": str(seed.cache)}) for _ in range(2)]
    results = [json.loads(run.communicate(timeout=60)[0]) for run in runs]
    assert all(result["complete"] for result in results), results
    assert module(cache=str(target), state="verified", verify="full")["complete"]


# Disks


def test_too_small_a_disk_is_refused_before_anything_is_written(seed: FakeCache, small_disk: Path) -> None:
    before = tree_of(small_disk)
    for check in (True, False):
        result = module(check=check, cache=str(small_disk / "hf"), source=str(seed.cache), margin=100 << 20)
        assert (result["failed"], result["changed"], result["failure"]["class"]) == (True, False, "disk_full")
        assert f"The disk of {small_disk / 'hf'} has " in result["msg"]
        assert f"{100 << 20} kept free" in result["msg"]
    assert tree_of(small_disk) == before


def test_a_model_larger_than_the_disk_is_refused_before_anything_is_written(tmp_path: Path, small_disk: Path) -> None:
    seed = FakeCache(tmp_path / "large", model_files(floats=1 << 18))
    result = module(cache=str(small_disk / "hf"), source=str(seed.cache))
    assert result["failure"]["class"] == "disk_full"
    assert "Nothing was written" in result["msg"]
    assert not (small_disk / "hf").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_on_the_way_leaves_whole_files_only_and_room_repairs_it(
    seed: FakeCache, tmp_path: Path
) -> None:
    # Few inodes: bytes are free when the run starts, and no file can be made half-way.
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m,nr_inodes=12", "none") as disk:
        options = {"cache": str(disk / "hf"), "source": str(seed.cache)}
        result = module(**options)
        assert (result["failed"], result["failure"]["class"]) == (True, "disk_full")
        assert "The disk got full while" in result["msg"]
        blobs = [path for path in (disk / "hf").rglob("*") if path.is_file() and path.parent.name == "blobs"]
        assert 0 < len(blobs) < len(seed.files)
        assert {path.name for path in blobs} < {blob_name(path, content) for path, content in seed.files.items()}
        assert module(cache=str(disk / "hf"), state="verified")["complete"] is False
        subprocess.run(["mount", "-o", "remount,nr_inodes=100", str(disk)], check=True)
        assert module(**options)["complete"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_mount_is_verified_and_not_written(tmp_path: Path, seed: FakeCache) -> None:
    with mounted(tmp_path / "share", "-t", "tmpfs", "-o", "size=8m", "none") as share:
        shared = FakeCache(share / "hf")
        subprocess.run(["mount", "-o", "remount,ro", str(share)], check=True)
        assert module(cache=str(share / "hf"), state="verified", verify="full")["complete"]
        assert module(cache=str(share / "hf"), verify="full", source=str(seed.cache))["changed"] is False
        subprocess.run(["mount", "-o", "remount,rw", str(share)], check=True)
        shared.blob(SHARD).unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(share)], check=True)
        result = module(cache=str(share / "hf"), source=str(seed.cache))
        assert "cannot be written" in result["msg"]


# Bad input and bad sources: one sentence, nothing changed


def test_bad_input_is_refused_with_one_sentence(tmp_path: Path, seed: FakeCache, target: Path) -> None:
    (tmp_path / "file").write_text("")
    source = str(seed.cache)
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"cache": "relative/path"}, "bad_argument", "'relative/path' is relative"),
        ({"cache": str(tmp_path / "file")}, "bad_argument", "is a file, expected a folder"),
        ({"cache": str(tmp_path / "file" / "below")}, "bad_argument", "is a file, expected a folder"),
        ({"cache": str(target), "create": False}, "bad_argument", "does not exist"),
        ({"cache": str(seed.cache / "hub")}, "bad_argument", "is a hub folder itself"),
        ({"cache": str(target), "repo_id": "DeepSeek V3.1"}, "bad_argument", "it has a space in it"),
        ({"cache": str(target), "repo_id": "org/modle"}, "model_not_found", "the nearest it has is org/model"),
        ({"cache": str(target), "revision": "c" * 40}, "model_not_found", f"it has {COMMIT} (main)"),
        ({"cache": str(target), "source": "seed"}, "bad_argument", "neither 'hub' nor an absolute path"),
        ({"cache": str(target), "source": str(tmp_path / "none")}, "bad_argument", "does not exist"),
        ({"cache": str(seed.cache), "revision": "c" * 40}, "bad_argument", "is the cache itself"),
        ({"cache": str(target), "source": None}, "cache_incomplete", "give a source"),
        ({"cache": source, "repo_id": "org/Model2", "source": None}, "cache_incomplete", "nearest it has is org/model"),
    ]  # fmt: skip
    before = tree_of(tmp_path)
    for options, failure, words in cases:
        for check in (True, False):
            result = module(check=check, **{"source": source, **options})
            assert result["failed"], options
            assert result["failure"]["class"] == failure, result["msg"]
            assert words in result["msg"]
            assert "\n" not in result["msg"]
            assert "Traceback" not in json.dumps(result)
            assert (result["changed"], result["complete"]) == (False, False)
    assert tree_of(tmp_path) == before


def test_a_corrupt_blob_of_the_source_is_named_and_not_taken_over(seed: FakeCache, target: Path) -> None:
    content = bytearray(seed.files[SHARD])
    content[-1] ^= 1
    seed.blob(SHARD).write_bytes(content)
    result = module(cache=str(target), source=str(seed.cache))
    assert (result["failed"], result["failure"]["class"]) == (True, "weights_corrupt")
    assert f"{SHARD} of the source {seed.cache} is corrupt" in result["msg"]
    assert seed.blob(SHARD).name not in {path.name for path in target.rglob("*")}
    assert not (target / "hub" / seed.repo.name / "refs").exists()


# A file list that travels


def test_a_staging_area_of_blobs_with_the_file_list_of_another_machine(
    seed: FakeCache, target: Path, hub_python: str
) -> None:
    manifest = module(cache=str(seed.cache), state="verified", with_manifest=True)["manifest"]
    FakeCache(target, {"config.json": seed.files["config.json"]}, commit="b" * 40, ref=None)
    asked = module(cache=str(target), state="verified", manifest=manifest)
    wanted = {blob_name(path, content) for path, content in seed.files.items() if path != "config.json"}
    assert set(asked["wanted"]) == wanted  # the blob that an older snapshot has is not asked for
    assert asked["belongs_to"] == {"uid": os.getuid(), "gid": os.getgid()}
    staging = target / ".vllm-fleet" / "staging"
    full = {"cache": str(target), "state": "verified", "manifest": manifest, "source": str(staging), "margin": 1 << 60}
    assert module(**full)["failure"]["class"] == "disk_full"
    staging.mkdir(parents=True)
    for name in wanted:
        shutil.copy(seed.repo / "blobs" / name, staging / name)
    assert module(**full)["failure"]["class"] == "cache_incomplete"  # what is staged needs no more room
    inodes = {name: (staging / name).stat().st_ino for name in wanted}
    # Moving takes no room, so a margin is not asked for.
    options = {"cache": str(target), "manifest": manifest, "source": str(staging), "move": True, "margin": 1 << 60}
    result = module(**options)
    assert (result["changed"], result["complete"]) == (True, True), result
    blobs = target / "hub" / seed.repo.name / "blobs"
    assert {name: (blobs / name).stat().st_ino for name in wanted} == inodes
    assert list(staging.iterdir()) == []
    assert json.loads((blobs.parent / "trees" / f"{COMMIT}.json").read_text())["files"].keys() == seed.files.keys()
    assert hub_reads(hub_python, target).name == COMMIT
    assert not module(**options)["changed"]


def test_a_source_without_a_file_list_does_not_invent_one(tmp_path: Path, target: Path, hub_python: str) -> None:
    seed = FakeCache(tmp_path / "old", tree=False)
    assert [result["changed"] for result in four_ways({"cache": str(target), "source": str(seed.cache)})] == [
        True,
        True,
        False,
        False,
    ]
    assert not (target / "hub" / seed.repo.name / "trees").exists()
    assert (hub_reads(hub_python, target) / SHARD).read_bytes() == seed.files[SHARD]


# Taking out


def test_absent_removes_what_no_other_snapshot_uses(seed: FakeCache) -> None:
    other = FakeCache(seed.cache, seed.files | {"config.json": b'{"newer": true}'}, commit="b" * 40, ref="v2")
    options = {"cache": str(seed.cache), "state": "absent"}
    check, real, again, again_check = four_ways(options)
    assert [result["changed"] for result in (check, real, again, again_check)] == [True, True, False, False]
    assert check["diff"] == real["diff"]
    assert not seed.snapshot.exists()
    assert not seed.ref().exists()
    assert not seed.blob("config.json").exists()
    assert module(cache=str(seed.cache), state="verified", revision="v2", verify="full")["complete"]
    assert module(cache=str(seed.cache), state="absent", revision="b" * 40)["changed"]
    assert not other.repo.exists()


# Pruning


def test_pruning_keeps_the_wanted_the_newest_other_and_what_is_named(tmp_path: Path) -> None:
    cache = tmp_path / "hf"
    made = []
    for number, letter in enumerate("1234"):
        files = {**model_files(), "config.json": letter.encode(), f"only-{letter}.json": letter.encode() * 3}
        made.append(FakeCache(cache, files, commit=letter * 40, ref=f"v{letter}"))
        os.utime(made[-1].snapshot, (number, number))
    other = FakeCache(cache, {"config.json": b"{}"}, repo_id="org/other")
    coming = [model.repo / ".vllm-fleet" / ("5" * 40) for model in (made[0], other)]  # begun and never taken up
    for folder in coming:
        folder.mkdir(parents=True)
        (folder / "blob").write_bytes(b"half")
    options = {"cache": str(cache), "state": "pruned", "revision": "4" * 40, "keep": ["1" * 40]}
    check, real, again, _ = four_ways(options)
    assert [result["changed"] for result in (check, real, again)] == [True, True, False]
    assert check["diff"] == real["diff"]
    assert [model.snapshot.exists() for model in made] == [True, False, True, True]
    assert [folder.parent.exists() for folder in coming] == [False, True]
    assert not made[1].ref("v2").exists()
    assert not made[1].blob("only-2.json").exists()
    assert other.snapshot.exists()
    for letter in "134":
        assert module(cache=str(cache), state="verified", revision=letter * 40, verify="full")["complete"]
    made[3].blob("only-4.json").unlink()
    refused = module(**options | {"keep": []})
    assert refused["failed"]  # what is to be kept is not whole, so nothing goes
    assert made[0].snapshot.exists()
