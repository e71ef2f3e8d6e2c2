# SPDX-License-Identifier: Apache-2.0
"""What an image reference must look like, which image on a node is the wanted one, and who can build it. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..common import received

#: Label of a built image: the hash of everything it was built from.
LABEL_BUILD_INPUTS = "io.vllm-fleet.build-inputs"
#: Label of a built image: its repository, by which it is known when its tag has moved on.
LABEL_REPOSITORY = "io.vllm-fleet.repository"

#: API version from which an engine on Linux builds with BuildKit when the client asks for it (Docker 18.09). The
#: ping's Builder-Version is only the engine's preference: 20.10 says 1 and builds with BuildKit all the same.
BUILDKIT_API = (1, 39)

SOURCES = ("pull", "build", "archive")

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"(?:(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

#: The parts of an image's configuration that decide how it runs (OCI image specification, config.md, "config").
_CONFIG = ("Env", "Entrypoint", "Cmd", "User", "WorkingDir", "Labels", "ExposedPorts", "Volumes", "StopSignal")


@dataclass(frozen=True)
class Archived:
    """One image of a `docker save` archive: the ids and names it may have when loaded, and what it is."""

    ids: tuple[str, ...]
    names: tuple[str, ...]
    content: str


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
    content: str = ""

    @property
    def all_tags(self) -> tuple[str, ...]:
        """The main tag and the further ones, each once."""
        return tuple(dict.fromkeys(tag for tag in (self.tag, *self.tags) if tag))

    @property
    def ref(self) -> str:
        """How the image is asked for: by digest where there is one, else by tag."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def problems(wanted: Wanted) -> list[str]:
    """Return what is wrong with the request, one sentence each with the way out; empty when nothing is."""
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
        found.append("vllm_image_archive is empty: expected the path of a `docker save` file.")
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
                f"{wanted.name}:latest` prints on a machine that runs it, as vllm_image_digest; "
                "vllm_image_allow_latest: true takes it as it comes."
            )
        elif tag and not _TAG.fullmatch(tag):
            found.append(f"{variable} is {tag!r}: expected letters, digits, dots, dashes and underscores, at most 128.")
    return found


def is_wanted(wanted: Wanted, inspected: Mapping[str, Any], archived: Sequence[Archived] = ()) -> str | None:
    """Return why an image (`docker image inspect`) is not the wanted one; None when it is.

    ``archived`` are the images that the archive holds.
    """
    image_id = str(inspected["Id"])
    reason = None
    if wanted.source == "build":
        label = ((inspected.get("Config") or {}).get("Labels") or {}).get(LABEL_BUILD_INPUTS)
        if not label:
            reason = "it was not built by this role"
        elif label != wanted.build_inputs:
            reason = f"it was built from other inputs ({label[:12]}, expected {wanted.build_inputs[:12]})"
    elif wanted.source == "archive" and (wanted.expected_id or archived):
        known = wanted.expected_id or next(iter(archived[0].ids), "")
        content = "" if wanted.expected_id else content_id(inspected)
        same = [entry for entry in archived if image_id in entry.ids or entry.content == content]
        if image_id != known and not same:
            reason = f"it is {image_id[7:19]}, the archive holds {known[7:19]}"
    elif wanted.digest and wanted.digest not in {image_id, *repo_digests(wanted.name, inspected)}:
        reason = f"it is not {wanted.digest}"
    if not reason and wanted.content and wanted.content != content_id(inspected):
        reason = f"it is {image_id[7:19]}, and the other nodes have another image of the same inputs"
    return reason


