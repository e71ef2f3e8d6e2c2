# SPDX-License-Identifier: Apache-2.0
"""Root works in a cache that somebody else may write into: a link that was planted there leads it nowhere.

Every path that a run writes, replaces or removes is taken once as the place of a link, and every folder on the way to
it, with the real module. What root alone may touch stays as it was, whatever becomes of the run.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_hf_cache import COMMIT, FakeCache, blob_name, model_files
from hf_snapshot_tools import module

from ansible.module_utils.vllm_fleet.common.meter import Meter
from ansible.module_utils.vllm_fleet.weights import hub, snapshot_call, swarm
from ansible.module_utils.vllm_fleet.weights.files import FetchError, locked
from ansible.module_utils.vllm_fleet.weights.layout import Repository
from ansible.module_utils.vllm_fleet.weights.owner import Owner, acting_as, opened, owner_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led astray")

USER = 65534
STATE = ".vllm-fleet"
PYTHON = "/usr/bin/python3"
"""One that other users may run."""


@dataclass
class Scene:
    """A cache that a user owns (or may write into), a source, and root's folder with a file for root's eyes alone."""

    top: Path
    source: FakeCache
    cache: Path
    etc: Path

    @property
    def repo(self) -> Path:
        return self.cache / "hub" / self.source.repo.name

    def as_user(self, *argv: str) -> None:
        user = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"]
        subprocess.run([*user, *argv], check=True)

    def plant(self, path: Path, target: Path) -> None:
        """Put the user's link in the place of a path, whatever is there."""
        self.as_user(
            "sh", "-c", 'mkdir -p "$(dirname "$1")" && rm -rf "$1" && ln -s "$2" "$1"', "sh", str(path), str(target)
        )

    def guarded(self) -> dict[str, tuple[int, int, int, bytes]]:
        """Everything in root's folder: mode, owner, group, content."""
        return {
            str(path.relative_to(self.etc)): (
                (found := path.lstat()).st_mode,
                found.st_uid,
                found.st_gid,
                path.read_bytes() if stat.S_ISREG(found.st_mode) else b"",
            )
            for path in [self.etc, *self.etc.rglob("*")]
        }


@pytest.fixture
def scene() -> Iterator[Scene]:
    top = Path(tempfile.mkdtemp())  # one that others may enter, unlike pytest's
    top.chmod(0o755)
    try:
        made = Scene(top, FakeCache(top / "seed", model_files(2, 4096)), top / "cache", top / "etc")
        made.cache.mkdir()
        made.etc.mkdir()
        for name in ("shadow", "refs", "main", f"{COMMIT}.json", "lock", STATE, "config.json"):
            (made.etc / name).write_text("root alone\n")
            (made.etc / name).chmod(0o600)
        yield made
    finally:
        shutil.rmtree(top)


def written() -> list[str]:
    """Every path that bringing in a snapshot writes, and every folder above it, below the cache."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        source = FakeCache(top / "seed", model_files(2, 4096))
        module(cache=str(top / "cache"), source=str(source.cache))
        made = sorted(str(path.relative_to(top / "cache")) for path in (top / "cache").rglob("*"))
    assert len(made) > 12
    return made


def owned_by_the_user(scene: Scene) -> None:
    os.chown(scene.cache, USER, USER)


def open_to_all(scene: Scene) -> None:
    scene.cache.chmod(0o777)


WAYS = {"the user's cache": owned_by_the_user, "root's cache, open to all": open_to_all}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", written() if os.geteuid() == 0 else [])
def test_a_planted_link_leads_no_write_to_what_is_roots(scene: Scene, path: str, way: str) -> None:
    WAYS[way](scene)
    place = scene.cache / path
    for target in (scene.etc, scene.etc / "shadow", scene.etc / "not-there"):
        scene.plant(place, target)
        before = scene.guarded()
        calls: list[dict[str, Any]] = [
            {"source": str(scene.source.cache)},
            {"source": str(scene.source.cache), "verify": "full"},
            {"state": "pruned"},
            {"state": "absent"},
        ]
        for options in calls:
            here(scene, **options)
            assert scene.guarded() == before, (target, options)
        scene.as_user("rm", "-rf", str(place))


def here(scene: Scene, **options: Any) -> dict[str, Any]:
    """The module's work in this process: a hundred and more calls of it are made."""
    state = options.pop("state", "present")
    defaults = {name: spec.get("default") for name, spec in snapshot_call.ARGUMENTS.items()}
    asked = {**defaults, "cache": str(scene.cache), "repo_id": scene.source.repo_id, "margin": 0, **options}
    return snapshot_call.work(snapshot_call.parse(asked, Meter(), dry=False), state)


