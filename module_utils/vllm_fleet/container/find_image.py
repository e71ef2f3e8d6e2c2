# SPDX-License-Identifier: Apache-2.0
"""The wanted image on this node: found by what it is, with its tags put right."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import archive
from .api import DockerApi, DockerRefused, DockerUnavailable
from .archive import Held
from .image import (
    LABEL_BUILD_INPUTS,
    Archived,
    Client,
    Wanted,
    choose_client,
    chosen,
    content_id,
    is_wanted,
    misnamed,
    problems,
    repo_digests,
)
from .image_rocm import rocm_of

#: Seconds for a client of Docker to say what it is.
CLIENT_PATIENCE = 30.0
#: Options of the module vllm_image.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "source": {"type": "str", "choices": ["pull", "build", "archive"], "required": True},
    "tag": {"type": "str", "default": ""},
    "tags": {"type": "list", "elements": "str", "default": []},
    "digest": {"type": "str", "default": ""},
    "build_inputs": {"type": "str", "default": ""},
    "archive": {"type": "str", "default": ""},
    "expected_id": {"type": "str", "default": ""},
    "archived": {"type": "list", "elements": "dict", "default": []},
    "content": {"type": "str", "default": ""},
    "allow_latest": {"type": "bool", "default": False},
    "state_dir": {"type": "path", "default": "/var/lib/vllm-fleet"},
    "keep": {"type": "list", "elements": "str", "default": []},
    "state": {
        "type": "str",
        "choices": ["found", "present", "resolved", "read", "pruned", "validated"],
        "default": "found",
    },
    "socket": {"type": "path", "default": "/var/run/docker.sock"},
    "resolve": {"type": "bool", "default": False},
    "use_cached_result": {"type": "bool", "default": False},
}
SPEC: dict[str, Any] = {"argument_spec": ARGUMENTS}


class ImageError(Exception):
    """The image cannot be looked for; the text is one sentence. ``cause`` is set where no engine answers at all."""

    def __init__(self, text: str, cause: str = "") -> None:
        """Keep the sentence."""
        super().__init__(text)
        self.cause = cause


def parse(options: Mapping[str, Any]) -> tuple[Wanted, list[Archived]]:
    """Return the wanted image and the known contents of its archive; raise ImageError where the options name none."""
    given = {field.name: options[field.name] for field in dataclasses.fields(Wanted)}
    file = str(Path(given["archive"]).expanduser()) if given["archive"] else ""
    wanted = Wanted(**{**given, "tags": tuple(given["tags"]), "archive": file})
    refused = problems(wanted)
    if refused:
        raise ImageError(" ".join(refused))
    return wanted, archive.told(options["archived"])


@contextlib.contextmanager
def explained(wanted: Wanted, *, reading: bool = False) -> Iterator[None]:
    """Raise what goes wrong inside as ImageError. ``reading``: it is known already on which machine the archive is."""
    try:
        yield
    except DockerUnavailable as exc:
        hint = "run as root or with sudo" if exc.denied else "the role docker_engine installs and starts it"
        raise ImageError(f"image {wanted.ref}: {exc}; {hint}", "" if exc.denied else str(exc)) from exc
    except DockerRefused as exc:
        raise ImageError(f"image {wanted.ref}: Docker says: {exc}") from exc
    except archive.NOT_READABLE as exc:
        hint = "; if it is on the controller, set vllm_image_archive_location: controller" if not reading else ""
        hint = hint if isinstance(exc, FileNotFoundError) else ""
        text = f"archive {wanted.archive} cannot be read as an uncompressed `docker save` file: {exc}{hint}"
        raise ImageError(text) from exc


def known(wanted: Wanted, archived: list[Archived]) -> tuple[list[Archived], int]:
    """Return the images of the archive, and the bytes that loading takes, 0 where it was not read."""
    if wanted.source == "archive" and not wanted.expected_id and not archived:
        held = read(wanted)
        return list(held.images), held.room
    return archived, 0


def probe(
    api: DockerApi, wanted: Wanted, archived: list[Archived], *, dry: bool = True, resolve: bool = False
) -> dict[str, Any]:
    """Return what vllm_image returns with ``state: found``; its tags are put right unless ``dry``. Raises ImageError.

    With ``dry``, an image is missing where no engine answers: the engine may be what the same run installs. With
    ``resolve``, what a tag stands for is what the registry says now; a registry that does not answer is an error.
    """
    if resolve and wanted.source == "pull" and not wanted.digest:
        with explained(wanted):
            wanted = dataclasses.replace(wanted, digest=api.registry_digest(f"{wanted.name}:{wanted.tag}"))
        return {**probe(api, wanted, archived, dry=dry), "resolved": True}
    try:
        with explained(wanted):
            archived, room = known(wanted, archived)
            result = _find(api, wanted, archived, dry=dry)
            return {**result, "room": room or _room(wanted, result)}
    except ImageError as error:
        if dry and error.cause:
            return missing(wanted, error.cause)
        raise


def _room(wanted: Wanted, found: dict[str, Any]) -> int:
    """Bytes that loading takes, of an archive whose image is known by its id."""
    if wanted.source == "archive" and not found["present"]:
        with contextlib.suppress(*archive.NOT_READABLE):  # a file of the controller; what is wrong, the load says
            return archive.read(Path(wanted.archive)).room
    return 0


def _find(api: DockerApi, wanted: Wanted, archived: list[Archived], *, dry: bool) -> dict[str, Any]:
    image, reason = search(api, wanted, archived)
    if image is None:
        client, buildkit = choose_client(_clients(), api.ping())
        root = api.info()["DockerRootDir"]
        stands = (api.image(f"{wanted.name}:{wanted.tag}") or {}).get("Id", "") if wanted.tag else ""
        found = {"client": client, "buildkit": buildkit, "data_root": root, "replaces": stands}
        return {**missing(wanted, reason), **found}
    image_id = str(image["Id"])
    before = {tag: (api.image(f"{wanted.name}:{tag}") or {}).get("Id", "") for tag in wanted.all_tags}
    moved = [tag for tag, found in before.items() if found != image_id]
    if not dry:
        for tag in moved:
            api.tag(image_id, wanted.name, tag)
    digests = repo_digests(wanted.name, image)
    # A built image may have to give way to another build of the same inputs, as the other nodes have it.
    root = {"data_root": api.info()["DockerRootDir"], "replaces": image_id} if wanted.source == "build" else {}
    digest = wanted.digest or (digests[0] if digests else "")
    return {
        "changed": bool(moved),
        "present": True,
        **root,
        "python": sys.executable,
        "reason": "",
        "image_id": image_id,
        "content": content_id(image),
        "digest": digest,
        "image_ref": f"{wanted.name}@{digest}" if digest and digest in digests else wanted.ref,
        "entrypoint": (image.get("Config") or {}).get("Entrypoint") or [],
        "size": int(image["Size"]),
        "rocm": rocm_of(image),
        "tags_moved": moved,
        "diff": {
            "before": {f"{wanted.name}:{tag}": before[tag] for tag in moved},
            "after": {f"{wanted.name}:{tag}": image_id for tag in moved},
        },
    }


def missing(wanted: Wanted, reason: str) -> dict[str, Any]:
    """Return the result of a look that did not find the image."""
    found = {"changed": False, "present": False, "reason": reason, "image_id": "", "tags_moved": []}
    return {
        **found,
        "image_ref": wanted.ref,
        "digest": wanted.digest,
        "client": "docker",
        "buildkit": False,
        "data_root": "/",
        "replaces": "",
        "python": sys.executable,
        "content": "",
        "rocm": "",
    }


def search(api: DockerApi, wanted: Wanted, archived: list[Archived]) -> tuple[dict[str, Any] | None, str]:
    """Return the wanted image, or None and why what stands under its name is not it."""
    reason = "it is not on this node"
    meant = chosen(archived, f"{wanted.name}:{wanted.tag}")
    for ref in [wanted.ref, *_other_refs(api, wanted, meant)]:
        image = api.image(ref)
        if image is None:
            continue
        why = is_wanted(wanted, image, meant)
        if why is None:
            return image, ""
        reason = why
    return None, reason


def _other_refs(api: DockerApi, wanted: Wanted, archived: list[Archived]) -> list[str]:
    if wanted.source == "build" and wanted.build_inputs:
        return api.images_with_label(f"{LABEL_BUILD_INPUTS}={wanted.build_inputs}")
    if wanted.source == "archive":
        if wanted.expected_id:
            return [wanted.expected_id]
        return [ref for entry in archived for ref in (*entry.ids, *entry.names)]
    if wanted.digest and wanted.tag:
        return [f"{wanted.name}:{wanted.tag}"]
    return []


def read(wanted: Wanted) -> Held:
    """Read what the archive holds; refuse another tag, which would be loaded and taken for a version that it is not."""
    held = archive.read(Path(wanted.archive))
    if held.compressed and not wanted.expected_id:
        # It would have to be unpacked whole to be looked into.
        raise OSError(
            "it is compressed; unpack it, or set vllm_image_expected_id to the image id that "
            "`docker image inspect --format '{{.Id}}'` gave where it was saved"
        )
    other = misnamed(wanted, held.images)
    if other:
        raise ImageError(
            f"archive {wanted.archive}: expected {wanted.name}:{wanted.tag}, it holds {other[0]}; {other[1]}"
        )
    return held


def _clients() -> list[Client]:
    found: dict[str, Client] = {}
    for folder in [*os.environ.get("PATH", "").split(":"), "/usr/bin", "/usr/local/bin"]:
        path = Path(folder) / "docker"
        real = str(path.resolve())
        if not os.access(path, os.X_OK) or real in found:
            continue
        told = _run(path, "--version").stdout
        version = re.search(r"\d+\.\d+\.\d+", told)
        buildx = _run(path, "buildx", "version").returncode == 0
        found[real] = Client(str(path), version.group() if version else "", buildx)
    return list(found.values())


def _run(client: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(client), *words]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=CLIENT_PATIENCE
        )
    except subprocess.TimeoutExpired:  # one that hangs cannot build anything either
        return subprocess.CompletedProcess(command, 1, "", "")
