# SPDX-License-Identifier: Apache-2.0
"""Whose failure explains the others'."""

from __future__ import annotations

from ansible.module_utils.vllm_fleet.replica import blame


def test_the_reason_is_the_one_that_is_not_a_consequence():
    lost = ("a1", {"class": "collective_init"})
    cause = ("a2", {"class": "gpu_memory_taken"})
    assert blame.culprit([lost, cause]) == cause
    assert blame.culprit([lost]) == lost
    # Read in the log of a rank that was ended: better than a consequence, less sure than what a rank died of by itself.
    read = ("a3", {"class": "disk_full", "lost": True})
    assert blame.culprit([lost, read]) == read
    assert blame.culprit([read, lost, cause]) == cause
    # Of two that explain nothing, the one that spoke first.
    assert blame.culprit([("a2", {"class": "unknown"}), lost]) == ("a2", {"class": "unknown"})
    assert blame.culprit([]) is None