@pytest.mark.parametrize("name", [".main.tmp", f".{COMMIT}.json.tmp", ".config.json.tmp", "lock"])
def test_names_that_can_be_guessed_are_not_followed(scene: Scene, name: str) -> None:
    owned_by_the_user(scene)
    folders = ("refs", "trees", "blobs", f"snapshots/{COMMIT}")
    places = [scene.repo / folder / name for folder in folders] + [scene.cache / STATE / name]
    for place in places:
        scene.plant(place, scene.etc / "shadow")
    before = scene.guarded()
    here(scene, source=str(scene.source.cache))
    assert scene.guarded() == before


def test_what_is_moved_out_of_a_staging_area_is_no_link_and_no_second_name(scene: Scene) -> None:
    owned_by_the_user(scene)
    manifest = module(cache=str(scene.source.cache), state="verified", with_manifest=True)["manifest"]
    staging = scene.repo / STATE / COMMIT
    for path, content in scene.source.files.items():
        scene.plant(staging / blob_name(path, content), scene.etc / "shadow")
    before = scene.guarded()
    found = here(scene, source=str(staging), manifest=manifest, move=True)
    assert found["failed"]
    assert scene.guarded() == before
    assert not any(b"root alone" in path.read_bytes() for path in scene.repo.rglob("*") if readable(path))


