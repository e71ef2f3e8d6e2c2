"""Filter: flags of `vllm serve` merged over a model's preset, however each of them is spelt."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.vllm import cli


def vllm_args(preset: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> dict[str, Any]:
    """Lay ``wanted`` over ``preset``: `max_model_len` replaces `max-model-len`; null takes a preset's flag away.

    The result has each flag under its long, hyphenated name, so that whoever looks one up finds it. Two spellings of
    one flag inside ``wanted`` stay as they are: the module refuses them and says so.
    """
    name = cli.flag_name
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
