# SPDX-License-Identifier: Apache-2.0
"""Old and new pools side by side: what a gateway records, which pools are kept, who gets what."""

from __future__ import annotations

import pytest
from test_pools import find, host

from ansible.module_utils.vllm_fleet.gateway import generations

OLD = {"backend": "org_m", "model": "org/m", "names": ["org/m"], "adapters": [], "secret": "k"}


def seen(*rows):
    return [{"backend": backend, "name": name, "status": status} for backend, name, status in rows]


UP = seen(("org_m", "n1", "UP"), ("org_m", "n2", "UP"))


def after(*rows, recorded=(OLD,), **more):
    return find(host("n1", **more), host("n2", **more), recorded=list(recorded), known=seen(*rows) if rows else UP)


@pytest.mark.parametrize("secret", ["", "plain", "100% o'clock %% ''", "none-such"])
def test_a_record_is_read_as_it_was_written(secret):
    pool = {**OLD, "name": "org_m", "names": ["org/m", "a'b"]}
    text = f"global\n    # {generations.record(pool)}\n    setenv {generations.variable('org_m')} '"
    found = generations.records(f"{text}{generations.quoted(secret)}'\n")
    assert found == [{**OLD, "names": ["org/m", "a'b"], "secret": secret}]
    assert generations.records("# by hand\nglobal\n    setenv VLLM_FLEET_KEY_1 'k'\n") == []


def test_what_is_described_keeps_its_name():
    assert [pool["name"] for pool in after()["pools"]] == ["org_m"]
    assert [pool["name"] for pool in after(recorded=[{**OLD, "backend": "org_m:2"}])["pools"]] == ["org_m:2"]
    # A server without a key takes any.
    assert [pool["name"] for pool in after(recorded=[{**OLD, "secret": ""}])["pools"]] == ["org_m"]


def test_a_new_key_has_a_pool_beside_the_old_one():
    found = after(vllm_server_api_key="new")
    new, old = found["pools"]
    assert (new["name"], old["name"], old["heirs"], old["closed"]) == ("org_m:2", "org_m", ["org_m:2"], True)
    assert found["secrets"] == {"org_m:2": "new", "org_m": "k"}
    assert found["fronts"][0]["spreads"] == [{"new": "org_m:2", "old": "org_m", "fresh": []}]
    assert [one["name"] for one in old["servers"]] == ["n1", "n2"]
    assert found["problems"] == []
    assert "'k'" not in str(found["pools"])


BOTH = [{**OLD, "backend": "org_m:2", "secret": "new"}, OLD]


@pytest.mark.parametrize(
    ("n1", "n2", "kept"),
    [
        (("DOWN", "UP"), ("UP", "DOWN"), ["n2"]),
        (("DOWN", "UP"), ("DOWN", "DOWN"), ["n2"]),  # it may come back with the old one
        (("DRAIN", "UP"), ("DOWN", "DRAIN"), ["n2"]),
        (("DOWN", "UP"), ("DRAIN", "UP 1/3"), []),
    ],
    ids=["half way", "dead", "killed", "done"],
)
def test_an_old_pool_goes_with_its_last_server(n1, n2, kept):
    rows = [(backend, "n1", state) for backend, state in zip(("org_m", "org_m:2"), n1, strict=True)]
    rows += [(backend, "n2", state) for backend, state in zip(("org_m", "org_m:2"), n2, strict=True)]
    pools = after(*rows, recorded=BOTH, vllm_server_api_key="new")["pools"]
    assert [one["name"] for pool in pools[1:] for one in pool["servers"]] == kept
    assert pools[0]["name"] == "org_m:2"


def test_names_are_told_apart_by_the_check():
    found = after(vllm_server_args={"served-model-name": ["org/m", "more"]})
    new, old = found["pools"]
    assert (new["demands"], old["demands"]) == (["more"], [])
    assert found["fronts"][0]["spreads"] == [{"new": "org_m:2", "old": "org_m", "fresh": ["more"]}]
    found = after(vllm_server_args={"served-model-name": "next"})
    assert [pool["name"] for pool in found["pools"]] == ["next", "org_m"]
    # What names no model may go to either.
    assert found["fronts"][0]["spreads"] == [{"new": "next", "old": "org_m", "fresh": ["next"]}]
    # With another key, too, the clients of one are not those of the other.
    assert (
        after(vllm_server_args={"served-model-name": "next"}, vllm_server_api_key="new")["fronts"][0]["spreads"] == []
    )


def test_a_server_that_is_to_move_stays_where_it_is():
    hosts = [host("n1"), host("n2", vllm_server_model="org/b")]
    first, second = find(*hosts, recorded=[OLD], known=UP)["pools"]
    assert [one["name"] for one in first["servers"]] == ["n1", "n2"]
    assert (first["name"], second["name"]) == ("org_m", "org_b")


CHAT = {"names": ["org/m", "chat"], "adapters": []}


