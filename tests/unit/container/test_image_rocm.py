# SPDX-License-Identifier: Apache-2.0
"""The ROCm of an image, by layers of a folder tree and by what an inspection of Docker says."""

import os

import pytest

from ansible.module_utils.vllm_fleet.container.image_rocm import rocm_of


def image(env=(), labels=None, tags=(), layers=()):
    upper, *lower = layers or [""]
    data = {"UpperDir": upper, "LowerDir": ":".join(lower)} if layers else None
    store = {"Name": "overlay2", "Data": data}
    return {"Config": {"Env": list(env), "Labels": labels}, "RepoTags": list(tags), "GraphDriver": store}


@pytest.mark.parametrize(
    ("given", "rocm"),
    [
        (image(["PATH=/bin", "ROCM_VERSION=7.2.3"]), "7.2.3"),
        (image(labels={"rocm.version": "7.14.0-12"}), "7.14.0"),
        (
            image(["ROCM_VERSION="], tags=["rocm/vllm:rocm7.14.0_cdna_ubuntu24.04_py3.14_pytorch_2.11.0_vllm_0.23.0"]),
            "7.14.0",
        ),
        (image(tags=["a/rocm7.0:v0.33.0"]), ""),  # the name of a repository says nothing of a tag
        (image(["ROCM_VERSION=latest; rm -rf /"]), ""),
        (image(["ROCM_VERSION=123456.1"]), ""),
        ({}, ""),
        ({"Config": None, "RepoTags": None, "GraphDriver": None}, ""),
        ({"GraphDriver": {"Name": "overlayfs", "Data": None}}, ""),
    ],
)
def test_what_the_inspection_says(given, rocm):
    assert rocm_of(given) == rocm


def layer(root, name, place, text):
    path = root / name / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return f"/{name}"


def test_the_files_count_first_and_the_topmost_layer_of_them(tmp_path):
    old = layer(tmp_path, "l/base", "opt/rocm-7.0.2/.info/version", "7.0.2-56\n")
    new = layer(tmp_path, "l/top", "opt/rocm-7.2.3/.info/version", "7.2.3-81\n")
    core = layer(tmp_path, "l/core", "opt/rocm/core-7.14/.info/version", "7.14.0\n")
    odd = layer(tmp_path, "l/odd", "opt/rocm/.info/version", "\x1b[31m" + "9" * 5000)
    env = ["ROCM_VERSION=6.4"]
    assert rocm_of(image(env, layers=[new, old]), tmp_path) == "7.2.3"
    assert rocm_of(image(env, layers=["/l/empty", old]), tmp_path) == "7.0.2"
    assert rocm_of(image(env, layers=[core]), tmp_path) == "7.14.0"
    assert rocm_of(image(env, layers=[odd]), tmp_path) == "6.4"


def test_a_link_in_an_image_is_not_followed_out_of_it(tmp_path):
    (tmp_path / "l/opt").mkdir(parents=True)
    layer(tmp_path, "elsewhere", ".info/version", "7.0.2")
    (tmp_path / "l/opt/rocm").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "m/opt/rocm/.info").mkdir(parents=True)
    (tmp_path / "m/opt/rocm/.info/version").symlink_to(tmp_path / "elsewhere/.info/version")
    assert rocm_of(image(layers=["/l", "/m"]), tmp_path) == ""


def test_a_pipe_in_an_image_is_not_waited_for(tmp_path):
    folder = tmp_path / "l/opt/rocm/.info"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "version")
    assert rocm_of(image(["ROCM_VERSION=7.2"], layers=["/l"]), tmp_path) == "7.2"
