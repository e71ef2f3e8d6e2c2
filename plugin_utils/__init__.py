# SPDX-License-Identifier: Apache-2.0
"""What the plugins on the controller share.

Importing it lets ``ansible.module_utils.vllm_fleet`` be found here by the name that it has on the nodes: on the
controller Ansible imports its own module_utils alone. A plugin is loaded by its path, so it has one line that puts the
project's folder on ``sys.path`` before it can import this package; everything else stands here once.
"""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_MODULE_UTILS)
