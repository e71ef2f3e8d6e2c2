# SPDX-License-Identifier: Apache-2.0
"""Which release has what, against the flags that the installed releases named themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.vllm import cli, releases
from ansible.module_utils.vllm_fleet.vllm.release_data import FLAGS_GONE as REMOVED

TESTS = Path(__file__).resolve().parents[2]
RECORDED = {
    path.parent.name.split("-")[1]: frozenset(path.read_text().split())
    for path in sorted(TESTS.glob("fixtures/vllm-*-cpu/flags.txt"))
}
RECORDED["0.32.0"] = cli.read_help((TESTS / "standin/standin_vllm/serve-usage.txt").read_text()).flags
#: Of a help's examples, of numactl, and of words that it breaks.
NO_FLAG = re.compile(r"json-arg|physcpubind|cpunodebind|membind|.*-$")


@pytest.mark.parametrize("release", RECORDED)
def test_a_flag_is_there_from_the_release_that_the_table_names(release):
    flags = RECORDED[release]
    for flag, since in releases.SINCE.items():
        gone = REMOVED.get(flag)
        if releases.older(release, since):
            assert flag not in flags, (flag, since)
        elif gone is None or releases.older(release, gone.release):
            assert flag in flags, (flag, since)


@pytest.mark.parametrize("release", RECORDED)
def test_a_removed_flag_is_there_until_the_release_that_the_table_names(release):
    flags = RECORDED[release]
    for flag, gone in REMOVED.items():
        there = releases.older(release, gone.release) and not releases.older(release, releases.SINCE.get(flag, ""))
        assert (flag in flags) is there, (flag, gone.release)


def test_every_flag_that_a_later_release_has_more_is_in_the_table():
    oldest, *later = sorted(RECORDED, key=releases.version_of)
    for release in later:
        named = {flag for flag in RECORDED[release] - RECORDED[oldest] if not NO_FLAG.match(flag)}
        more = {flag.removeprefix("no-") for flag in named}
        assert more - RECORDED[oldest] <= releases.SINCE.keys(), release


@pytest.mark.parametrize("release", RECORDED)
def test_how_old_a_vllm_is_can_be_told_by_its_flags(release):
    for since in set(releases.SINCE.values()):
        assert releases.too_old(RECORDED[release], since) is releases.older(release, since), since


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v0.31.0", (0, 31, 0)),
        ("0.9.2.post2", (0, 9, 2)),
        ("0.11", (0, 11, 0)),
        ("rocm7.14_vllm_0.23.0", (0, 23, 0)),
        ("rocm7.14", None),
        ("nightly", None),
        ("", None),
    ],
)
def test_the_version_in_a_name(text, version):
    assert releases.version_of(text) == version


@pytest.mark.parametrize(
    ("args", "tag", "newer"),
    [
        (["max-num-queued-reqs", "max-model-len"], "v0.9.2", {"max-num-queued-reqs": "0.29"}),
        (
            ["eplb-config.window_size", "no-async-scheduling"],
            "0.9.2",
            {"async-scheduling": "0.10", "eplb-config": "0.10.2"},
        ),
        (["max-num-queued-reqs"], "v0.29.0", {}),
        (["max-num-queued-reqs"], "nightly", {}),
    ],
)
def test_flags_that_an_image_is_too_old_for(args, tag, newer):
    assert releases.newer_flags(args, tag) == newer


@pytest.mark.parametrize(
    ("value", "flags", "newer"),
    [
        ("nobind", {"max-model-len", "async-scheduling"}, [("VLLM_CPU_OMP_THREADS_BIND", "nobind", "0.11.1")]),
        ("nobind", {"max-model-len", "nnodes"}, []),
        ("nobind", {"max-model-len", "max-num-queued-reqs"}, []),
        ("0-3", {"max-model-len"}, []),
    ],
)
def test_values_that_a_vllm_is_too_old_for(value, flags, newer):
    found = releases.newer_values({"VLLM_CPU_OMP_THREADS_BIND": value}, lambda since: releases.too_old(flags, since))
    assert found == newer
