# SPDX-License-Identifier: Apache-2.0
"""What preflight asks a node for the image: only what is known then, and never what a task would find otherwise."""

from __future__ import annotations

import pytest
from role_variables import ROOT, rendering

CASES = {
    "first_by_tag": {},
    "digest": {"vllm_image_digest": "sha256:" + "1" * 64},
    # A tag may have moved in the registry; the first of the hosts asks there.
    "tag": {},
    "archive_of_nodes": {"vllm_image_source": "archive", "vllm_image_archive": "/a.tar"},
    "archive_with_id": {
        "vllm_image_source": "archive",
        "vllm_image_archive": "/a.tar",
        "vllm_image_archive_location": "controller",
        "vllm_image_expected_id": "sha256:" + "2" * 64,
    },
    "archive_of_controller": {
        "vllm_image_source": "archive",
        "vllm_image_archive": "/a.tar",
        "vllm_image_archive_location": "controller",
    },
    "build_cpu": {"vllm_image_source": "build", "vllm_image_build_kind": "cpu", "vllm_image_base_suite": "bookworm"},
    "build_of_commit": {
        "vllm_image_source": "build",
        "vllm_image_build_context": "/src",
        "vllm_image_build_revision": "v1.2.3",
    },
    # The commit of a checkout is read by a task.
    "build_of_checkout": {"vllm_image_source": "build", "vllm_image_build_context": "/src"},
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    # As preflight works it out, whose folder is another.
    given = {"vllm_image_name": "vllm/vllm-openai-rocm", "vllm_image_tag": "v1"}
    given["role_path"] = str(ROOT / "roles" / "preflight")
    found = rendering(
        tmp_path_factory.mktemp("image"),
        ROOT / "roles" / "vllm_image",
        CASES,
        {"probe": "lookup('vllm_fleet_options', 'vllm_image_probe')"},
        **given,
    )
    return {case: values["probe"] for case, values in found.items()}


@pytest.mark.parametrize("case", ["archive_of_controller", "build_of_checkout"])
def test_what_is_not_known_yet_is_not_asked(asked, case):
    assert asked[case] == {}


@pytest.mark.parametrize("case", sorted({*CASES} - {"archive_of_controller", "build_of_checkout"}))
def test_what_is_known_is_asked_as_the_task_asks_it(asked, case):
    assert asked[case]["module"] == "vllm_image"
    args = asked[case]["args"]
    assert (args["state"], args["name"], args["tag"]) == ("found", "vllm/vllm-openai-rocm", "v1")
    assert bool(args["build_inputs"]) == case.startswith("build")
    assert args["resolve"] is (case == "first_by_tag")
    assert args["digest"] == CASES[case].get("vllm_image_digest", "")
