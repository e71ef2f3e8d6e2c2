# SPDX-License-Identifier: Apache-2.0
"""The ROCm release in an image, by what Docker says of the image and by its files; no container is made. Pure.

Sources: `/opt/rocm/.info/version` of AMD's packages (`7.2.3-81`; with ROCm 7.14 and later below `/opt/rocm/core-*`);
`ROCM_VERSION` in the environment of AMD's images; tags such as `rocm/vllm:rocm7.14.0_cdna_ubuntu24.04_...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..common import received

#: Below a layer's folder. /opt/rocm is a link in a layer of its own, so the folder that it points to is looked for.
PLACES = ("opt/rocm*/.info/version", "opt/rocm*/core*/.info/version")
#: Of an image's environment and labels.
NAMES = ("ROCM_VERSION", "rocm.version", "rocm_version", "com.amd.rocm.version")

#: An image may hold anything; of what it says only this is taken.
_RELEASE = re.compile(r"(\d{1,2}\.\d{1,2}(?:\.\d{1,2})?)(?![\d.])")
_TAG = re.compile(r"rocm-?(\d{1,2}\.\d{1,2}(?:\.\d{1,2})?)(?![\d])")
_MOST = 64  # bytes of a version file


def rocm_of(image: Mapping[str, Any], root: Path = Path("/")) -> str:
    """Return the ROCm release of an inspected image, such as 7.2.3; empty where nothing says it.

    ``root`` stands for the node's own root folder. Without root's rights, or where Docker has another store than
    overlay2, the files are not seen.
    """
    for said in (*_files(image, root), *_metadata(image)):
        if match := _RELEASE.match(said.strip()):
            return match[1]
    for tag in image.get("RepoTags") or []:
        if match := _TAG.search(str(tag).rpartition(":")[2]):
            return match[1]
    return ""


def _files(image: Mapping[str, Any], root: Path) -> Iterator[str]:
    """Yield the texts of version files, those of the topmost layer first."""
    store = image.get("GraphDriver") or {}
    data = store.get("Data") or {}
    if store.get("Name") != "overlay2":
        return
    for layer in [data.get("UpperDir"), *str(data.get("LowerDir") or "").split(":")]:
        folder = root / str(layer or "").lstrip("/")
        for place in PLACES if layer else ():
            try:
                for path in sorted(folder.glob(place), reverse=True):
                    # A link of an image leads anywhere on the node, a pipe never ends, a device may act when opened.
                    if not _linked(path, folder) and path.is_file():
                        with received.opened(path) as file:
                            yield file.read(_MOST).decode(errors="replace")
            except OSError:
                continue


def _linked(path: Path, folder: Path) -> bool:
    return any(one.is_symlink() for one in (path, *path.parents) if folder in one.parents)


def _metadata(image: Mapping[str, Any]) -> Iterator[str]:
    config = image.get("Config") or {}
    said = dict(str(pair).partition("=")[::2] for pair in config.get("Env") or [])
    said |= {str(name): str(value) for name, value in (config.get("Labels") or {}).items()}
    yield from (said[name] for name in NAMES if name in said)
