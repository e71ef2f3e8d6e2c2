# SPDX-License-Identifier: Apache-2.0
"""Lookup: options that a role gives to its module, made of the role's variables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plugin_utils import role_options
from plugin_utils.variables import Variables

DOCUMENTATION = r"""
name: vllm_fleet_options
short_description: Options that a role gives to its module
description:
  - Makes the options of a module from the variables of its role, without a template for each of them.
  - Used by the roles of this project; not meant for playbooks.
options:
  _terms:
    description: One name, such as C(vllm_server); C(plugin_utils/role_options.py) lists them.
    required: true
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Show the options of the server
  ansible.builtin.debug:
    msg: "{{ lookup('vllm_fleet_options', 'vllm_server') }}"
"""

RETURN = r"""
_raw:
  description: The options.
  type: list
"""


class LookupModule(LookupBase):  # type: ignore[misc]
    """One answer for each name."""

    def run(self, terms: Sequence[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        """Return what the names stand for."""
        unknown = [name for name in terms if name not in role_options.NAMED]
        if unknown:
            raise AnsibleError(f"vllm_fleet_options knows {', '.join(role_options.NAMED)}, not {unknown[0]}")
        known = Variables(self._templar, variables or {})
        return [role_options.made(role_options.NAMED[name], known) for name in terms]
