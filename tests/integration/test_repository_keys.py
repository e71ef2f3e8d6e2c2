# SPDX-License-Identifier: Apache-2.0
"""Whom apt trusts after the role apt_keyring: with real gpg and the apt of this machine, for files that hold more than one key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from aptrepo import build as aptrepo

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("apt-get") and shutil.which("gpg")), reason="takes root, apt and gpg"
)


def files(genuine, stranger) -> dict[str, tuple[bytes, bool]]:
    """Name -> what was fetched, and whether the role takes it; `genuine` and `stranger` give their key as text."""
    good, bad = genuine("--armor", "--export"), stranger("--armor", "--export")
    secret = stranger("--armor", "--export-secret-keys")
    # gpg does not list these blocks, and an apt that verifies by apt-key reads them.
    message, other = (bad.replace("PUBLIC KEY BLOCK", word) for word in ("MESSAGE", "X"))
    found = {
        "alone": (good, True),
        "strange alone": (bad, False),
        "both plainly": (good + bad, False),
        "strange first": (bad + good, False),
        "secret key beside": (good + secret, False),
        "nothing": ("", False),
        "message last": (good + message, True),
        "message first": (message + good, True),
        "other block first": (other + good, True),
        "no key": ("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nnonsense\n-----END PGP PUBLIC KEY BLOCK-----\n", False),
    }
    return {name: (text.encode(), taken) for name, (text, taken) in found.items()}


def repository(folder: Path, key: aptrepo.Key) -> None:
    (folder / "dists/s/main/binary-amd64").mkdir(parents=True)
    (folder / "dists/s/main/binary-amd64/Packages").touch()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    when = subprocess.run(["date", "-Ru"], capture_output=True, text=True, check=True).stdout.strip()
    (folder / "dists/s/Release").write_text(
        f"Origin: Docker\nSuite: s\nCodename: s\nComponents: main\nArchitectures: amd64\nDate: {when}\nSHA256:\n"
        f" {empty} 0 main/binary-amd64/Packages\n"
    )
    made = str(folder / "dists/s/InRelease")
    key.gpg("--local-user", key.fingerprint, "--output", made, "--clearsign", str(folder / "dists/s/Release"))


def trusts(folder: Path, keyring: Path, signed_by: str) -> bool:
    """Whether apt takes a repository whose entry names this keyring."""
    own = Path(tempfile.mkdtemp(dir=folder))
    (own / "lists/partial").mkdir(parents=True)
    (own / "archives/partial").mkdir(parents=True)
    (own / "parts").mkdir()
    (own / "list").write_text(f"deb [signed-by={keyring} arch=amd64] file:{folder}/{signed_by} s main\n")
    settings = {
        "Dir::Etc::sourcelist": own / "list",
        "Dir::Etc::sourceparts": own / "parts",
        "Dir::State::lists": own / "lists",
        "Dir::Cache": own,
        "APT::Sandbox::User": "root",
    }
    words = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    done = subprocess.run(["apt-get", "update", "--error-on=any", *words], capture_output=True, text=True, check=False)
    return done.returncode == 0


@pytest.fixture(scope="module")
def scene():
    """Two keys with a repository each, the files, and what the role made of each of them."""
    folder = Path(tempfile.mkdtemp(prefix="keys"))
    folder.chmod(0o755)
    keys = {
        name: aptrepo.make_key(folder / name[0], f"{name} <{name}@example.invalid>") for name in ("genuine", "stranger")
    }
    for name, key in keys.items():
        repository(folder / name, key)
    cases = files(keys["genuine"].gpg, keys["stranger"].gpg)
    hosts = {}
    for number, (name, (content, _)) in enumerate(cases.items()):
        (folder / f"{number}.asc").write_bytes(content)
        hosts[name.replace(" ", "_")] = {
            "apt_keyring_file": f"{folder}/{number}.asc",
            "apt_keyring_path": f"{folder}/{name.replace(' ', '_')}.gpg",
        }
    common = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "apt_keyring_fingerprints": [keys["genuine"].fingerprint],
        "apt_keyring_subject": "the key",
    }
    (folder / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": common}}))
    play = [{"hosts": "all", "gather_facts": False, "tasks": [{"import_role": {"name": "apt_keyring"}}]}]
    (folder / "play.yml").write_text(json.dumps(play))
    done = subprocess.run(
        ["ansible-playbook", "-i", folder / "inventory.yml", folder / "play.yml", "--forks", "4"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_STDOUT_CALLBACK": "default"},
        capture_output=True,
        text=True,
        check=False,
    )
    yield folder, cases, done.stdout + done.stderr
    for key in keys.values():
        subprocess.run(["gpgconf", "--homedir", key.home, "--kill", "all"], check=True, timeout=30)
    shutil.rmtree(folder)


def test_the_keys_as_they_came_would_let_a_stranger_in(scene):
    """On an apt that reads every block; newer ones do not, and then there is nothing to see here."""
    folder, cases, _ = scene
    path = folder / f"{list(cases).index('both plainly')}.asc"
    assert trusts(folder, path, "genuine") and trusts(folder, path, "stranger")


def test_a_file_with_another_key_is_refused_and_leaves_nothing(scene):
    folder, cases, said = scene
    made = {name for name in cases if (folder / f"{name.replace(' ', '_')}.gpg").exists()}
    assert made == {name for name, (_, taken) in cases.items() if taken}, said
    assert "it is not trusted" in said and "holds no OpenPGP key" in said


def test_apt_trusts_the_expected_key_alone_whatever_was_in_the_file(scene):
    folder, cases, said = scene
    for name, (_, taken) in cases.items():
        if taken:
            keyring = folder / f"{name.replace(' ', '_')}.gpg"
            assert (trusts(folder, keyring, "genuine"), trusts(folder, keyring, "stranger")) == (True, False), (
                name,
                said,
            )
    assert not list(Path("/run").glob("ansible.*.keyring"))
