# SPDX-License-Identifier: Apache-2.0
"""The scripts of a copy by rsync, as the role sends them: what they print has its form, and other fleets' copies stay."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.vllm_fleet.weights import said
from ansible.module_utils.vllm_fleet.weights.owner import Owner

ROOT = Path(__file__).resolve().parents[2]
TMP = Path("/tmp")
USER = 65534
HOUR = 3600

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no OpenSSH here")


def script(name: str) -> str:
    return str(yaml.safe_load((ROOT / "roles/hf_cache/vars/main.yml").read_text())[name])


@pytest.fixture
def tag() -> Iterator[str]:
    made = uuid.uuid4().hex[:8]
    yield made
    for folder in TMP.glob(f"hf_cache.{made}.*"):
        shutil.rmtree(folder)


def offered(home: Path, tag: str, blobs: Path) -> said.Offer:
    """Make an offer with the host keys of a machine that has an SSH server."""
    text = script("__hf_cache_offer_script").replace("/etc/ssh/", f"{home}/")
    argv = ["sh", "-c", text, "sh", str(blobs), str(HOUR), tag, "123", "456"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(home)})
    assert done.returncode == 0, done.stderr
    return said.offer(done.stdout.splitlines(), "here")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / "blobs").mkdir()
    key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "ssh_host_ed25519_key")]
    subprocess.run(key, check=True)
    return tmp_path


def test_an_offer_has_its_form_and_reads_as_the_owner(home: Path, tag: str) -> None:
    found = offered(home, tag, home / "blobs")
    assert found.folder.startswith(f"/tmp/hf_cache.{tag}.")
    settings = (Path(found.folder) / "rsyncd.conf").read_text()
    if os.geteuid() == 0:
        assert "uid = 123\ngid = 456\n" in settings
    assert f"path = {home / 'blobs'}\n" in settings


def line(folder: str, until: str) -> str:
    serve = f"rsync --config={folder}/rsyncd.conf --server --daemon ."
    return f'restrict,expiry-time="{until}",command="{serve}" ssh-ed25519 AAAA {folder}\n'


def test_what_another_fleet_offers_on_the_same_seed_stays_until_it_has_run_out(home: Path, tag: str) -> None:
    other = uuid.uuid4().hex[:8]
    begun, over = (Path(TMP / f"hf_cache.{other}.{name}") for name in ("begun111", "over1111"))
    left = TMP / f"hf_cache.{tag}.left1111"
    for folder in (begun, over, left):
        folder.mkdir()
    os.utime(over, (time.time() - 3 * HOUR,) * 2)
    mine = "ssh-ed25519 AAAA me@home\n"
    keys = home / ".ssh/authorized_keys"
    keys.write_text(
        mine + line(str(begun), "209901010000") + line(str(over), "202001010000") + line(str(left), "209901010000")
    )
    try:
        offered(home, tag, home / "blobs")
        assert (begun.exists(), over.exists(), left.exists()) == (True, False, False)
        assert keys.read_text() == mine + line(str(begun), "209901010000")
    finally:
        for folder in (begun, over, left):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("uid", [0, USER])
def test_a_key_belongs_to_the_owner_of_the_cache_and_the_seed_s_words_are_settings(uid: int, tag: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("making keys for another user needs root")
    words = ["sh", tag, str(HOUR), "10.0.0.1", "2222", "ops", *Owner(uid, uid).command]
    done = subprocess.run(
        ["sh", "-c", script("__hf_cache_key_script"), *words],
        capture_output=True,
        text=True,
        check=False,
        input="seed ssh-ed25519 AAAA",
    )
    assert done.returncode == 0, done.stderr
    made = said.key(done.stdout.splitlines(), "here")
    folder = Path(made.folder)
    assert {path.stat().st_uid for path in [folder, *folder.iterdir()]} == {uid}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {
        path.name: path.stat().st_mode & 0o077 for path in folder.iterdir() if path.suffix != ".pub"
    } == dict.fromkeys(("key", "known_hosts", "config"), 0)
    assert (folder / "known_hosts").read_text().strip() == "seed ssh-ed25519 AAAA"
    asked = subprocess.run(
        ["ssh", "-G", "-F", str(folder / "config"), "seed"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for setting in ("hostname 10.0.0.1", "port 2222", "user ops", "stricthostkeychecking true", "hostkeyalias seed"):
        assert setting in asked


def test_an_owner_without_a_name_on_the_node_is_told_before_a_key_is_made(tag: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("acting for another user needs root")
    words = ["sh", tag, str(HOUR), "10.0.0.1", "2222", "ops", *Owner(54321, 54321).command]
    done = subprocess.run(
        ["sh", "-c", script("__hf_cache_key_script"), *words], capture_output=True, text=True, check=False, input=""
    )
    assert done.returncode == 1
    assert "useradd -M -s /usr/sbin/nologin -u 54321 NAME" in done.stderr
    assert not list(TMP.glob(f"hf_cache.{tag}.*"))
