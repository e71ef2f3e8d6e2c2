# SPDX-License-Identifier: Apache-2.0
"""The role vllm_image against the real engine: archive, build, pull from a real registry, refusals, a full disk."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import play
import pytest

from ansible.module_utils.vllm_fleet.container import find_image
from ansible.module_utils.vllm_fleet.container.api import DockerApi

pytestmark = pytest.mark.engine

LABEL = "io.vllm-fleet.test=vllm_image"
FACTS = ["vllm_image_id", "vllm_image_ref"]


def docker(*words: str, **kwargs: Any) -> str:
    return subprocess.run(["docker", *words], capture_output=True, check=True, **kwargs).stdout.decode().strip()


def image_id(ref: str) -> str:
    found = DockerApi().image(ref)
    return str(found["Id"]) if found else ""


@pytest.fixture
def name() -> Iterator[str]:
    """A repository name of this test alone; its images are removed afterwards."""
    made = f"vllm-image-test-{uuid.uuid4().hex[:8]}"
    yield made
    listed = docker("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines()
    for line in listed:
        ref, found = line.split()
        if made in ref:
            with contextlib.suppress(subprocess.CalledProcessError):
                docker("rmi", "--force", found if "<none>" in ref else ref)
    docker("image", "prune", "--force", "--filter", f"label={LABEL}")  # what lost its tag to another


def tiny(ref: str, content: str) -> str:
    """Import an image of one small file; its id."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("content")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content.encode()))
    return docker("import", "--change", f"LABEL {LABEL}", "-", ref, input=archive.getvalue())


def image(folder: Path, *more: str, tasks_from: str = "main", **variables: Any) -> play.Run:
    said = {"vllm_image_min_free_gib": 0.1, "vllm_image_build_min_free_gib": 0.1, **variables}
    return play.run(folder, [play.role("vllm_image", tasks_from)], said, *more, facts=FACTS)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tag", "entry"), [("latest", "main"), ("", "validate")])
def test_a_tag_that_moves_is_refused_before_anything_else(tmp_path: Path, tag: str, entry: str) -> None:
    run = image(tmp_path, tasks_from=entry, vllm_image_tag=tag, vllm_image_source="build", vllm_image_build_kind="cpu")
    assert run.rc != 0 and run.recap("changed") == 0
    assert "vllm/vllm-openai-rocm" in run.failed()
    assert ("pin a version tag" if tag else "set vllm_image_tag to a fixed version") in run.output


# -- archive -------------------------------------------------------------------------------------------------------


def test_archive_is_loaded_checked_and_tagged(tmp_path: Path, name: str) -> None:
    wanted = tiny(f"{name}:1", "one")
    archive = tmp_path / "image.tar"
    docker("save", "--output", str(archive), f"{name}:1")
    docker("rmi", f"{name}:1")
    variables = {"vllm_image_source": "archive", "vllm_image_name": name, "vllm_image_tag": "1"}
    variables["vllm_image_archive"] = str(archive)

    predicted = image(tmp_path, "--check", **variables).ok()
    assert predicted.recap("changed") == 1 and not image_id(f"{name}:1")
    first = image(tmp_path, **variables).ok()
    assert first.recap("changed") == 1
    assert first.facts == {"vllm_image_id": wanted, "vllm_image_ref": f"{name}:1"}
    assert image(tmp_path, **variables).ok().recap("changed") == 0

    # A further tag costs no second load; neither does a main tag that someone moved to another image.
    tiny(f"{name}:1", "two")
    again = image(tmp_path, "--diff", **{**variables, "vllm_image_tags": ["1-stable"]}).ok()
    assert again.recap("changed") == 1
    assert "Load the image" not in again.output
    assert re.search(rf"^\+\W*{name}:1\W+{wanted}", again.output, re.MULTILINE), again.output
    assert image_id(f"{name}:1") == image_id(f"{name}:1-stable") == wanted

    # An archive of another version is not taken for the one asked for, and a full disk is told by the variable.
    foreign = image(tmp_path, **{**variables, "vllm_image_tag": "2"}).failed()
    assert f"expected {name}:2, it holds {name}:1; set vllm_image_name: {name} and vllm_image_tag: 1" in foreign
    docker("rmi", "--force", wanted)
    full = image(tmp_path, **{**variables, "vllm_image_min_free_gib": 1e9}).failed()
    assert "needs 1000000000.0 GiB free under" in full and "or set vllm_image_min_free_gib" in full
    assert image(tmp_path, **{**variables, "vllm_image_min_free_gib": 0}).ok().recap("changed") == 1

    other = "sha256:" + "0" * 64
    refused = image(tmp_path, **{**variables, "vllm_image_expected_id": other}).failed()
    assert f"image {name}:1: it is {wanted[7:19]}, the archive holds 000000000000" in refused


