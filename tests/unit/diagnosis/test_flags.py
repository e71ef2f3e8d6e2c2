# SPDX-License-Identifier: Apache-2.0
"""Advice about flags: the table agrees with vLLM's help, misspellings are found, and the rest gets no advice."""

from __future__ import annotations

import re

import pytest
from test_diagnose import FIXTURES

from ansible.module_utils.vllm_fleet.diagnosis.flags import meant, removed, split_words
from ansible.module_utils.vllm_fleet.vllm.release_data import FLAGS_GONE as REMOVED

USAGE = (FIXTURES.parent / "standin" / "standin_vllm" / "serve-usage.txt").read_text()
KNOWN = sorted(set(re.findall(r"--([a-z][a-z0-9-]+)", USAGE)))


def test_a_flag_that_is_gone_is_not_in_the_help() -> None:
    assert len(KNOWN) > 300
    assert REMOVED.keys() & set(KNOWN) == set()


@pytest.mark.parametrize("flag", REMOVED)
def test_what_is_to_be_written_instead_is_in_the_help(flag: str) -> None:
    instead = REMOVED[flag].instead
    named = re.findall(r"(?<![\w-])[a-z]+(?:-[a-z]+)+(?![\w-])", instead) + re.findall(r"`([a-z-]+):", instead)
    assert set(named) <= set(KNOWN)


@pytest.mark.parametrize(
    ("flag", "known"),
    [
        ("gpu-mem-utilisation", "gpu-memory-utilization"),
        ("max-model-length", "max-model-len"),
        ("tensor-paralel-size", "tensor-parallel-size"),
        ("enable-auto-tool-choise", "enable-auto-tool-choice"),
        # No advice: the nearest ones are other flags.
        ("disable-log-requests", ""),
        ("enable-reasoning", ""),
        ("task", ""),
        ("temperature", ""),
        ("omni", ""),
        ("stage-configs-path", ""),
        ("num-scheduler-steps", ""),
        ("frobnicate", ""),
    ],
)
def test_a_misspelling_is_found_and_nothing_else(flag: str, known: str) -> None:
    assert meant(flag, KNOWN) == known


@pytest.mark.parametrize(
    ("unknown", "flags", "stray"),
    [
        ("--a-b 0.8 --c", ["--a-b", "--c"], []),
        ("--task=embed", ["--task"], []),
        ("--x_y -1 --z", ["--x_y", "--z"], []),
        ("-language-model-only", ["-language-model-only"], []),
        ("serve /models/x --port 1", ["--port"], ["serve", "/models/x"]),
        ("deepseek_r1", [], ["deepseek_r1"]),
    ],
)
def test_values_are_no_flags(unknown: str, flags: list[str], stray: list[str]) -> None:
    assert split_words(unknown) == (flags, stray)


def test_a_negated_flag_is_the_same_flag() -> None:
    assert removed("no-enable-prompt-adapter") == removed("enable-prompt-adapter") is not None
    assert removed("no-enforce-eager") is None
