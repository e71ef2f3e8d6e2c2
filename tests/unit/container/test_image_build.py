# SPDX-License-Identifier: Apache-2.0
"""The words of `docker build`."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.container.image_build import Recipe, command, labels

CPU = Recipe("/cache/vllm-cpu-0.32.0", "Dockerfile", network="none")
ROCM = Recipe("/srv/vllm", "docker/Dockerfile.rocm", "vllm-openai", {"b": 1, "A": True, "c": None, "a": "x y"})


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (CPU, ["--network", "none", "--file", "/cache/vllm-cpu-0.32.0/Dockerfile"]),
        (Recipe("/srv/vllm/", "Dockerfile"), ["--file", "/srv/vllm/Dockerfile"]),
        (Recipe("/srv/vllm", "/etc/Dockerfile"), ["--file", "/etc/Dockerfile"]),
        (
            ROCM,
            [
                *("--file", "/srv/vllm/docker/Dockerfile.rocm", "--target", "vllm-openai"),
                *("--build-arg", "A=True", "--build-arg", "a=x y", "--build-arg", "b=1", "--build-arg", "c=None"),
            ],
        ),
    ],
)
def test_the_recipe(recipe: Recipe, options: list[str]) -> None:
    assert command("/usr/bin/docker", recipe, {}, []) == ["/usr/bin/docker", "build", *options, recipe.context]


def test_labels_and_names_come_before_the_folder() -> None:
    words = command(
        "docker", Recipe("/srv", "Dockerfile"), labels("vllm", "abc", "c0ffee"), ["vllm:1", "vllm:2", "vllm:1"]
    )
    assert words[4:] == [
        *("--label", "io.vllm-fleet.build-inputs=abc"),
        *("--label", "io.vllm-fleet.repository=vllm"),
        *("--label", "org.opencontainers.image.revision=c0ffee"),
        *("--tag", "vllm:1", "--tag", "vllm:2", "/srv"),
    ]


def test_without_a_commit_there_is_no_label_for_it() -> None:
    assert list(labels("vllm", "abc")) == ["io.vllm-fleet.build-inputs", "io.vllm-fleet.repository"]