def test_a_server_that_moves_between_pools_of_one_name_leaves_the_old_one():
    """By the shared name alone it would pass the check of a pool whose model it does not serve any more."""
    hosts = [
        host("n1", vllm_server_model="org/b", vllm_server_args={"served-model-name": ["org/b", "chat"]}),
        host("n2", vllm_server_args={"served-model-name": CHAT["names"]}),
    ]
    recorded = [{**OLD, **CHAT}, {**OLD, "backend": "org_b", "model": "org/b", "names": ["org/b", "chat"]}]
    known = seen(("org_m", "n1", "UP"), ("org_m", "n2", "UP"))
    pools = {pool["name"]: pool for pool in find(*hosts, recorded=recorded, known=known)["pools"]}
    assert [one["name"] for one in pools["org_m"]["servers"]] == ["n2", "n1"]
    assert (pools["org_m"]["demands"], pools["org_b"]["demands"]) == (["org/m"], ["org/b"])


def test_a_shared_name_is_not_spread_to_the_old_servers_of_another_pool():
    args = {"served-model-name": ["org/m", "chat"]}
    hosts = [
        host("n1", vllm_server_args=args, vllm_server_api_key="new"),
        host("n2", vllm_server_model="org/b", vllm_server_args={"served-model-name": ["org/b", "chat"]}),
    ]
    recorded = [{**OLD, **CHAT}]
    found = find(
        *hosts, recorded=recorded, known=seen(("org_m", "n1", "UP")), split={"chat": {"org/m": 90, "org/b": 10}}
    )
    assert [(one["new"], one["old"]) for one in found["fronts"][0]["spreads"]] == [("org_m:2", "org_m")]


def test_an_old_pool_with_a_key_stays_closed_while_its_servers_become_an_open_model():
    open_b = {"vllm_server_model": "org/b", "vllm_server_api_key": "", "vllm_server_allow_unauthenticated": True}
    found = after(**open_b)
    assert [(pool["name"], pool["closed"]) for pool in found["pools"]] == [("org_b", False), ("org_m", True)]


def test_where_haproxy_says_nothing_an_old_pool_is_kept():
    """It was stopped in the middle of a change: its servers would be taken for down."""
    found = find(host("n1", vllm_server_api_key="new"), recorded=[OLD], known=[])
    assert [(pool["name"], pool.get("kept")) for pool in found["pools"]] == [("org_m:2", None), ("org_m", True)]


def test_a_key_that_has_leaked_is_dropped_at_once_and_the_backend_keeps_its_name():
    new = {**OLD, "backend": "org_m:2", "secret": "new"}
    found = find(host("n1", vllm_server_api_key="new"), recorded=[OLD, new], known=UP, keep_old=False)
    assert [pool["name"] for pool in found["pools"]] == ["org_m:2"]


def test_an_alias_reaches_the_old_pool_too():
    hosts = [host(name, vllm_server_api_key="new") for name in ("n1", "n2")]
    found = find(*hosts, recorded=[OLD], known=UP, aliases={"gpt": "org/m"})
    assert [pool["aliases"] for pool in found["pools"]] == [["gpt"], ["gpt"]]


def test_a_model_cannot_take_the_name_of_the_configurations_own_sections():
    (pool,) = find(host("n1", vllm_server_model="vllm-fleet-keys"))["pools"]
    assert pool["name"] == "vllm-fleet-keys:2"


@pytest.mark.parametrize(
    ("status", "address", "n1", "stays"),
    [
        ("UP", "192.0.2.9:8000", {}, True),
        ("UP", "[2001:db8::9]:8000", {}, True),
        ("DOWN", "192.0.2.9:8000", {}, False),
        ("MAINT (resolution)", "192.0.2.9:8000", {}, False),
        ("UP", "", {}, False),
        # A host with a new name, at the same place: its drain must end all requests.
        ("UP", "192.0.2.1:8000", {}, False),
        ("UP", "192.0.2.1:8001", {}, True),
        # HAProxy knows where a name leads, if it knows the server.
        ("UP", "192.0.2.9:8000", {"ansible_host": "n1.example.org"}, True),
        ("UP", "192.0.2.1:8000", {"ansible_host": "n1.example.org"}, False),
        ("UP", "192.0.2.9:8000", {"inventory_hostname": "n2", "ansible_host": "n2.example.org"}, False),
        # Of a key that has changed it stays in the pool that has the old one.
        ("UP", "192.0.2.9:8000", {"vllm_server_api_key": "new"}, True),
    ],
)
def test_a_server_that_left_the_inventory_serves_until_the_waves_are_through(status, address, n1, stays):
    rows = [("n1", "UP", "192.0.2.1:8000"), ("gone", status, address)]
    known = [{"backend": "org_m", "name": name, "status": state, "address": at} for name, state, at in rows]
    given = {"recorded": [OLD], "known": known}
    now = find(host("n1", **n1), keep_leaving=True, **given)["pools"]
    (there,) = [[one["name"] for one in pool["servers"]] for pool in now if pool["name"] == "org_m"]
    assert ("gone" in there) is stays
    assert not any("gone" in str(pool["servers"]) for pool in find(host("n1", **n1), **given)["pools"])
    leaked = find(host("n1", **n1), keep_leaving=True, keep_old=False, **given)["pools"]
    assert not any("gone" in str(pool["servers"]) for pool in leaked)
