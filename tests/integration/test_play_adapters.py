# SPDX-License-Identifier: Apache-2.0
"""deploy.yml with LoRA adapters on this machine: brought, loaded, verified, changed, gone back to, refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import play
import pytest
from fake_hf_cache import COMMIT, REPO, FakeCache, safetensors
from standin import free_port

pytestmark = pytest.mark.engine
OLD, NEW = "b" * 40, "d" * 40


def adapter(cache: Path, repo: str, commit: str, **config: Any) -> FakeCache:
    """Put an adapter of the model into a cache."""
    said = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": REPO, **config}
    files = {
        "adapter_config.json": json.dumps(said).encode(),
        "adapter_model.safetensors": safetensors(int(commit[0], 16)),
    }
    return FakeCache(cache, files, repo_id=repo, commit=commit, ref=None)


class Site:
    """This machine as a fleet of one, its weights given by the controller's cache."""

    def __init__(self, folder: Path, image: str, ident: str) -> None:
        self.folder, self.name = folder, f"adapters-{os.getpid()}"
        name, _, tag = image.partition(":")
        self.variables: dict[str, Any] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            "docker_engine_manage_config": False,
            "vllm_image_name": name,
            "vllm_image_tag": tag,
            "vllm_image_source": "archive",
            "vllm_image_archive": "/nonexistent/not-needed.tar",
            "vllm_image_expected_id": ident,
            "vllm_server_accelerator": "cpu",
            "vllm_server_name": self.name,
            "vllm_server_model": REPO,
            "vllm_server_revision": COMMIT,
            "vllm_server_model_exact": True,
            "vllm_server_port": free_port(),
            "vllm_server_env": {"STANDIN_START_SECONDS": "0.3", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
            "vllm_server_args": {"max-model-len": 512},
            "vllm_server_verify": [{"name": "capital", "prompt": "What is the capital of France?", "expect": {"pattern": "Paris"}}],
            "vllm_server_state_dir": str(folder / "state"),
            "vllm_server_stop_timeout": 3,
            "hf_cache_path": str(folder / "cache"),
            "hf_cache_create": True,
            "hf_cache_source": "controller",
            "hf_cache_controller_path": str(folder / "seed"),
            "hf_cache_prewarm": "off",
            "preflight_disk_image": 0,
            "preflight_disk_weights": 0,
            "preflight_clock": False,
        }  # fmt: skip

    def play(self, playbook: str, *words: str, **variables: Any) -> play.Run:
        """Run a playbook of the project with the site's variables."""
        inventory = self.folder / "inventory.yml"
        hosts = {"node1": {**self.variables, **variables}}
        inventory.write_text(json.dumps({"vllm": {"hosts": hosts}}))
        command = [play.PLAYBOOK, "-i", str(inventory), playbook, *words]
        environment = {**play.environment(), "VLLM_FLEET_REPORTS": str(self.folder / "reports")}
        done = subprocess.run(command, cwd=play.ROOT, env=environment, capture_output=True, text=True, check=False)
        return play.Run(done.returncode, done.stdout + done.stderr, {})

    def deploy(self, adapters: dict[str, Any], *words: str, **variables: Any) -> play.Run:
        """Deploy with these adapters."""
        return self.play("deploy.yml", *words, vllm_server_adapters=adapters, **variables)


def words(run: play.Run) -> str:
    """What a run that failed said, on one line."""
    assert run.rc != 0, run.output
    return " ".join(run.output.split())


def changed(run: play.Run) -> int:
    found = re.search(r"^node1 .*\bchanged=(\d+)", run.output, re.MULTILINE)
    assert found, run.output
    return int(found[1])


