# SPDX-License-Identifier: Apache-2.0
"""The watchdog's states and events: their words, the gateway's line, and how a person reads them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What the watchdog thinks of a server: it has not been ready yet; it works; it hangs; it is being restarted; it stays
#: out of the gateways; it is someone else's now; there is no container.
STATES = ("starting", "serving", "hung", "restarting", "out", "left_alone", "absent")
#: States in which the gateways are to send nothing.
DOWN = ("hung", "restarting", "out")
#: Kinds of events: the watchdog began; it saw a server hang; it kept evidence; it took the server out; it restarts it;
#: the server is ready and verified; it is not; there were too many restarts; the server is back; it is someone else's
#: now; the watchdog itself is in trouble; a GPU is not as it should be; GPUs are so sick that the server is out; they
#: are well again; a run repairs the node; it has; it could not.
KINDS = (
    "started",
    "hung",
    "evidence",
    "out",
    "restart",
    "restarted",
    "failed",
    "limit",
    "back",
    "left_alone",
    "trouble",
    "gpu",
    "quarantine",
    "released",
    "repair",
    "repaired",
    "repair_failed",
)


def agent_line(state: str, action: str, quarantine: str = "") -> bytes:
    """Return what the agent answers to a gateway: ``up`` or ``down`` with the state as the reason.

    ``quarantine`` is why the node's GPUs cannot be trusted. With ``observe`` a server is never taken out. Source:
    HAProxy's agent-check, one line of ASCII.
    """
    if quarantine and action != "observe":
        return b"down #quarantine\n"
    if state in DOWN and action != "observe":
        return f"down #{state}\n".encode("ascii")
    return b"up\n"


def shown(name: str, state: Mapping[str, Any]) -> str:
    """Return a state file's content as lines for a person."""
    lines = [f"{name}: {state.get('state')}: {state.get('why')}"]
    if state.get("quarantine"):
        lines.append(f"in quarantine: {state['quarantine']}")
    restarts = state.get("restarts") or []
    lines.append(f"restarts in the last hour: {len(restarts)}")
    last = state.get("last_event") or {}
    if last:
        lines.append(f"last event: {last.get('at')} {last.get('kind')}: {last.get('why')}")
    return "\n".join(lines)
