# SPDX-License-Identifier: Apache-2.0
"""What two readings of the counters and the request between them say of an engine."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.vllm import motion
from ansible.module_utils.vllm_fleet.vllm.chat_request import ChatError
from ansible.module_utils.vllm_fleet.vllm.motion import Page

LATE = ChatError("timeout_idle", "", "")
BROKEN = ChatError("http_status", "", "", 500)


@pytest.mark.parametrize(
    ("before", "error", "after", "engine"),
    [
        (Page(7.0), None, Page(8.0), "answers"),
        (Page(7.0), None, Page(7.0), "answers"),
        (Page(7.0), LATE, Page(7.0), "hung"),
        (Page(7.0), ChatError("timeout_total", "", ""), Page(7.0), "hung"),
        (Page(7.0), LATE, Page(9.0), "busy"),
        # The HTTP process hangs, too.
        (Page(late=True), LATE, Page(late=True), "hung"),
        (Page(late=True), LATE, Page(7.0), ""),
        # Statistics are off, or a gateway keeps them to itself.
        (Page(), LATE, Page(), ""),
        (Page(7.0), BROKEN, Page(7.0), "failing"),
        (Page(), ChatError("truncated", "", ""), Page(), "failing"),
        # Meanwhile it ended.
        (Page(7.0), ChatError("reset", "", ""), Page(), ""),
        (Page(), ChatError("http_status", "", "", 404), Page(), ""),
        (Page(), ChatError("refused", "", ""), Page(), ""),
    ],
)
def test_judge(before, error, after, engine):
    assert motion.judge(before, error, after) == engine
    assert engine == "" or motion.SAYS[engine]


@pytest.mark.parametrize(
    ("error", "worth"),
    [
        (None, False),
        (LATE, True),
        (BROKEN, True),
        (ChatError("http_status", "", "", 404), False),
        (ChatError("refused", "", ""), False),
        # It loads, behind a port of Docker's.
        (ChatError("reset", "", ""), False),
        (ChatError("closed", "", ""), False),
        (ChatError("unauthorized", "", "", 401), False),
        (ChatError("truncated", "", ""), True),
    ],
)
def test_a_second_look_is_for_silence_and_errors_of_the_server(error, worth):
    assert motion.worth_a_look(error) is worth
