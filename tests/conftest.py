# SPDX-License-Identifier: Apache-2.0
"""Makes module_utils and library importable the way Ansible imports them on a node."""

import sys
from pathlib import Path

import ansible.module_utils
import pytest

ROOT = Path(__file__).resolve().parent.parent
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
sys.path.insert(0, str(ROOT / "library"))
sys.path.insert(0, str(ROOT))
# Helpers that tests of one folder lend to those of another: the stand-in, the test fleet, made-up caches.
for folder in ("integration", "fleet", "load", "sysfs", ""):
    sys.path.insert(0, str(ROOT / "tests" / folder))

#: What takes minutes, longest first: begun last it would be waited for alone when files are run beside each other.
LONG = (
    "test_vllm_image_fleet",
    "test_replica",
    "test_hf_cache_fleet",
    "test_rocm_driver",
    "test_play_releases",
    "test_vllm_image",
    "test_replica_ray",
    "test_fleet_node",
    "test_fleet",
)
#: Tests that lean on those before them: a second try would find other nodes than the first, and hide what that one saw.
STORIES = (
    "test_hf_cache_fleet",
    "test_play_releases",
    "test_replica",
    "test_replica_ray",
    "test_rocm_driver",
    "test_vllm_image_fleet",
)


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))
    for item in items:
        if item.path.stem in STORIES:
            item.add_marker(pytest.mark.flaky(reruns=0))


def pytest_terminal_summary(terminalreporter):
    """What passed at the second try says what the first one saw: else a flaw that shows now and then would stay unknown."""
    first = terminalreporter.stats.get("rerun", [])
    if first:
        terminalreporter.section("first tries that failed")
    for report in first:
        terminalreporter.write_line(f"{report.nodeid}\n{str(report.longrepr)[-4000:]}\n")
