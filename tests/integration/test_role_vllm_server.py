# SPDX-License-Identifier: Apache-2.0
"""The role vllm_server as its user runs it: ansible-playbook, the terminal's words, and the server that is then there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml
from standin import free_port

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parent.parent.parent
CANARY = "canary-4f1d2c"


class Fleet:
    """One "node" (this machine), a playbook with the role alone, and variables that a test edits."""

    def __init__(self, tmp_path, image, client):
        self.dir, self.client, self.name = tmp_path, client, f"role-{os.getpid()}"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.variables = {
            "vllm_server_name": self.name,
            "vllm_server_image": image,
            "vllm_server_model": "acme/tiny",
            "vllm_server_accelerator": "cpu",
            "vllm_server_port": self.port,
            "vllm_server_hf_cache": "",
            "vllm_server_state_dir": str(tmp_path / "state"),
            "vllm_server_env": {"STANDIN_START_SECONDS": "0.5"},
            "vllm_server_stop_timeout": 6,
        }
        (tmp_path / "play.yml").write_text(
            yaml.safe_dump([{"hosts": "all", "gather_facts": False, "roles": ["vllm_server"]}])
        )
        node = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"node1": node}}}))

    def play(self, *words, **variables):
        self.variables.update(variables)
        (self.dir / "vars.json").write_text(json.dumps(self.variables))
        command = [
            "ansible-playbook",
            "-i",
            self.dir / "hosts.yml",
            self.dir / "play.yml",
            "-e",
            f"@{self.dir}/vars.json",
        ]
        done = subprocess.run([*map(str, command), *words], cwd=ROOT, capture_output=True, text=True, check=False)
        done.recap = re.search(r"changed=(\d+) .*failed=(\d+)", done.stdout)
        return done

    def ask(self):
        body = {"model": "acme/tiny", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {CANARY}"}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]


@pytest.fixture
def fleet(tmp_path, standin_image, docker_client):
    made = Fleet(tmp_path, standin_image, docker_client)
    yield made
    for container in docker_client.containers.list(all=True, filters={"name": made.name}):
        container.remove(force=True, v=True)


def test_deploy_again_edit_and_a_server_that_talks_nonsense(fleet):
    first = fleet.play(vllm_server_api_key=CANARY)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "[node1] ready" in first.stdout
    assert "capital: The capital of France is Paris." in first.stdout
    assert "FAILED - RETRYING" not in first.stdout

    edit = {"max-model-len": 512}
    seen = fleet.play("--check", "--diff", vllm_server_args=edit)
    assert re.findall(r"^[+-] +(\S.*)$", seen.stdout, re.M) == ["{}", "args:", "max-model-len: 512"]
    assert fleet.ask() == "The capital of France is Paris."
    assert fleet.play().recap.groups() == ("1", "0")
    again = fleet.play("-vvv")
    assert again.recap.groups() == ("0", "0"), again.stdout
    assert CANARY not in first.stdout + again.stdout + again.stderr
    good = fleet.client.containers.get(fleet.name).id

    # Ready, HTTP 200, fluent, wrong: only the content tells.
    bad = fleet.play(vllm_server_env={"STANDIN_START_SECONDS": "0.5", "STANDIN_NONSENSE": "1"})
    assert bad.returncode != 0
    assert "expected a match of /Paris/" in bad.stdout.replace("\n", " ")
    assert "The previous server is back and ready." in " ".join(bad.stdout.split())
    assert fleet.client.containers.get(fleet.name).id == good
    assert fleet.ask() == "The capital of France is Paris."


def test_a_first_server_that_talks_nonsense_fails_and_says_that_there_is_nothing_to_put_back(fleet):
    bad = fleet.play(vllm_server_env={"STANDIN_START_SECONDS": "0.5", "STANDIN_NONSENSE": "1"})
    assert bad.returncode != 0
    assert "no container" in bad.stdout
    assert fleet.client.containers.get(fleet.name).status == "running"


def test_a_release_that_is_worse_than_the_one_before_goes_back(fleet):
    """Ready, HTTP 200, two answers right: only figures tell. The role alone has no drain, so the old one is not measured."""
    quick = {"STANDIN_START_SECONDS": "0.5", "STANDIN_TOKEN_DELAY": "0.01"}
    limits = {"ttft": 1.5, "itl": 1.3, "tokens_per_second": 0.7, "answers": 0.9}
    load = {"seconds": 1.5, "concurrency": 2, "input_tokens": 40, "output_tokens": 20}
    first = fleet.play(vllm_server_env=quick, rollout_gate=limits, rollout_gate_load=load)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "nothing to compare with, the figures are kept for the next release" in first.stdout
    good = fleet.client.containers.get(fleet.name).id
    record = json.loads((fleet.dir / "state" / fleet.name / "releases" / "000001.json").read_text())
    assert record["figures"]["answers"]["right"] == 20
    assert len(record["figures"]["load"]["runs"]) == 3

    for edit, says in (
        ({"STANDIN_TOKEN_DELAY": "0.03"}, "inter-token latency is "),
        ({"STANDIN_WRONG_SHARE": "0.3"}, "14 of 20 known answers are right, 20 with release 1 on this node"),
    ):
        bad = fleet.play(vllm_server_env={**quick, **edit})
        assert bad.returncode != 0, bad.stdout
        assert says in " ".join(bad.stdout.split()), bad.stdout
        assert "The previous server is back and ready." in " ".join(bad.stdout.split())
        assert fleet.client.containers.get(fleet.name).id == good

    # What is as described is asked nothing; what is as good as before passes, and is compared with the right release.
    again = fleet.play(vllm_server_env=quick)
    assert again.recap.groups() == ("0", "0"), again.stdout
    assert "comparison" not in again.stdout
    better = fleet.play(vllm_server_args={"max-model-len": 512})
    assert better.returncode == 0, better.stdout
    assert re.search(r"figure +new +release 1 +peers +factor +limit +noise", better.stdout), better.stdout
    assert "100% of the answers are the same to the letter" in better.stdout
