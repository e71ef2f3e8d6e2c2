# SPDX-License-Identifier: Apache-2.0
"""Lookup: the path of a program for nodes, packed of the project's packages."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.watchdog import pack

DOCUMENTATION = r"""
name: vllm_fleet_program
short_description: The path of a program for nodes on the controller
description:
  - Packs a package of this project, with the packages that it needs, into one file that Python runs.
  - Used by the roles of this project; not meant for playbooks.
options:
  _terms:
    description: One package, C(monitoring).
    required: true
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Show where the program is
  ansible.builtin.debug:
    msg: "{{ lookup('vllm_fleet_program', 'monitoring') }}"
"""

RETURN = r"""
_raw:
  description: Paths.
  type: list
"""


class LookupModule(LookupBase):  # type: ignore[misc]
    """One path for each name."""

    def run(self, terms: Sequence[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Write the programs where they are not yet, and return their paths."""
        return [_made(str(name)) for name in terms]


def _made(package: str) -> str:
    if package != "monitoring":
        raise AnsibleError(f"vllm_fleet_program knows monitoring, not {package}")
    data = pack.pack(Path(pack.__file__).resolve().parents[1], package)
    path = Path(C.DEFAULT_LOCAL_TMP) / f"{package}-{hashlib.sha256(data).hexdigest()[:16]}.pyz"
    if not path.exists():
        part = path.with_name(f"{path.name}.{id(path)}")
        part.write_bytes(data)
        part.replace(path)
    return str(path)
