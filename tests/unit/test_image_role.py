# SPDX-License-Identifier: Apache-2.0
"""What preflight asks a node for the image: only what is known then, and never what a task would find otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "vllm_image"
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
    folder = tmp_path_factory.mktemp("image")
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    given = {"vllm_image_name": "vllm/vllm-openai-rocm", "vllm_image_tag": "v1"}
    # As preflight works it out, whose folder is another.
    inventory = {"all": {"hosts": CASES, "vars": {**defaults, **given, "role_path": str(ROOT / "roles" / "preflight")}}}
    message = "{{ {'probe': vllm_image_probe} }}"
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars_files": [str(ROLE / "vars/main.yml")],
        "tasks": [{"name": "Render", "ansible.builtin.debug": {"msg": message}}],
    }
    (folder / "inventory.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
    (folder / "play.yml").write_text(yaml.safe_dump([play], sort_keys=False))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory.yml", "play.yml"],
        cwd=folder,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_FORKS": "2",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer, _ = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{") :])
    return {case: told["msg"]["probe"] for case, told in answer["plays"][0]["tasks"][0]["hosts"].items()}


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
