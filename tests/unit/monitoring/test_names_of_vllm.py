# SPDX-License-Identifier: Apache-2.0
"""What rules and dashboards ask of vLLM is what its releases have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
KNOWN = sorted((ROOT / "tests/fixtures/vllm-metrics").glob("*.txt"))
FILES = sorted((ROOT / "roles/monitoring/files").rglob("*.*"))
#: What prometheus_client adds: a counter's end, and the series of a histogram.
ENDS = ("", "_total", "_bucket", "_sum", "_count")


@pytest.mark.parametrize("release", KNOWN, ids=lambda path: path.stem)
def test_every_metric_of_vllm_is_one_of_the_release(release):
    exported = {name + end for name in release.read_text().split() for end in ENDS}
    asked = {name for file in FILES for name in re.findall(r"vllm:[a-z0-9_]+", file.read_text())}
    assert len(asked) > 8
    assert asked <= exported
