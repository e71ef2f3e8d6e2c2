"""Filter: flags of `vllm serve` merged over a model's preset, however each of them is spelt."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# The nodes' code, by its path: on the controller Ansible does not import module_utils of a project.
_SOURCE = Path(__file__).resolve().parent.parent / "module_utils" / "vllm_fleet" / "command.py"


@functools.cache
def _command() -> Any:
    spec = importlib.util.spec_from_file_location("vllm_fleet_command", _SOURCE)
    if spec is None or spec.loader is None:
        raise AnsibleFilterError(f"{_SOURCE} is missing")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def vllm_args(preset: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> dict[str, Any]:
    """Lay ``wanted`` over ``preset``: `max_model_len` replaces `max-model-len`; null takes a preset's flag away.

    The result has each flag under its long, hyphenated name, so that whoever looks one up finds it. Two spellings of
    one flag inside ``wanted`` stay as they are: the module refuses them and says so.
    """
    name = _command().flag_name
    merged = {name(str(key)): value for key, value in (preset or {}).items()}
    given = Counter(name(str(key)) for key in wanted or {})
    for flag in given:
        merged.pop(flag, None)
    for key, value in (wanted or {}).items():
        flag = name(str(key))
        merged[flag if given[flag] == 1 else str(key)] = value
    return merged


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name them."""
        return {"vllm_args": vllm_args}
