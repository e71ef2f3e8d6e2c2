# SPDX-License-Identifier: Apache-2.0
"""Flags for an image that no node has yet, by the release that its tag names."""

import pytest

from ansible.module_utils.vllm_fleet.preflight import flags


@pytest.mark.parametrize(
    ("args", "tag", "got", "remedy"),
    [
        (
            {"max-model-length": 4096, "tensor_parallel": 8},
            "v0.31.0",
            "max-model-length, tensor-parallel",
            "write max-model-len for max-model-length; write tensor-parallel-size for tensor-parallel (vllm_server_args)",
        ),
        ({"enable-prefix-cachng": True}, "0.9.2", "enable-prefix-cachng", "write enable-prefix-caching for"),
        ({"hf-overide.a": 1}, "0.31.0", "hf-overide.a", "write hf-overrides for hf-overide.a"),
        ({"no-enable-prefix-cache": True}, "0.31.0", "no-enable-prefix-cache", "write enable-prefix-caching for"),
        ({"qqqq": 1}, "v0.31.0", "qqqq", "take qqqq out: no release up to 0."),
        ({"swap-space": 4}, "v0.31.0", "swap-space (gone since 0.18)", "leave it out"),
    ],
)
def test_what_no_such_release_has_is_refused(args, tag, got, remedy):
    [one] = flags.judge({**args, "seed": 1}, tag)
    assert (one.level, one.what, one.got) == ("refused", "vLLM flags", got)
    assert one.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("args", "tag"),
    [
        ({"max_model_len": 4, "--seed": 1, "-tp": 8, "enable-prefix-caching": False}, "v0.31.0"),
        ({"compilation-config.level": 3, "-O3": True}, "rocm7.14_vllm_0.23.0"),
        ({"swap-space": 4}, "0.17.1"),
        ({"swap-space": None, "qqqq": None, "seed": 1}, "0.31.0"),
        # Of a later release: a warning of the model's sizing.
        ({"watchdog-config": {}}, "0.31.0"),
    ],
)
def test_what_the_release_has_is_known_but_for_its_value(args, tag):
    [one] = flags.judge(args, tag)
    assert one.level == "unknown" and one.got.endswith(
        "known by name; their values are checked when the image is there"
    )


@pytest.mark.parametrize("tag", ["", "nightly", "1.2", "0.99.0", "0.8.4", "mine"])
def test_of_an_unknown_release_nothing_is_refused_and_it_is_said(tag):
    [one] = flags.judge({"qqqq": 1}, tag)
    assert one.level == "unknown" and one.got.startswith("not checked: ")


def test_without_flags_there_is_nothing_to_say():
    assert flags.judge({}, "v0.31.0") == flags.judge({"-O3": True}, "v0.31.0") == []
