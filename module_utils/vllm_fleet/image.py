"""What an image reference must look like, which image on a node is the wanted one, and who can build it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Label of a built image: the hash of everything it was built from.
LABEL_BUILD_INPUTS = "io.vllm-fleet.build-inputs"

#: API version from which an engine on Linux builds with BuildKit when the client asks for it (Docker 18.09). The
#: ping's Builder-Version is only the engine's preference: 20.10 says 1 and builds with BuildKit all the same.
BUILDKIT_API = (1, 39)

SOURCES = ("pull", "build", "archive")

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"(?:(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Wanted:
    """The image as the user asks for it."""

    source: str
    name: str
    tag: str = ""
    tags: tuple[str, ...] = ()
    digest: str = ""
    build_inputs: str = ""
    archive: str = ""
    expected_id: str = ""
    allow_latest: bool = False

    @property
    def all_tags(self) -> tuple[str, ...]:
        """The main tag and the further ones, each once."""
        return tuple(dict.fromkeys(tag for tag in (self.tag, *self.tags) if tag))

    @property
    def ref(self) -> str:
        """How the image is asked for: by digest where there is one, else by tag."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def problems(wanted: Wanted) -> list[str]:
    """Say what is wrong with the request, one sentence each with the way out; empty when nothing is."""
    found = []
    if wanted.source not in SOURCES:
        found.append(f"vllm_image_source is {wanted.source!r}: expected one of {', '.join(SOURCES)}.")
    if not wanted.name:
        found.append("vllm_image_name is empty: expected a repository such as vllm/vllm-openai-rocm.")
    elif not _NAME.fullmatch(wanted.name):
        found.append(
            f"vllm_image_name is {wanted.name!r}: expected a repository without tag or digest, such as "
            "vllm/vllm-openai-rocm; the tag belongs in vllm_image_tag, the digest in vllm_image_digest."
        )
    if wanted.digest and not _DIGEST.fullmatch(wanted.digest):
        found.append(f"vllm_image_digest is {wanted.digest!r}: expected sha256: and 64 hexadecimal digits.")
    if wanted.digest and wanted.source != "pull":
        found.append(
            f"vllm_image_digest is set with vllm_image_source {wanted.source}: a digest names what a registry holds, "
            "so it goes with pull; for an archive set vllm_image_expected_id."
        )
    found += _tag_problems(wanted)
    if wanted.source == "archive" and not wanted.archive:
        found.append("vllm_image_archive is empty: expected the path of a `docker save` file on the node.")
    if wanted.expected_id and not _DIGEST.fullmatch(wanted.expected_id):
        found.append(f"vllm_image_expected_id is {wanted.expected_id!r}: expected sha256: and 64 hexadecimal digits.")
    return found


def _tag_problems(wanted: Wanted) -> list[str]:
    found = []
    if not wanted.tag and not (wanted.source == "pull" and wanted.digest):
        found.append(
            f"{wanted.name or 'the image'} has no tag, which Docker reads as `latest`: set vllm_image_tag to a fixed "
            "version such as v0.32.0" + (", or vllm_image_digest." if wanted.source == "pull" else ".")
        )
    for variable, tag in [("vllm_image_tag", wanted.tag), *(("vllm_image_tags", tag) for tag in wanted.tags)]:
        if tag == "latest" and not wanted.allow_latest:
            found.append(
                f"{variable} asks for {wanted.name}:latest, which means another image tomorrow: pin a version tag such "
                "as v0.32.0, or the digest that `docker image inspect --format '{{index .RepoDigests 0}}' "
                f"{wanted.name}:latest` tells where it runs today, as vllm_image_digest; "
                "vllm_image_allow_latest: true takes it as it comes."
            )
        elif tag and not _TAG.fullmatch(tag):
            found.append(f"{variable} is {tag!r}: expected letters, digits, dots, dashes and underscores, at most 128.")
    return found


def is_wanted(wanted: Wanted, inspected: Mapping[str, Any], archive_ids: Iterable[str] = ()) -> str | None:
    """Tell why an image (`docker image inspect`) is not the wanted one; None when it is.

    ``archive_ids`` are the ids that the archive would load as.
    """
    image_id = str(inspected["Id"])
    if wanted.source == "build":
        label = ((inspected.get("Config") or {}).get("Labels") or {}).get(LABEL_BUILD_INPUTS)
        if not label:
            return "it was not built by this role"
        if label != wanted.build_inputs:
            return f"it was built from other inputs ({label[:12]}, expected {wanted.build_inputs[:12]})"
    elif wanted.source == "archive":
        known = [wanted.expected_id] if wanted.expected_id else list(archive_ids)
        if known and image_id not in known:
            return f"it is {image_id[7:19]}, the archive holds {known[0][7:19]}"
    elif wanted.digest and wanted.digest not in {image_id, *repo_digests(wanted.name, inspected)}:
        return f"it is not {wanted.digest}"
    return None


def repo_digests(name: str, inspected: Mapping[str, Any]) -> list[str]:
    """Digests under which registries know the image by that name (``docker.io/`` left out as Docker does)."""
    short = re.sub(r"^docker\.io/(library/)?", "", name)
    found = [str(entry).rpartition("@") for entry in inspected.get("RepoDigests") or []]
    return [digest for repo, _, digest in found if repo in (name, short)]


def archive_image_ids(manifest: str | None, index: str | None) -> list[str]:
    """Ids as which `docker load` may know an archive's images.

    ``manifest`` is manifest.json (Docker's own: its Config names the id of the classic image store), ``index`` is
    index.json (OCI layout: manifest digests, the ids of the containerd image store).
    """
    ids = []
    for entry in json.loads(manifest) if manifest else []:
        # <hex>.json up to Docker 24, blobs/sha256/<hex> from 25 on
        config = re.search(r"([0-9a-f]{64})(?:\.json)?$", str(entry.get("Config", "")))
        if config:
            ids.append(f"sha256:{config.group(1)}")
    for entry in (json.loads(index).get("manifests") or []) if index else []:
        ids.append(str(entry["digest"]))
    return ids


@dataclass(frozen=True)
class Client:
    """A `docker` command of the node: its path, version and whether it has the buildx plugin."""

    path: str
    version: str
    buildx: bool


def choose_client(clients: Sequence[Client], api_version: tuple[int, int]) -> tuple[str, bool]:
    """Choose the client to build with: (path, with BuildKit). The first on PATH wins among equals; "" for none.

    A client before 23 has BuildKit built in; a newer one only with the buildx plugin, and without it falls back to
    the classic builder, which knows no mounts in RUN.
    """
    for client in clients if api_version >= BUILDKIT_API else ():
        major = re.match(r"\d+", client.version)
        if client.buildx or (major and int(major.group()) < 23):
            return client.path, True
    return (clients[0].path if clients else ""), False
