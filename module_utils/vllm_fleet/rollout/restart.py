# SPDX-License-Identifier: Apache-2.0
"""What playbooks/restart.yml asks of the waves, and what speaks against it. Pure.

A result is what vllm_server returned for a table of the fleet (mode status).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..vllm import host_variables
from . import left_out, messages
from .messages import ASKED

#: A difference that a restart is for: the container is stopped or paused, or its predecessor runs.
_RUNNING = frozenset({"state", "previous"})


def asked(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a wave restarts a server that is as described, in the form of `vllm_server_repair`.

    Nobody waits for requests to a server that its watchdog keeps out of the gateways.
    """
    out = (result.get("watchdog") or {}).get("state") == "out"
    return {"restart": True, "silent": out, "because": ASKED, "asked": True}


def against(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Return why servers cannot be restarted as they are, a sentence for each; one in maintenance is left out.

    Where all of them are in maintenance there is nothing to restart.
    """
    hosts = list(hosts)
    there = left_out.present(hostvars, hosts)
    if not there:
        return [f"{messages.names(hosts)}: left out, in maintenance. playbooks/start.yml ends that."]
    return [why for host in there if (why := _against(host, host_variables.server_result(hostvars[host])))]


def _against(host: str, found: Mapping[str, Any]) -> str:
    if found.get("failed") or found.get("not_reached") or "actions" not in found:
        why = str(found.get("msg") or found.get("not_reached") or "it did not answer").strip().rstrip(".")
        return (
            f"{host} cannot be asked what it runs: {why}. Mend that, or leave it out with --limit '!{host}'; "
            "rollout_unreachable: skip leaves out every node that does not answer."
        )
    if not found.get("container"):
        return f"{host} has no server yet: deploy.yml brings it."
    names = [str(one.get("name")) for one in found.get("differences") or []]
    other = [name for name in names if name not in _RUNNING]
    if not other:
        return ""
    return (
        f"{host} runs something else than is described ({', '.join(other)}), so a restart would replace it: run "
        f"deploy.yml for that, take the edit back, or leave it out with --limit '!{host}'."
    )
