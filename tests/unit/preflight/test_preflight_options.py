# SPDX-License-Identifier: Apache-2.0
"""The options of preflight_host are parsed once, and each value keeps its meaning."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible.module_utils.vllm_fleet.common.finding import Finding
from ansible.module_utils.vllm_fleet.host.server_needs import Archive
from ansible.module_utils.vllm_fleet.preflight.options import SPEC, PreflightOptions

ARCHIVE = {
    "location": "node",
    "expected_id": "",
    "cache": "~/.cache/vllm-fleet",
    "held": {},
    "trouble": "",
    "here": False,
}


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({}, "look", True),
        ({"host": False}, "look", False),
        ({}, "archive", None),
        ({"archive": {"path": ""}}, "archive", None),
        ({"archive": {"path": "/a.tar"}}, "archive", Archive(path="/a.tar", **ARCHIVE)),
        ({}, "cache", None),
        ({"cache": ""}, "cache", None),
        ({"cache": "/c"}, "cache", Path("/c")),
        ({}, "utilization", None),
        ({"utilization": 0}, "utilization", 0.0),
        ({"sysctls": {"vm.swappiness": 1}}, "sysctls", {"vm.swappiness": "1"}),
        ({"gpus": "4"}, "gpus", 4),
        ({"accept": ["GPU count"]}, "accept", ("GPU count",)),
        (
            {"findings": [{"level": "ok", "what": "a", "expected": "b", "got": "c"}]},
            "findings",
            (Finding("ok", "a", "b", "c"),),
        ),
    ],
)
def test_an_option_has_its_type(given, name, value):
    checked = ArgumentSpecValidator(**SPEC).validate(given)
    assert not checked.error_messages
    assert getattr(PreflightOptions.from_params(checked.validated_parameters), name) == value
