# SPDX-License-Identifier: Apache-2.0
"""Which node of a replica failed first, out of what all of them report. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..common.failure import FailureClass

#: Classes that a partner's death brings upon the others, and which therefore explain nothing when there is another.
CONSEQUENCES = frozenset(
    {
        FailureClass.COLLECTIVE_INIT,
        FailureClass.ENGINE_DIED,
        FailureClass.STOPPED_BY_SIGNAL,
        FailureClass.STALLED,
        FailureClass.READY_TIMEOUT,
        FailureClass.UNKNOWN,
    }
)


def culprit(verdicts: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, Mapping[str, Any]] | None:
    """Return the node that failed first by its own cause, with its failure; None where none failed.

    ``verdicts``: (host, failure as in a module's result), in the order in which they came. A rank that died of its own
    cause is followed by others that only lost their partner. ``lost`` in a failure: read in the log of a rank that was
    ended with its partners before it had ended by itself.
    """

    def doubt(verdict: tuple[str, Mapping[str, Any]]) -> tuple[bool, bool]:
        return verdict[1].get("class") in CONSEQUENCES, bool(verdict[1].get("lost"))

    return min(verdicts, key=doubt, default=None)  # of equals the first
