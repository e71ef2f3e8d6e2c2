# SPDX-License-Identifier: Apache-2.0
"""The dashboards are what scripts/gen_dashboards.py makes of its description."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_dashboards_are_current():
    words = [sys.executable, str(ROOT / "scripts/gen_dashboards.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
