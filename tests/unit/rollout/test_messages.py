# SPDX-License-Identifier: Apache-2.0
"""The sentences about a gateway: what it would lose, what it did not drain, what it does not admit."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.gateway.servers import Loss
from ansible.module_utils.vllm_fleet.rollout import messages

PLACE = {"backend": "org_m", "server": "n1", "model": "org/m", "head": True}


@pytest.mark.parametrize(
    ("refuse_key", "serve_other", "why"),
    [
        (("n1", "n2"), (), "n1, n2 does not take vllm_server_api_key as it is described. Run"),
        ((), ("n1",), "(rollout_min_available): n1 does not serve org/m. Run"),
        (("n2",), ("n1",), "n2 does not take vllm_server_api_key as it is described; n1 does not serve org/m. Run"),
    ],
)
def test_what_a_gateway_would_lose(refuse_key, serve_other, why):
    said = messages.gateway_loses("gw", Loss("org/m", 3, 1, 2, refuse_key, serve_other))
    assert said.startswith(
        "With what is described, gw would send requests for org/m to 1 of 3 servers that have them now, expected at "
        "least 2 (rollout_min_available): "
    )
    assert why in said
    assert said.endswith(
        " Run deploy.yml once without that change, so that the gateway can keep the old key or name beside the new one "
        "(docs/gateway.md; gateway_keep_old must be true), or accept the gap with -e rollout_min_available=0. The gateway "
        "was not changed."
    )


@pytest.mark.parametrize(
    ("silent", "who"),
    [
        ([{"item": {"gateway": "g1"}, "msg": " no socket\n"}], "because g1 did not do it (no socket). Start"),
        (
            [{"item": {"gateway": "g1"}, "msg": "x"}, {"item": {"gateway": "g2"}, "msg": "x"}],
            "because g1 and g2 did not do it (x). Start",
        ),
        (
            [{"item": {"gateway": "g1"}, "msg": "x"}, {"item": {"gateway": "g2"}}],
            "because g1 and g2 did not do it (x; no message). Start",
        ),
    ],
)
def test_who_did_not_drain_and_why(silent, who):
    said = messages.not_drained("n1", silent)
    assert said.startswith("n1 was not drained and nothing of it was stopped, ")
    assert who in said


@pytest.mark.parametrize(
    ("probe", "why"),
    [
        (
            {"unreachable": True, "msg": " no route\n"},
            "the gateway cannot be reached (no route). Start it, or take it out of group gateway.",
        ),
        (
            {"running": False, "reason": "does not run: x"},
            "its HAProxy does not run: x. See systemctl status haproxy there.",
        ),
        ({"failed": True, "msg": "x"}, "its HAProxy failed. See systemctl status haproxy there."),
        (
            {"running": True, "servers": [{"backend": "other", "name": "n1"}]},
            "it has no server org_m/n1. Run the role gateway there (deploy.yml does) and try again.",
        ),
        (
            {
                "running": True,
                "servers": [{"backend": "org_m", "name": "n1", "status": "DOWN 1/2", "check": "L7STS 401"}],
            },
            "after 60 s its status is DOWN 1/2, the last health check said: L7STS 401. Compare address, port, key and "
            "served model name with what the server has.",
        ),
    ],
)
def test_what_a_gateway_sees_of_a_server_that_it_does_not_admit(probe, why):
    assert messages.not_admitted("n1", "gw", probe, PLACE, 60) == f"gw does not send requests to n1: {why}"