def test_archive_that_is_none_or_compressed_is_told(tmp_path: Path, name: str) -> None:
    variables = {"vllm_image_source": "archive", "vllm_image_name": name, "vllm_image_tag": "1"}
    missing = image(tmp_path, **variables, vllm_image_archive=str(tmp_path / "none.tar")).failed()
    assert "none.tar" in missing and "No such file" in missing
    assert "if it is on the controller, set vllm_image_archive_location: controller" in missing
    packed = tmp_path / "packed.tar.gz"
    with tarfile.open(packed, "w:gz"):
        pass
    assert "set vllm_image_expected_id" in image(tmp_path, **variables, vllm_image_archive=str(packed)).failed()


# -- build ---------------------------------------------------------------------------------------------------------

DOCKERFILE = """\
FROM scratch AS vllm-openai
ARG GREETING
LABEL greeting=$GREETING io.vllm-fleet.test=vllm_image
COPY content /content
FROM vllm-openai AS other
LABEL other=yes
"""


def git(context: Path, *words: str) -> None:
    author = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    subprocess.run(["git", "-C", str(context), *author, *words], check=True, capture_output=True)


def test_build_of_a_checkout_with_arguments_and_several_tags(tmp_path: Path, name: str) -> None:
    context = tmp_path / "vllm"
    (context / "docker").mkdir(parents=True)
    (context / "docker" / "Dockerfile.rocm").write_text(DOCKERFILE, encoding="utf-8")
    (context / "content").write_text("one", encoding="utf-8")
    variables: dict[str, Any] = {"vllm_image_source": "build", "vllm_image_name": name, "vllm_image_tag": "v1"}
    variables |= {"vllm_image_tags": ["v1-abc"], "vllm_image_build_context": str(context)}
    variables["vllm_image_build_args"] = {"GREETING": "hello there"}

    assert "expected a git checkout" in image(tmp_path, **variables).failed()
    git(context, "init", "--quiet")
    git(context, "add", ".")
    git(context, "commit", "--quiet", "--message", "one")

    first = image(tmp_path, **variables).ok()
    assert first.recap("changed") == 1
    labels = (DockerApi().image(f"{name}:v1") or {})["Config"]["Labels"]
    assert labels["greeting"] == "hello there" and "other" not in labels
    assert image_id(f"{name}:v1") == image_id(f"{name}:v1-abc") == first.facts["vllm_image_id"]
    assert image(tmp_path, **variables).ok().recap("changed") == 0

    # What is not committed counts as well.
    (context / "content").write_text("two", encoding="utf-8")
    second = image(tmp_path, **variables).ok()
    assert second.recap("changed") == 1 and second.facts["vllm_image_id"] != first.facts["vllm_image_id"]

    targeted = image(tmp_path, **{**variables, "vllm_image_build_target": "other"}).ok()
    assert targeted.recap("changed") == 1
    assert (DockerApi().image(f"{name}:v1") or {})["Config"]["Labels"]["other"] == "yes"


def test_a_build_that_fails_tells_its_last_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY no-such-file /\n", encoding="utf-8")
    run = image(
        tmp_path,
        vllm_image_source="build",
        vllm_image_name=name,
        vllm_image_tag="1",
        vllm_image_build_context=str(tmp_path),
        vllm_image_build_dockerfile="Dockerfile",
        vllm_image_build_target="",
        vllm_image_build_revision="test",
    )
    assert f"building {name}:1: failed with exit code 1" in run.failed()
    assert "no-such-file" in run.output


def test_too_little_space_is_told_before_the_build_starts(tmp_path: Path, name: str) -> None:
    run = image(
        tmp_path,
        vllm_image_source="build",
        vllm_image_name=name,
        vllm_image_tag="1",
        vllm_image_build_context=str(tmp_path),
        vllm_image_build_revision="test",
        vllm_image_build_min_free_gib=1e9,
    )
    assert f"building {name}:1 needs 1000000000.0 GiB free under" in run.failed()
    assert run.recap("changed") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which takes root")
