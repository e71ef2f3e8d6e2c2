# SPDX-License-Identifier: Apache-2.0
"""A node that is away for a moment, or for good."""

import pytest

from ansible.module_utils.vllm_fleet.common.retry import retry


class Away(Exception):
    pass


@pytest.mark.parametrize(("away", "pauses"), [(0, []), (1, [1.0]), (3, [1.0, 2.0, 4.0])])
def test_it_is_asked_again_until_it_answers(away: int, pauses: list[float]) -> None:
    asked, slept, reset = [], [], []

    def call() -> str:
        asked.append(1)
        if len(asked) <= away:
            raise Away
        return "here"

    found = retry(call, Away, lambda: reset.append(1), clock=lambda: sum(slept), sleep=slept.append)
    assert (found, slept, len(reset)) == ("here", pauses, away)


def test_in_the_end_it_is_given_up_and_other_errors_are_not_waited_for() -> None:
    slept: list[float] = []

    def gone() -> None:
        raise Away("no route")

    with pytest.raises(Away, match="no route"):
        retry(gone, Away, lambda: None, timeout=60, clock=lambda: sum(slept), sleep=slept.append)
    assert 30 <= sum(slept) <= 60 and max(slept) == 15
    with pytest.raises(Away):
        retry(gone, Away, lambda: None, timeout=0, clock=lambda: 0.0, sleep=slept.append)
    with pytest.raises(ZeroDivisionError):
        retry(lambda: 1 / 0, Away, lambda: None)
