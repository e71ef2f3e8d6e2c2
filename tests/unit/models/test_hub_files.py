# SPDX-License-Identifier: Apache-2.0
"""hub_files.py with the real huggingface_hub where it reaches no Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ASK = """
import sys
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.vllm_fleet.models import hub_files
try:
    hub_files.fetch("acme/tiny", "")
except hub_files.HubError as error:
    print(error)
"""


def test_a_hub_that_gives_no_answer_is_not_one_without_the_file(tmp_path: Path) -> None:
    # As without a network, but without the client's own seconds of waiting.
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(ROOT / "module_utils")], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("the Hub cannot be reached (Cannot reach https://"), done.stdout
    assert "offline mode" in done.stdout and "give plan_path" in done.stdout
