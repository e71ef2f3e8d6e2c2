# SPDX-License-Identifier: Apache-2.0
"""Image references, finding the wanted image, choosing a client; tables."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from ansible.module_utils.vllm_fleet.container.api import registry_auth, registry_of
from ansible.module_utils.vllm_fleet.container.image import (
    LABEL_BUILD_INPUTS,
    LABEL_REPOSITORY,
    Archived,
    Client,
    Wanted,
    archived_images,
    choose_client,
    chosen,
    content_id,
    is_wanted,
    misnamed,
    problems,
    prunable,
    replacement,
    repo_digests,
)

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
ROCM = "vllm/vllm-openai-rocm"


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted("pull", ROCM, "v0.32.0"),
        Wanted("pull", ROCM, digest=A),
        Wanted("pull", ROCM, "v0.32.0", digest=A),
        Wanted("pull", ROCM, "latest", allow_latest=True),
        Wanted("pull", "registry.lan:5000/team/vllm_rocm", "7.0-py3"),
        Wanted("pull", "[fd00::1]:5000/vllm", "1"),
        Wanted("build", "vllm-cpu", "0.32.0", ("0.32.0-1", "stable")),
        Wanted("archive", "vllm", "1", archive="/srv/vllm.tar"),
    ],
)
def test_a_fixed_image_is_accepted(wanted: Wanted) -> None:
    assert problems(wanted) == []


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted("pull", ROCM, "latest"), [f"asks for {ROCM}:latest", "RepoDigests", "vllm_image_allow_latest: true"]),
        (Wanted("pull", ROCM), ["has no tag", "reads as `latest`", "vllm_image_digest"]),
        (Wanted("build", "vllm-cpu"), ["vllm-cpu has no tag", "set vllm_image_tag"]),
        (Wanted("pull", ROCM, digest=A, tags=("latest",)), ["vllm_image_tags asks for"]),
        (Wanted("pull", f"{ROCM}:v0.32.0", "v0.32.0"), ["vllm_image_name is", "tag belongs in vllm_image_tag"]),
        (Wanted("pull", f"{ROCM}@{A}", "v0.32.0"), ["digest in vllm_image_digest"]),
        (Wanted("pull", "Vllm/Rocm", "1"), ["vllm_image_name is 'Vllm/Rocm'"]),
        (Wanted("pull", "", "1"), ["vllm_image_name is empty"]),
        (Wanted("pull", ROCM, "v 1"), ["vllm_image_tag is 'v 1'"]),
        (Wanted("pull", ROCM, "v1", digest="sha256:abc"), ["64 hexadecimal digits"]),
        (Wanted("build", "x", "1", digest=A), ["goes with pull"]),
        (Wanted("archive", "x", "1"), ["vllm_image_archive is empty"]),
        (Wanted("archive", "x", "1", archive="/x", expected_id="abc"), ["vllm_image_expected_id is 'abc'"]),
        (Wanted("magic", "x", "1"), ["vllm_image_source is 'magic'", "pull, build, archive"]),
    ],
)
def test_anything_else_is_refused_with_the_way_out(wanted: Wanted, words: list[str]) -> None:
    said = problems(wanted)
    assert len(said) == 1, said
    assert all(word in said[0] for word in words), said


def image(image_id: str = A, digests: tuple[str, ...] = (), label: str | None = None) -> dict[str, Any]:
    labels = {LABEL_BUILD_INPUTS: label} if label else None
    return {"Id": image_id, "RepoDigests": list(digests), "Config": {"Labels": labels}}


@pytest.mark.parametrize(
    ("wanted", "inspected", "archived", "reason"),
    [
        (Wanted("build", "x", "1", build_inputs="h1"), image(label="h1"), [], None),
        (Wanted("build", "x", "1", build_inputs="h1"), image(label="h2"), [], "other inputs (h2, expected h1)"),
        (Wanted("build", "x", "1", build_inputs="h1"), image(), [], "not built by this role"),
        (Wanted("archive", "x", "1", archive="/x"), image(A), [Archived((A,), (), "")], None),
        # another store, another id, the same content
        (Wanted("archive", "x", "1", archive="/x"), image(A), [Archived((B,), (), content_id(image()))], None),
        (
            Wanted("archive", "x", "1", archive="/x"),
            image(B),
            [Archived((A,), (), "")],
            "it is bbbbbbbbbbbb, the archive holds aaaaaaaaaaaa",
        ),
        (Wanted("archive", "x", "1", archive="/x", expected_id=B), image(B), [], None),
        (Wanted("pull", ROCM, digest=B), image(A, (f"{ROCM}@{B}",)), [], None),
        (Wanted("pull", f"docker.io/{ROCM}", digest=B), image(A, (f"{ROCM}@{B}",)), [], None),
        (
            Wanted("build", "x", "1", build_inputs="h", content=content_id(image(label="h"))),
            image(B, label="h"),
            [],
            None,
        ),
        (
            Wanted("build", "x", "1", build_inputs="h", content=A),
            image(B, label="h"),
            [],
            "the other nodes have another",
        ),
        # in the containerd image store the id is the digest
        (Wanted("pull", ROCM, digest=B), image(B), [], None),
        (Wanted("pull", ROCM, "v1", digest=B), image(A, (f"other@{B}",)), [], f"it is not {B}"),
        (Wanted("pull", ROCM, "v1"), image(A), [], None),
    ],
)
def test_is_wanted(wanted: Wanted, inspected: dict[str, Any], archived: list[Archived], reason: str | None) -> None:
    found = is_wanted(wanted, inspected, archived)
    assert found is None if reason is None else reason in str(found)


ARCHIVED = [{"ids": [], "names": ["x:1"]}, {"ids": ["sha256:a", "sha256:b"], "names": []}]


@pytest.mark.parametrize(
    ("digest", "expected_id", "archived", "found"),
    [
        ("sha256:d", "sha256:e", ARCHIVED, "sha256:d"),
        ("", "sha256:e", ARCHIVED, "sha256:e"),
        ("", "", ARCHIVED, "sha256:a"),
        ("", "", [{"ids": []}], ""),
        ("", "", [], ""),
    ],
)
def test_what_replaces_the_image(digest: str, expected_id: str, archived: list[dict[str, Any]], found: str) -> None:
    assert replacement({"digest": digest}, expected_id=expected_id, archived=archived) == found


def test_repo_digests_are_those_of_the_name() -> None:
    assert repo_digests("vllm", image(A, (f"vllm@{A}", f"lan:5000/vllm@{B}"))) == [A]
    assert repo_digests("lan:5000/vllm", image(A, (f"vllm@{A}", f"lan:5000/vllm@{B}"))) == [B]


@pytest.mark.parametrize(
    ("manifest", "index", "ids"),
    [
        ([{"Config": "a" * 64 + ".json"}], None, [A]),  # docker save, 20.10 to 24
        ([{"Config": "blobs/sha256/" + "a" * 64}], {"manifests": [{"digest": B}]}, [A, B]),  # from 25 on
        (None, {"manifests": [{"digest": B}]}, [B]),  # OCI layout
        ([], {}, []),
    ],
)
def test_ids_of_archived_images(manifest: Any, index: Any, ids: list[str]) -> None:
    texts = (None if value is None else json.dumps(value) for value in (manifest, index))
    assert [one for entry in archived_images(*texts, {}) for one in entry.ids] == ids


def test_an_image_is_known_by_its_content_in_an_archive_and_in_either_store() -> None:
    config = {"Env": ["A=1"], "Entrypoint": ["vllm", "serve"], "Labels": {"b": "2", "a": "1"}}
    classic = {
        "Id": A,
        "Created": "2026-11-24T05:00:00.12Z",
        "Os": "linux",
        "Architecture": "amd64",
        "RootFS": {"Type": "layers", "Layers": [A, B]},
        "Config": {**config, "Hostname": "", "Cmd": None, "Image": ""},
    }
    containerd = {**classic, "Id": B, "Created": "2026-11-24T05:00:00.120000000Z", "Config": config}
    text = {"created": "2026-11-24T05:00:00.12Z", "os": "linux", "architecture": "amd64", "config": config}
    text["rootfs"] = {"type": "layers", "diff_ids": [A, B]}
    manifest = [{"Config": "c.json", "RepoTags": ["x:1"]}, {"Config": "d.json", "RepoTags": ["y:1"]}]
    held = archived_images(json.dumps(manifest), None, {"c.json": json.dumps(text), "d.json": "{}"})
    assert held[0].content == content_id(classic) == content_id(containerd) != held[1].content
    assert content_id({**classic, "Config": {**config, "Entrypoint": None}}) != content_id(classic)
    assert chosen(held, "y:1") == held[1:] and chosen(held, "z:1") == held


@pytest.mark.parametrize(
    ("names", "expected_id", "said"),
    [
        ([["x:1"]], "", None),
        ([["registry:5000/team/x:1"]], "", None),  # another place of the same
        ([["x:2"]], "", ("x:2", "set vllm_image_name: x and vllm_image_tag: 2, or the id")),
        ([["r:5/x:2"]], "", ("r:5/x:2", "set vllm_image_name: r:5/x and vllm_image_tag: 2, or the id")),
        ([["x:2"], ["x:3"]], "", ("x:2, x:3", "name one of them, or the id")),
        ([["x:2"], ["y:1"]], "", None),
        ([["x:2"]], A, None),  # it says which image is meant
        ([[]], "", None),  # saved by its id
        ([["x:2"], []], "", None),
        ([["x:stable"]], "", None),  # one of vllm_image_tags
        ([], "", None),
    ],
)
def test_an_archive_of_another_tag(names: list[list[str]], expected_id: str, said: tuple[str, str] | None) -> None:
    wanted = Wanted("archive", "x", "1", ("stable",), archive="/a.tar", expected_id=expected_id)
    found = misnamed(wanted, [Archived((A,), tuple(one), "") for one in names])
    assert (found is None) == (said is None)
    if found and said:
        assert found[0] == said[0] and found[1].startswith(said[1])


def row(letter: str, *names: str, label: str = "", created: int = 0) -> dict[str, Any]:
    tags = [name for name in names if "@" not in name] or ["<none>:<none>"]
    digests = [name for name in names if "@" in name]
    labels = {LABEL_REPOSITORY: label} if label else None
    return {"Id": letter, "RepoTags": tags, "RepoDigests": digests, "Labels": labels, "Created": created}


@pytest.mark.parametrize(
    ("rows", "held", "tagged", "gone"),
    [
        # the current one stays, and one more as the previous
        ([row("c", "v:3"), row("b", "v:2", created=2), row("a", "v:1", created=1)], set(), {}, {"a": ["v:1"]}),
        # the previous is the one that was tagged last, not the one that was made last
        (
            [row("c", "v:3"), row("b", "v:2", created=2), row("a", "v:1", created=1)],
            set(),
            {"a": "2026-01"},
            {"b": ["v:2"]},
        ),
        # the image of a container or of a recorded release is the previous one
        ([row("c", "v:3"), row("b", "v:2"), row("a", "v:1")], {"a"}, {}, {"b": ["v:2"]}),
        ([row("c", "v:3"), row("b", "v:2"), row("a", "v:1")], {"a", "b", "c"}, {}, {}),
        ([row("c", "v:3"), row("a", "v:1")], {"c"}, {}, {}),
        # one with a name elsewhere is another's, as is one without a name and label
        ([row("c", "v:3"), row("b", "v:2", "w:1"), row("a"), row("d", "w:2")], {"c", "x"}, {}, {}),
        ([row("c", "v:3"), row("p", "v:2"), row("a", label="v"), row("b", label="w")], {"p"}, {}, {"a": []}),
        # all its names go, by name: never by force
        (
            [row("c", "v:3"), row("p", "v:2"), row("a", "v:1", "v:1-s", "v@sha")],
            {"p"},
            {},
            {"a": ["v:1", "v:1-s", "v@sha"]},
        ),
        ([row("c", "v:3")], set(), {}, {}),
    ],
)
def test_pruning_keeps_the_current_and_the_previous(rows: Any, held: Any, tagged: Any, gone: Any) -> None:
    assert dict(prunable(rows, "v", "c", held, tagged)) == gone


@pytest.mark.parametrize(
    ("clients", "api", "chosen"),
    [
        ([], (1, 41), ("", False)),
        ([Client("/a", "20.10.24", False)], (1, 41), ("/a", True)),
        ([Client("/a", "28.2.2", False)], (1, 47), ("/a", False)),
        ([Client("/a", "28.2.2", True)], (1, 47), ("/a", True)),
        # a newer client without buildx first on PATH, the distribution's behind it
        ([Client("/a", "28.2.2", False), Client("/b", "20.10.24", False)], (1, 41), ("/b", True)),
        ([Client("/a", "20.10.24", False)], (1, 38), ("/a", False)),
        ([Client("/a", "", False)], (1, 41), ("/a", False)),
    ],
)
def test_choose_client(clients: list[Client], api: tuple[int, int], chosen: tuple[str, bool]) -> None:
    assert choose_client(clients, api) == chosen


@pytest.mark.parametrize(
    ("ref", "registry"),
    [
        ("ubuntu:24.04", "docker.io"),
        ("vllm/vllm-openai-rocm:v1", "docker.io"),
        ("lan:5000/vllm:1", "lan:5000"),
        ("ghcr.io/a/b", "ghcr.io"),
        ("localhost/vllm", "localhost"),
    ],
)
def test_registry_of(ref: str, registry: str) -> None:
    assert registry_of(ref) == registry


def test_registry_auth_reads_what_docker_login_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.json"
    assert registry_auth("lan:5000", config) is None
    token = base64.b64encode(b"me:pass:word").decode()
    config.write_text(json.dumps({"auths": {"lan:5000": {"auth": token}}}), encoding="utf-8")
    assert registry_auth("lan:5000", config) == {"username": "me", "password": "pass:word", "serveraddress": "lan:5000"}
    assert registry_auth("docker.io", config) is None

    helper = tmp_path / "docker-credential-test"
    helper.write_text('#!/bin/sh\nread -r key; echo "{\\"Username\\": \\"$key\\", \\"Secret\\": \\"s\\"}"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    config.write_text(json.dumps({"credsStore": "test"}), encoding="utf-8")
    assert registry_auth("docker.io", config) == {
        "username": "https://index.docker.io/v1/",
        "password": "s",
        "serveraddress": "docker.io",
    }
