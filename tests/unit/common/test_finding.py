# SPDX-License-Identifier: Apache-2.0
"""Findings: the worst of them, and refusals that are accepted."""

import pytest

from ansible.module_utils.vllm_fleet.common import finding
from ansible.module_utils.vllm_fleet.common.finding import Finding


def test_worst_and_accept():
    found = [
        Finding("ok", "a", "1", "1"),
        Finding("refused", "b", "1", "2", "mend it"),
        Finding("unknown", "c", "", ""),
    ]
    assert finding.worst(found) == "refused"
    assert finding.worst(finding.accept(found, ["b", "c"])) == "warning"
    assert finding.worst([]) == "ok"
    assert found[1].sentence == "b: expected 1, found 2; mend it"


GOOD = {"level": "warning", "what": "a", "expected": "b", "got": "c"}


def test_a_finding_of_a_user_or_a_node_is_read_for_its_form():
    assert finding.told({**GOOD, "remedy": 5}) == finding.Finding("warning", "a", "b", "c", "5")


@pytest.mark.parametrize(
    "odd",
    [
        None,
        1,
        "x",
        [GOOD],
        {},
        {**GOOD, "api_key": "x"},
        {**GOOD, "level": "fine"},
        {**GOOD, "level": ["ok"]},
        {**GOOD, "got": None},
    ],
)
def test_what_is_no_finding_is_said_in_a_sentence(odd):
    with pytest.raises(ValueError, match="a finding has level"):
        finding.told(odd)
