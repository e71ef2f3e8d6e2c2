#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module vllm_model_info: what a model takes, from its own two small files. Read-only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_model_info
short_description: Read what a model takes from its config.json and weight index
description:
  - Looks for C(config.json) and C(model.safetensors.index.json) in a folder, then in caches, and asks the Hugging Face Hub for these two files when
    neither has them. Weights are never read.
  - The first place with both the configuration and the weights' size is used. O(config) and O(weights_bytes) of a preset come before the Hub, so a
    model with a whole preset needs no network.
options:
  model:
    description: Exact id on the Hub, or an absolute path.
    type: str
    required: true
  revision:
    description: Commit, branch or tag. Empty is C(main).
    type: str
    default: ""
  path:
    description: Folder with the two files.
    type: path
  caches:
    description: Hugging Face homes on this machine.
    type: list
    elements: path
    default: []
  hub:
    description: Whether the Hub may be asked, which needs the Python package C(huggingface_hub) where the task runs.
    type: bool
    default: true
  hf_token:
    description: Token for the Hub.
    type: str
    default: ""
  config:
    description: Fields of the model's config.json that a preset knows.
    type: dict
    default: {}
  weights_bytes:
    description: Bytes of all weights that a preset knows; V(0) when it does not.
    type: int
    default: 0
  preset:
    description: Name of the preset's file.
    type: str
    default: ""
  min_vllm:
    description: Oldest vLLM that serves the model.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: This module does not change anything.
  diff_mode:
    support: none
    description: This module does not change anything.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Read a model that is not deployed yet
  vllm_model_info:
    model: Qwen/Qwen3-32B
  delegate_to: localhost
  register: model

- name: Say what it takes on eight MI300X
  ansible.builtin.debug:
    msg: "{{ (model.facts | vllm_plan(kinds=['MI300X'], args={'tensor-parallel-size': 2})).rows | vllm_sizing_table }}"
"""

RETURN = r"""
facts:
  description: What the arithmetic needs, for the filter C(vllm_plan).
  returned: always
  type: dict
  contains:
    model: {description: The id or path., type: str}
    config: {description: Its config.json., type: dict}
    weights_bytes: {description: Bytes of all weights; null when not known., type: int}
    source: {description: Where the figures are from., type: str}
    min_vllm: {description: Oldest vLLM that serves it; empty when none is named., type: str}
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.models import hub_files, model_files
from ansible.module_utils.vllm_fleet.models.sizing import Facts


def main() -> None:
    """Look, ask, answer."""
    module = AnsibleModule(
        argument_spec={
            "model": {"type": "str", "required": True},
            "revision": {"type": "str", "default": ""},
            "path": {"type": "path"},
            "caches": {"type": "list", "elements": "path", "default": []},
            "hub": {"type": "bool", "default": True},
            "hf_token": {"type": "str", "default": "", "no_log": True},
            "config": {"type": "dict", "default": {}},
            "weights_bytes": {"type": "int", "default": 0},
            "preset": {"type": "str", "default": ""},
            "min_vllm": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        facts = look(module.params)
    except (model_files.ModelFilesError, hub_files.HubError) as error:
        module.fail_json(msg=f"What {module.params['model']} takes is not known: {str(error).rstrip('.')}.")
    module.exit_json(changed=False, facts=asdict(facts))


def look(options: dict[str, Any]) -> Facts:
    """Return the figures of the best place that has some. Raises ModelFilesError or HubError when none has."""
    model = options["model"]
    source = f"models/{options['preset']}" if options["preset"] else ""
    preset = Facts(model, options["config"], options["weights_bytes"] or None, source, options["min_vllm"])
    own = None
    if options["path"]:
        own = model_files.of_folder(model, Path(options["path"]))
        if own is None:
            raise model_files.ModelFilesError(f"{options['path']} has no {model_files.CONFIG}")
    if own is None:
        own = model_files.find(model, [Path(cache) for cache in options["caches"]], options["revision"])
    found = model_files.complete(own, preset)
    whole = bool(found.config) and found.weights_bytes is not None
    if not whole and options["hub"] and not model.startswith("/") and not options["path"]:
        try:
            return model_files.complete(hub_files.fetch(model, options["revision"], options["hf_token"]), preset)
        except hub_files.HubError:
            if not found.config:
                raise
    if not found.config:
        raise model_files.ModelFilesError(f"neither a cache on this machine nor a preset has its {model_files.CONFIG}")
    return found


if __name__ == "__main__":
    main()
