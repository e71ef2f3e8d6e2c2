# SPDX-License-Identifier: Apache-2.0
"""The command that builds an image. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .image import LABEL_BUILD_INPUTS, LABEL_REPOSITORY

#: Label of a built image: the commit of the checkout (OCI image specification, annotations.md).
LABEL_REVISION = "org.opencontainers.image.revision"


@dataclass(frozen=True)
class Recipe:
    """What is built: a folder, the Dockerfile in it, its stage and arguments (empty: none), the network meanwhile."""

    context: str
    dockerfile: str
    target: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    network: str = ""


def labels(name: str, inputs: str, commit: str = "") -> dict[str, str]:
    """Return the labels of an image of the repository ``name``; ``inputs`` is the hash of what it is built from."""
    known = {LABEL_BUILD_INPUTS: inputs, LABEL_REPOSITORY: name}
    return {**known, LABEL_REVISION: commit} if commit else known


def command(client: str, recipe: Recipe, marks: Mapping[str, str], refs: Iterable[str]) -> list[str]:
    """Return the words of `docker build`; ``marks`` are the image's labels, ``refs`` its names, each given once."""
    arguments = sorted(recipe.args.items(), key=lambda item: str(item[0]).lower())
    options = [
        *[("--network", recipe.network)] * bool(recipe.network),
        ("--file", posixpath.join(recipe.context, recipe.dockerfile)),
        *[("--target", recipe.target)] * bool(recipe.target),
        *[("--build-arg", f"{key}={value}") for key, value in arguments],
        *[("--label", f"{key}={value}") for key, value in marks.items()],
        *[("--tag", ref) for ref in dict.fromkeys(refs)],
    ]
    return [client, "build", *(word for option in options for word in option), recipe.context]