def readable(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def test_the_cache_itself_as_a_link_is_the_one_s_who_made_it(scene: Scene) -> None:
    (home := scene.top / "home").mkdir()
    os.chown(home, USER, USER)
    scene.plant(home / "cache", scene.etc)
    assert owner_of(home / "cache").uid == owner_of(home / "cache/hub/x").uid == USER
    assert owner_of(scene.etc / "not-there").uid == 0
    scene.cache = home / "cache"
    before = scene.guarded()
    found = here(scene, source=str(scene.source.cache))
    assert found["failed"]
    assert "nobody" in found["msg"]
    assert scene.guarded() == before


def test_a_folder_of_root_below_one_of_a_user_is_not_written_by_root(scene: Scene) -> None:
    """Whoever owns the folder above can put another in its place at any moment."""
    (home := scene.top / "home").mkdir()
    (scene.top / "home/cache").mkdir()
    os.chown(home, USER, USER)
    scene.cache = home / "cache"
    found = here(scene, source=str(scene.source.cache))
    assert found["failed"]
    assert f"chown -R {USER} {scene.cache}" in found["msg"]


def test_rights_come_back_whatever_happens(scene: Scene) -> None:
    before = os.getresuid(), os.getresgid(), os.getgroups()
    with pytest.raises(PermissionError), acting_as(Owner(USER, USER)):
        assert os.getresuid() == (0, USER, 0)
        assert os.getgroups() == []
        (scene.etc / "shadow").read_text()
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


def test_root_follows_its_own_links_and_no_others(scene: Scene) -> None:
    (scene.top / "mine").symlink_to("etc")
    with opened(scene.top / "mine") as folder:
        assert "shadow" in os.listdir(folder)  # noqa: PTH208  an opened folder
    os.chown(scene.top / "mine", USER, USER, follow_symlinks=False)
    with pytest.raises(PermissionError, match="a link of user id 65534 is in the way"), opened(scene.top / "mine"):
        pass
    (scene.top / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="too many links"), opened(scene.top / "loop"):
        pass


def test_a_command_runs_as_the_owner(scene: Scene) -> None:
    argv = [*Owner(USER, USER, (USER, 7)).command, "id", "-G"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert set(said.stdout.split()) == {str(USER), "7"}
    assert Owner(0, os.getegid()).command == []


# Other programs


def test_a_download_runs_as_the_owner_with_its_token_out_of_sight(scene: Scene) -> None:
    owned_by_the_user(scene)
    program = scene.top / "python"
    # In the place of the Hub's client: what it would be run as, and what the user sees of its environment.
    program.write_text(f"""#!{PYTHON}
import json, os, subprocess, sys
exec(sys.argv[2].split('# Ends')[0])
seen = subprocess.run(['cat', f'/proc/{{os.getpid()}}/environ'], capture_output=True).stdout.count(b'hf_canary')
has = os.environ['HF_TOKEN'] == 'hf_canary'
print(json.dumps({{"uids": os.getresuid(), "gids": os.getresgid(), "has": has, "seen": seen}}))
""")
    program.chmod(0o755)
    with acting_as(owner_of(scene.cache)):
        found = hub._hub({"do": "list"}, Repository(scene.cache, "org/m"), hub.Client(str(program), "hf_canary"))
    assert found == {"uids": [USER] * 3, "gids": [USER] * 3, "has": True, "seen": 0}


def test_a_download_goes_through_no_planted_folder(scene: Scene) -> None:
    open_to_all(scene)
    for name in ("blobs", "refs", "snapshots", "trees", ".no_exist", STATE):
        scene.plant(scene.repo / name, scene.etc)
        with pytest.raises(FetchError, match="a link of user id 65534 is in the way"):
            hub._check_folders(Repository(scene.cache, scene.source.repo_id), COMMIT)
        scene.as_user("rm", str(scene.repo / name))
    hub._check_folders(Repository(scene.cache, scene.source.repo_id), COMMIT)


def test_folders_that_an_earlier_download_closed_are_open_again(scene: Scene) -> None:
    repository = Repository(scene.cache, scene.source.repo_id)
    repository.blobs.mkdir(parents=True, mode=0o700)
    repository.blobs.parent.chmod(0o700)
    hub._check_folders(repository, COMMIT)
    assert [path.stat().st_mode & 0o777 for path in (repository.blobs, repository.folder)] == [0o755, 0o755]


@pytest.mark.parametrize("name", [f"{COMMIT}.torrent-hash", f"{COMMIT}.aria2", COMMIT, ""])
def test_a_swarm_lands_in_no_planted_place(scene: Scene, name: str) -> None:
    owned_by_the_user(scene)
    staging = scene.repo / STATE
    scene.plant(staging / name if name else staging, scene.etc if name in ("", COMMIT) else scene.etc / "shadow")
    before = scene.guarded()
    with acting_as(owner_of(staging)):
        try:
            landing, _ = swarm._land(staging / COMMIT, COMMIT, "0" * 40)
        except (FetchError, OSError):
            landing = staging
    assert scene.guarded() == before
    assert Owner(USER, USER).command[:3] == ["setpriv", "--reuid", str(USER)]
    assert landing


def test_what_root_received_earlier_is_not_in_the_way_of_the_owner(scene: Scene) -> None:
    owned_by_the_user(scene)
    above = scene.repo / STATE
    staging, control = above / COMMIT, above / f"{COMMIT}.aria2"
    scene.as_user("mkdir", "-p", str(staging))
    own, roots, partial = staging / ("a" * 64), staging / ("b" * 64), staging / ".rsync-partial"
    partial.mkdir()
    for path in (own, roots, control, partial / roots.name):
        path.write_text("part")
    os.chown(own, USER, USER)
    with acting_as(owner_of(staging)):
        swarm._land(staging, COMMIT, "0" * 40)
    assert (own.read_text(), roots.exists(), control.exists(), partial.exists()) == ("part", False, False, False)
    assert len(list(staging.glob(".rsync-partial.*"))) == 1


def test_a_seed_gives_nothing_that_the_cache_s_owner_cannot_read(scene: Scene) -> None:
    owned_by_the_user(scene)
    blob = "a" * 64
    scene.plant(scene.repo / "blobs" / blob, scene.etc / "shadow")
    closed = scene.top / "closed"
    closed.mkdir(mode=0o700)
    (closed / "x").write_text("root alone")
    scene.plant(scene.repo / "blobs" / ("b" * 64), closed / "x")
    with pytest.raises((swarm.SwarmError, PermissionError)):
        swarm.origins(scene.repo / "blobs", ["b" * 64])


def test_the_lock_is_no_link(scene: Scene) -> None:
    owned_by_the_user(scene)
    scene.plant(scene.cache / STATE / "lock", scene.etc / "made-by-root")
    with pytest.raises(FetchError), locked(scene.cache):
        pass
    assert not (scene.etc / "made-by-root").exists()