def replacement(probe: Mapping[str, Any], *, expected_id: str = "", archived: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the digest or id of the image that a pull or load brings, as far as it is known; an empty string if not.

    ``probe`` is what vllm_image returned, ``archived`` its account of the archive's images.
    """
    ids = [image_id for entry in archived for image_id in entry["ids"]]
    return str(probe["digest"] or expected_id or next(iter(ids), ""))


def content_id(inspected: Mapping[str, Any]) -> str:
    """Return one hash for what an image is: layers, platform, creation time, configuration.

    `docker image inspect`'s Id is the configuration's digest in the classic image store and the manifest's digest in
    the containerd store (Docker 23 and later, when switched on): the same image has two ids on two such nodes. What
    goes in here is what both stores show of it.
    """
    config = inspected.get("Config") or {}
    kept = {key: config[key] for key in _CONFIG if config.get(key)}
    parts = [
        (inspected.get("RootFS") or {}).get("Layers") or [],
        inspected.get("Os", ""),
        inspected.get("Architecture", ""),
        str(inspected.get("Created", ""))[:19],  # fractions of a second are written in more than one way
        kept,
    ]
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def repo_digests(name: str, inspected: Mapping[str, Any]) -> list[str]:
    """Digests under which registries know the image by that name (``docker.io/`` left out as Docker does)."""
    short = re.sub(r"^docker\.io/(library/)?", "", name)
    found = [str(entry).rpartition("@") for entry in inspected.get("RepoDigests") or []]
    return [digest for repo, _, digest in found if repo in (name, short)]


def config_member(entry: Mapping[str, Any]) -> str:
    """Return the archive's member with an image's configuration; ``entry`` is one of manifest.json."""
    return str(entry.get("Config", ""))


def archived_images(manifest: str | None, index: str | None, configs: Mapping[str, str]) -> list[Archived]:
    """Return which images an archive holds.

    ``manifest`` is manifest.json (Docker's own: its Config names the id of the classic image store), ``index`` is
    index.json (OCI layout: manifest digests, the ids of the containerd image store), ``configs`` the texts of the
    members that ``config_member`` names.
    """
    found = []
    digests = tuple(str(entry["digest"]) for entry in (received.parsed(index).get("manifests") or [])) if index else ()
    entries = received.parsed(manifest) if manifest else []
    for entry in entries:
        # <hex>.json up to Docker 24, blobs/sha256/<hex> from 25 on
        config = re.search(r"([0-9a-f]{64})(?:\.json)?$", config_member(entry))
        ids = (f"sha256:{config.group(1)}",) if config else ()
        text = configs.get(config_member(entry))
        content = ""
        if text:
            told = received.parsed(text)
            layers = (told.get("rootfs") or {}).get("diff_ids")
            content = content_id(
                {
                    "RootFS": {"Layers": layers},
                    "Os": told.get("os", ""),
                    "Architecture": told.get("architecture", ""),
                    "Created": told.get("created", ""),
                    "Config": told.get("config"),
                }
            )
        # Which manifest of the index belongs to which entry is only sure when there is one of each.
        more = digests if len(entries) == 1 else ()
        found.append(Archived((*ids, *more), tuple(map(str, entry.get("RepoTags") or ())), content))
    return found or [Archived((digest,), (), "") for digest in digests]


def chosen(archived: Sequence[Archived], ref: str) -> list[Archived]:
    """Choose the images of an archive that may be meant by ``ref``: those of that name, of that tag, or all."""
    tag = ref.rpartition(":")[2]
    return (
        [entry for entry in archived if ref in entry.names]
        or [entry for entry in archived if any(name.rpartition(":")[2] == tag for name in entry.names)]
        or list(archived)
    )


def misnamed(wanted: Wanted, archived: Sequence[Archived]) -> tuple[str, str] | None:
    """Tell that an archive holds other tags than the one asked for: what it holds, and what to set. Else None.

    An image under another version's tag is believed to be that version. Another repository is only another place, and
    an image that was saved by its id has no name to compare. An id that was asked for says what is meant.
    """
    names = sorted({name for entry in archived for name in entry.names})
    if wanted.expected_id or not names or not all(entry.names for entry in archived):
        return None
    if any(name.rpartition(":")[2] in wanted.all_tags for name in names):
        return None
    name, _, tag = names[0].rpartition(":")
    way_out = f"set vllm_image_name: {name} and vllm_image_tag: {tag}" if len(names) == 1 else "name one of them"
    return ", ".join(names), f"{way_out}, or the id of the image that is meant as vllm_image_expected_id"


def prunable(
    rows: Sequence[Mapping[str, Any]], name: str, current: str, held: set[str], last_tagged: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    """Choose what may go: (id, names) of each image, newest first; the current and the previous stay.

    ``rows`` are the engine's list of images. An image is looked at when all its names are of the repository ``name``,
    or it has none left and its label says so. ``held`` are ids that containers or recorded releases need; when none
    of them is another image of the repository, the newest by ``last_tagged`` (RFC 3339, by id) is the previous one.
    """
    ours = [row for row in rows if belongs(row, name)]
    rest = [row for row in ours if row["Id"] != current and row["Id"] not in held]
    rest.sort(key=lambda row: (last_tagged.get(str(row["Id"]), ""), int(row.get("Created") or 0)), reverse=True)
    if not any(row["Id"] in held and row["Id"] != current for row in ours):
        rest = rest[1:]
    return [(str(row["Id"]), _names(row)) for row in rest]


def _names(row: Mapping[str, Any]) -> list[str]:
    names = [*(row.get("RepoTags") or []), *(row.get("RepoDigests") or [])]
    return [str(entry) for entry in names if "<none>" not in str(entry)]


def belongs(row: Mapping[str, Any], name: str) -> bool:
    """Return whether an image of the engine's list is of the repository ``name`` and of no other."""
    short = re.sub(r"^docker\.io/(library/)?", "", name)
    names = _names(row)
    if not names:
        return bool((row.get("Labels") or {}).get(LABEL_REPOSITORY) == name)
    repositories = {ref.partition("@")[0] if "@" in ref else ref.rpartition(":")[0] for ref in names}
    return repositories <= {name, short}


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
