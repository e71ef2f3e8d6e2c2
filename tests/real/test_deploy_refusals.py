# SPDX-License-Identifier: Apache-2.0
"""deploy.yml with bad input, as its user types it: one clear sentence, and nothing is touched."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from local_inventory import CACHE, LOCAL
from standin import base_image, free_port

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = str(Path(sys.executable).parent / "ansible-playbook")


def deploy(*extra, inventory="inventory/local", **variables):
    """Run deploy.yml; gives the run with the sentences of its errors and of what its last lines refuse."""
    variables = {"vllm_server_name": "vllm-refused", "vllm_server_port": free_port(), **variables}
    command = [PLAYBOOK, "-i", str(inventory), "deploy.yml", "-e", yaml.safe_dump(variables, default_flow_style=True)]
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run([*command, *extra], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    words = done.stdout + done.stderr
    told = re.split(r"\[ERROR\]: |FAILED!\n", words)[1:]
    done.errors = [" ".join(re.split("Origin:|\nTASK|\nPLAY", text)[0].split()) for text in told]
    last = done.stdout.partition("\nFLEET ")[2].splitlines()
    done.errors += [line for line in last[2:] if ": expected " in line]
    return done


@pytest.fixture(scope="module")
def bystander(docker_client):
    """A container that has nothing to do with any of it."""
    made = docker_client.containers.run(base_image(), ["sleep", "900"], detach=True)
    yield made
    made.remove(force=True)


@pytest.fixture(autouse=True)
def nothing_is_touched(docker_client, bystander):
    bystander.reload()
    before = bystander.attrs["State"]
    yield
    bystander.reload()
    assert bystander.attrs["State"] == before
    assert not docker_client.containers.list(all=True, filters={"name": "vllm-refused"})


def refused(done, pattern, sentences=1):
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.errors) == sentences, done.errors
    assert re.search(pattern, done.errors[-1]), done.errors
    assert re.search(r"changed=0 .*failed=1", done.stdout), done.stdout


def test_no_docker_and_no_root(tmp_path, docker_client):
    bare = docker_client.containers.run(base_image(), ["sleep", "600"], detach=True)
    try:
        host = {"ansible_connection": "community.docker.docker", "ansible_host": bare.id, "ansible_user": "nobody"}
        host["ansible_python_interpreter"] = "/usr/bin/python3"
        host["ansible_remote_tmp"] = "/tmp/.ansible"
        hosts = {"vllm": {"hosts": {"bare": host}, "vars": LOCAL}}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))
        done = deploy(inventory=tmp_path / "hosts.yml")
        refused(done, r"bare: root: expected root's rights, to install Docker and to run the server, found user nobody")
        assert docker_client.containers.get(bare.id).status == "running"
    finally:
        bare.remove(force=True)


def test_a_port_taken_by_another_program():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = deploy(vllm_server_port=port, hf_cache_path=str(CACHE / "seed"))
    refused(done, rf"port {port}.* taken by pid {os.getpid()} .*choose another port")


def test_a_full_disk(tmp_path):
    disk, mounted = tmp_path / "disk.img", tmp_path / "small"
    mounted.mkdir()
    with disk.open("wb") as file:
        file.truncate(40 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(mounted)], check=True)
    try:
        before = sorted(p.name for p in mounted.iterdir())
        refused(deploy(hf_cache_path=str(mounted)), r"free")
        assert sorted(p.name for p in mounted.iterdir()) == before
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_cache_path_that_is_a_file(tmp_path):
    path = tmp_path / "cache"
    path.write_text("precious")
    refused(deploy(hf_cache_path=str(path)), rf"{path}.*(is a file|not a (folder|directory))", sentences=2)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instrct", "SmolLM2-135M-Instruct"),
        ("SmolLM2 135M Instruct", "exact id"),
        ("huggingfacetb/smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ],
)
def test_a_model_that_is_in_no_cache_is_refused_with_the_nearest(model, says, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    refused(deploy(vllm_server_model=model, hf_cache_path=str(cache)), says)
    assert [p for p in cache.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"vllm_image_tag": "latest"}, "pin a version"),
        ({"vllm_image_tag": ""}, "pin a version"),
        ({"vllm_server_bind": "0.0.0.0"}, "vllm_server_api_key"),
        ({"hf_cache_path": "cache"}, "absolute path"),
        ({"vllm_server_port": 99999}, "1 to 65535"),
        ({"vllm_server_args": {"gpu-memory-utilization": 1.5}, "hf_cache_path": str(CACHE / "seed")}, "at most 1"),
        ({"vllm_server_args": {"max-modl-len": 512}, "hf_cache_path": str(CACHE / "seed")}, "--max-model-len"),
    ],
)
def test_wrong_variables(variables, says):
    refused(deploy(**variables), says)