def test_a_full_cache_disk_is_told_before_the_base_is_made(tmp_path: Path, name: str) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(small)], check=True)
    try:
        other = {"vllm_image_base_name": name, "vllm_image_base_packages": ["python3-minimal"]}
        run = image(tmp_path, tasks_from="base", **other, vllm_image_cache_path=str(small / "cache"))
        assert f"needs 2.0 GiB free under {small}/cache, which has 0.0 GiB" in run.failed()
        assert not list(small.glob("cache/*.tar*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


# -- pull ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry_program() -> str:
    """Debian's docker-registry, unpacked beside the system: nothing is installed and no service started."""
    found = shutil.which("docker-registry")
    if found:
        return found
    cache = Path(os.environ.get("VLLM_FLEET_CACHE") or "~/.cache/vllm-fleet").expanduser() / "docker-registry"
    program = cache / "usr/bin/docker-registry"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        for attempt in (["true"], ["apt-get", "update", "--quiet"]):
            subprocess.run(attempt, check=True, capture_output=True)
            if not subprocess.run(["apt-get", "download", "docker-registry"], cwd=cache, check=False).returncode:
                break
        (package,) = cache.glob("docker-registry_*.deb")
        subprocess.run(["dpkg-deb", "--extract", str(package), str(cache)], check=True)
        package.unlink()
    return str(program)


class Registry:
    """A registry on a loopback port, which every engine takes as one that needs no TLS."""

    def __init__(self, program: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.host = f"127.0.0.1:{self.port}"
        self._program = program
        self._folder = folder
        self._config = folder / "registry.yml"
        self._config.write_text(
            f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/data\nhttp:\n  addr: {self.host}\n",
            encoding="utf-8",
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "registry.log").open("ab") as log:
            self._process = subprocess.Popen([self._program, "serve", str(self._config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"http://{self.host}/v2/", timeout=2).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, "the registry did not start"
                time.sleep(0.1)

    def stop(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)
            self._process = None


@pytest.fixture
def registry(registry_program: str, tmp_path: Path) -> Iterator[Registry]:
    made = Registry(registry_program, tmp_path)
    made.start()
    yield made
    made.stop()


def push(ref: str, content: str) -> str:
    """Push a tiny image and forget it here; the digest the registry gave it."""
    tiny(ref, content)
    docker("push", ref)
    digest = docker("inspect", "--format", "{{index .RepoDigests 0}}", ref).rpartition("@")[2]
    docker("rmi", ref)
    return digest


def probed(repository: str, *, resolve: bool) -> dict[str, Any]:
    """What preflight's probe of a node finds of the tag v1."""
    options = {name: option.get("default") for name, option in find_image.ARGUMENTS.items()}
    wanted = find_image.parse({**options, "name": repository, "source": "pull", "tag": "v1"})
    return find_image.probe(DockerApi("/var/run/docker.sock"), *wanted, resolve=resolve)


def test_pull_by_tag_follows_the_registry_and_by_digest_does_not(tmp_path: Path, name: str, registry: Registry) -> None:
    repository = f"{registry.host}/{name}"
    first_digest = push(f"{repository}:v1", "one")
    by_tag = {"vllm_image_name": repository, "vllm_image_tag": "v1"}

    first = image(tmp_path, **by_tag).ok()
    assert first.recap("changed") == 2  # pulled by digest, then tagged
    assert first.facts["vllm_image_ref"] == f"{repository}@{first_digest}"
    assert image_id(f"{repository}:v1") == first.facts["vllm_image_id"]
    asked = probed(repository, resolve=True)
    assert (asked["present"], asked["resolved"], asked["digest"]) == (True, True, first_digest)

    # The tag moves: that is a difference, and what was there stays beside it.
    moved = push(f"{repository}:v1", "two")
    docker("tag", first.facts["vllm_image_id"], f"{repository}:v1")
    assert probed(repository, resolve=True)["present"] is False
    assert probed(repository, resolve=False)["present"] is True  # what only the registry knows
    predicted = image(tmp_path, "--check", **by_tag).ok()
    assert predicted.recap("changed") == 1
    second = image(tmp_path, **by_tag).ok()
    assert second.recap("changed") == 2
    assert second.facts["vllm_image_ref"] == f"{repository}@{moved}"
    assert second.facts["vllm_image_id"] == image_id(f"{repository}:v1") != first.facts["vllm_image_id"]
    assert image_id(first.facts["vllm_image_id"])

    # By digest the registry is not even asked when the image is there.
    registry.stop()
    with pytest.raises(find_image.ImageError):
        probed(repository, resolve=True)
    pinned = image(tmp_path, **by_tag, vllm_image_digest=first_digest).ok()
    assert pinned.facts["vllm_image_id"] == first.facts["vllm_image_id"]
    assert image_id(f"{repository}:v1") == first.facts["vllm_image_id"]

    # By tag it is, and says so when it does not answer; the node's own image goes on.
    silent = image(tmp_path, **by_tag).ok()
    assert silent.recap("changed") == 0
    assert "set vllm_image_digest so that all nodes surely get the same" in silent.output
    docker("rmi", "--force", first.facts["vllm_image_id"])
    docker("rmi", "--force", second.facts["vllm_image_id"])
    assert f"pulling {repository}:v1: failed with exit code 1" in image(tmp_path, **by_tag).failed()