def test_adapters_are_brought_loaded_changed_and_gone_back_to(
    tmp_path: Path, standin_image: str, docker_client: Any
) -> None:
    site = Site(tmp_path, standin_image, docker_client.images.get(standin_image).id)
    seed = tmp_path / "seed"
    FakeCache(seed)
    support, sql = adapter(seed, "acme/support", OLD), adapter(seed, "acme/sql", NEW)
    one = {"support": {"repo": "acme/support", "revision": OLD}}
    two = {**one, "sql": {"repo": "acme/sql", "revision": NEW, "verify": {"expect": {"pattern": "Paris"}}}}

    def modules() -> list[str]:
        command = docker_client.containers.get(site.name).attrs["Config"]["Cmd"]
        start = command.index("--lora-modules") + 1
        return [word for word in command[start:] if "=" in word and word.split("=")[0] in two]

    def path(of: FakeCache) -> str:
        return f"/root/.cache/huggingface/hub/{of.repo.name}/snapshots/{of.commit}"

    try:
        # Refused before anything is brought; all that is wrong at once.
        bad = {"support": {"repo": "acme/support", "revision": "main"}}
        assert "vllm_server_adapters: expected adapters, found support has the revision 'main'" in words(
            site.deploy(bad)
        )
        said = words(site.deploy({REPO: one["support"]}, vllm_server_args={"max-lora-rank": 24}))
        assert f"found {REPO}, a name of the model itself" in said
        assert "expected a rank that vLLM takes, found 24" in said
        assert not (tmp_path / "cache").exists()

        run = site.deploy(one).ok()
        assert (tmp_path / "cache/hub" / support.repo.name / "snapshots" / OLD / "adapter_model.safetensors").is_file()
        assert modules() == [f"support={path(support)}"]
        assert "chat / adapter support:" in run.output, run.output
        again = site.deploy(one).ok()
        assert changed(again) == 0 and "nothing to change" in again.output, again.output

        # One that somebody unloaded is seen by a run that has nothing else to do, and mended by a restart.
        url = f"http://127.0.0.1:{site.variables['vllm_server_port']}/v1"
        urllib.request.urlopen(f"{url}/unload_lora_adapter", data=b'{"lora_name": "support"}').close()
        run = site.deploy(one).ok()
        assert "it has lost adapters that it loads at its start" in run.output, run.output
        assert '"support"' in urllib.request.urlopen(f"{url}/models").read().decode()

        # Another one: shown, brought and verified; then the first release comes back, with its adapters.
        before = docker_client.containers.get(site.name).id
        shown = site.deploy(two, "--check", "--diff").ok()
        assert "models--acme--sql" in shown.output and "To replace: 1 of 1 replica, in 1 wave: node1" in shown.output, (
            shown.output
        )
        assert docker_client.containers.get(site.name).id == before
        run = site.deploy(two, "--diff").ok()
        assert "lora-modules" in run.output and "sql=" in run.output, run.output
        assert sorted(modules()) == [f"sql={path(sql)}", f"support={path(support)}"]
        assert "chat / adapter sql:" in run.output, run.output
        run = site.play("playbooks/rollback.yml", vllm_server_adapters=two).ok()
        assert modules() == [f"support={path(support)}"]
        assert "chat / adapter support:" in run.output, run.output

        # The adapter of a larger rank is in the cache by then: refused, and the server is left alone.
        ident = docker_client.containers.get(site.name).id
        wide = adapter(tmp_path / "cache", "acme/wide", "e" * 40, r=64, base_model_name_or_path="acme/other")
        run = site.deploy({**one, "wide": {"repo": "acme/wide", "revision": wide.commit}})
        said = words(run)
        assert (
            "adapter wide: expected a rank up to 16 (max-lora-rank), found 64; set vllm_server_args: {max-lora-rank: 64}"
            in said
        )
        assert docker_client.containers.get(site.name).id == ident

        # None is left to load, and none of the snapshots in use was pruned meanwhile.
        run = site.deploy({}, hf_cache_prune=True).ok()
        assert "--lora-modules" not in docker_client.containers.get(site.name).attrs["Config"]["Cmd"]
    finally:
        for container in docker_client.containers.list(all=True, filters={"name": site.name}):
            container.remove(force=True, v=True)
