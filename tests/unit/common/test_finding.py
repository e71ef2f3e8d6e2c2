# SPDX-License-Identifier: Apache-2.0
"""Findings: the worst of them, and refusals that are accepted."""

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
