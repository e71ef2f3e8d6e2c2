# SPDX-License-Identifier: Apache-2.0
"""Which servers stand behind a gateway: from the inventory alone."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.gateway import fronts, pools, servers


def host(name, **more):
    return {
        "inventory_hostname": name,
        "ansible_host": f"192.0.2.{name[-1]}",
        "vllm_server_model": "org/m",
        "vllm_server_bind": "0.0.0.0",
        "vllm_server_api_key": "k",
        **more,
    }


def find(*hosts, ports=None, port=8080, **more):
    hostvars = {entry["inventory_hostname"]: entry for entry in hosts}
    hostvars["gw"] = {"inventory_hostname": "gw", "ansible_host": "192.0.2.100"}
    names = [entry["inventory_hostname"] for entry in hosts]
    return pools.pools_behind(hostvars, names, "gw", port=port, ports=ports or {}, offset=10000, **more)


def test_where_an_administrator_keeps_a_server_out():
    def look(gateway, *states):
        servers = [{"name": name, "status": status} for name, status in states]
        return {"item": gateway, "servers": servers}

    looks = [
        look("gw1", ("n1", "MAINT"), ("n2", "UP")),
        look("gw2", ("n1", "DRAIN"), ("n2", "MAINT")),
        look("gw3", ("n1", "MAINT (resolution)"), ("n2", "MAINT (via a/b)")),
        {"item": "gw4", "unreachable": True},
    ]
    assert servers.kept_out(looks, "n1") == ["gw1"]
    assert servers.kept_out(looks, "n2") == ["gw2"]


def test_one_pool():
    found = find(host("n1"), host("n2", vllm_server_port=8001, gateway_server_address="10.0.0.2"))
    assert found["problems"] == []
    (pool,) = found["pools"]
    assert (pool["name"], pool["model"], pool["port"], pool["local_port"]) == ("org_m", "org/m", 8080, 18080)
    assert [(one["name"], one["address"], one["port"]) for one in pool["servers"]] == [
        ("n1", "192.0.2.1", 8000),
        ("n2", "10.0.0.2", 8001),
    ]


def test_hosts_of_one_replica_are_one_server():
    found = find(host("n1", vllm_server_replica="a"), host("n2", vllm_server_replica="a"), host("n3"))
    assert [server["name"] for server in found["pools"][0]["servers"]] == ["n1", "n3"]
    hostvars = {name: host(name, vllm_server_replica="a") for name in ("n1", "n2")}
    place = pools.place(hostvars, ["n1", "n2"], "n2")
    assert place == {"backend": "org_m", "server": "n1", "model": "org/m", "serves": "org/m", "head": False}


def test_pools_of_two_models_have_ports_of_their_own():
    two = (host("n1"), host("n2", vllm_server_args={"served-model-name": ["chat", "c"]}))
    found = find(*two, ports={"chat": 8081})
    assert found["problems"] == []
    assert [(pool["name"], pool["port"]) for pool in found["pools"]] == [("org_m", 8080), ("chat", 8081)]
    (problem,) = find(*two, ports={"chat": 8081, "org/m": 8081})["problems"]
    assert problem == (
        "org/m and chat would both be on port 8081 of the gateway: give each its own in gateway_ports, such as {chat: 8082}, "
        "or leave both out of it to share gateway_port."
    )


@pytest.mark.parametrize(
    ("variables", "more", "urls"),
    [
        ({}, {}, ["http://gw:8080/v1"]),
        ({"ansible_host": "192.0.2.9"}, {"tls": True}, ["https://192.0.2.9:8080/v1"]),
        ({"ansible_host": "192.0.2.9", "gateway_address": "10.0.0.9"}, {}, ["http://10.0.0.9:8080/v1"]),
        ({"ansible_host": "192.0.2.9"}, {"vip": "10.0.0.1/24"}, ["http://10.0.0.1:8080/v1"]),
        ({"ansible_host": "192.0.2.9"}, {"bind": "2001:db8::1"}, ["http://[2001:db8::1]:8080/v1"]),
    ],
)
def test_where_clients_ask(variables, more, urls):
    made = find(host("n1"))["fronts"]
    options = {"name": "gw", "bind": "*", "vip": "", "tls": False, **more}
    assert fronts.urls(made, variables, **options) == urls


def test_of_several_ports_those_of_one_model_name_it():
    two = (host("n1"), host("n2", vllm_server_args={"served-model-name": ["chat", "c"]}))
    made = find(*two, ports={"chat": 8081})["fronts"]
    assert fronts.urls(made, {}, name="gw", bind="*", vip="", tls=False) == [
        "http://gw:8080/v1",
        "http://gw:8081/v1 (chat)",
    ]


@pytest.mark.parametrize(
    ("hosts", "ports", "says"),
    [
        ([], {}, "Group vllm has no hosts"),
        ([host("n1", vllm_server_model="")], {}, "n1 has no vllm_server_model"),
        ([host("n1", vllm_server_bind="127.0.0.1")], {}, "n1 serves on 127.0.0.1 alone, where gw cannot reach it"),
        ([host("n1"), host("n2", vllm_server_api_key="other")], {}, "n2 and n1 serve org/m with different keys"),
        (
            [host("n1")],
            {"other": 8081},
            "gateway_ports names other, which no host of group vllm serves; served are org/m",
        ),
        (
            [host("n1", vllm_server_replica="a"), host("n2", vllm_server_replica="a", vllm_server_model="x")],
            {},
            "n2 and n1 are one replica (a) but serve x and org/m",
        ),
    ],
)
def test_what_no_gateway_can_serve(hosts, ports, says):
    assert any(says in problem for problem in find(*hosts, ports=ports)["problems"])


def test_a_gateway_beside_its_server():
    one = {"inventory_hostname": "n1", "ansible_connection": "local", "vllm_server_model": "m"}
    here = {"port": 8080, "ports": {}, "offset": 10000}
    found = pools.pools_behind({"n1": one}, ["n1"], "n1", bind="127.0.0.1", **here)
    assert found["problems"] == []
    (server,) = found["pools"][0]["servers"]
    assert (server["name"], server["address"], server["port"]) == ("n1", "127.0.0.1", 8000)
    (problem,) = pools.pools_behind({"n1": one}, ["n1"], "n1", **here)["problems"]
    assert problem == (
        "m has no vllm_server_api_key, and n1 would publish it on *: set the key (from vault), gateway_keys, gateway_bind: "
        "127.0.0.1, or vllm_server_allow_unauthenticated: true for n1 if anyone may use it."
    )


@pytest.mark.parametrize(
    ("edits", "bind", "closed"),
    [
        (({}, {}), "*", "n1, n2"),
        (({}, {"vllm_server_allow_unauthenticated": True}), "10.0.0.1", "n1"),
        (({}, {}), "localhost", None),
        (({"vllm_server_allow_unauthenticated": "yes"}, {"vllm_server_allow_unauthenticated": True}), "::", None),
        (({"vllm_server_api_key": "k"}, {"vllm_server_api_key": "k"}), "*", None),
    ],
)
def test_a_pool_without_a_key_is_published_only_where_that_is_allowed(edits, bind, closed):
    hosts = [host(f"n{n}", **{"vllm_server_api_key": "", **edit}) for n, edit in enumerate(edits, 1)]
    found = find(*hosts, bind=bind)
    assert found["pools"][0]["key"] == bool(edits[0].get("vllm_server_api_key"))
    assert len(found["problems"]) == bool(closed)
    assert all(
        f"would publish it on {bind}: " in text and f"true for {closed} if" in text for text in found["problems"]
    )


@pytest.mark.parametrize("name", ["it's", 'a"b', "a\nfrontend evil", "a\x7f", "\x9b"])
def test_a_name_that_would_end_its_quotes_or_line_is_refused(name):
    for found in (
        find(host("n1", vllm_server_args={"served-model-name": name})),
        find(host("n1"), also_healthy=[name]),
    ):
        (problem,) = found["problems"]
        assert f"HAProxy cannot look for a model called {name!r}" in problem
        assert "\n" not in problem


@pytest.mark.parametrize("key", ["two words", "canary\n", "canary\n    mode tcp", "schl\u00fcssel", "\t"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key):
    (problem,) = find(host("n1", vllm_server_api_key=key))["problems"]
    assert problem.startswith("The vllm_server_api_key of org/m has characters that no header can carry")
    assert key not in problem and "canary" not in problem
    assert find(host("n1", vllm_server_api_key="k\"'$%\\{}"))["problems"] == []


def test_the_port_on_loopback():
    assert fronts.local_port(8080, 10000) == 18080
    assert fronts.local_port(60000, 10000) == 50000
    assert pools.local_url({"gateway_ports": {"m": 9000}}, "m", 8080, 10000) == "http://127.0.0.1:19000"
    assert pools.local_url({}, "m", 8080, 10000) == "http://127.0.0.1:18080"


# --- what a server has now, and what a change would lose


def asked(name, port=8000, bind="0.0.0.0", **more):
    return host(name, vllm_server_result={"spec": {"port": port, "bind": bind}}, vllm_server_port=8100, **more)


def seen_at(gateway, **addresses):
    servers = [{"backend": "org_m", "name": name, "address": text, "status": "UP"} for name, text in addresses.items()]
    return {"item": gateway, "servers": servers}


def test_a_server_keeps_its_port_until_it_is_replaced():
    hosts = (
        asked("n1"),
        host("n2", vllm_server_port=8100),  # outside the limit, and known to the gateway
        host("n3", vllm_server_port=8100),  # outside, and unknown
        host("n4", vllm_server_port=8100, vllm_server_result={"spec": None}),  # none there yet
        asked("n5", vllm_server_restore_result={"spec": {"port": 8001}}),
        asked("n6", bind="192.0.2.66"),
        asked("n7", bind="127.0.0.1"),  # nobody could reach it there
    )
    hostvars = {entry["inventory_hostname"]: entry for entry in hosts} | {"gw": {"inventory_hostname": "gw"}}
    known = seen_at("gw", n1="192.0.2.1:8100", n2="192.0.2.2:8000", n4="192.0.2.4:8000")["servers"]
    names = [entry["inventory_hostname"] for entry in hosts]
    found = pools.pools_behind(hostvars, names, "gw", port=8080, ports={}, offset=10000, known=known)
    assert [(server["address"][-3:], server["port"]) for server in found["pools"][0]["servers"]] == [
        *(("2.1", 8000), ("2.2", 8000), ("2.3", 8100), ("2.4", 8100), ("2.5", 8001), (".66", 8000), ("2.7", 8000)),
    ]
    assert found["problems"] == []


def test_gateways_are_told_where_they_look_elsewhere():
    hostvars = {"n1": asked("n1", port=8100), "gw1": {}, "gw2": {}, "gw3": {}, "gw4": {}}
    place = pools.place(hostvars, ["n1"], "n1")
    looks = [
        seen_at("gw1", n1="192.0.2.1:8100"),
        seen_at("gw2", n1="192.0.2.1:8000"),
        seen_at("gw3"),
        {"item": "gw4", "unreachable": True},
    ]
    assert servers.moved(looks, hostvars, place) == [
        {"gateway": "gw2", "backend": "org_m", "address": "192.0.2.1", "port": 8100}
    ]
    hostvars["n1"]["ansible_host"] = "n1.example.org"
    assert servers.moved(looks[:2], hostvars, place) == [
        {"gateway": "gw2", "backend": "org_m", "address": None, "port": 8100}
    ]


@pytest.mark.parametrize(
    ("answers", "more", "lost"),
    [
        ([(200, "org/m"), (401, "")], {}, []),
        ([(401, ""), (403, "")], {}, [servers.Loss("org/m", 2, 0, 1, ("n1", "n2"), ())]),
        ([(401, ""), (401, "")], {"rollout_min_available": 0}, []),
        ([(200, "before"), (401, "")], {}, [servers.Loss("org/m", 2, 0, 1, ("n2",), ("n1",))]),
        ([(200, "known"), (200, "known")], {}, []),
        ([(200, "org/m"), (401, "")], {"rollout_min_available": 2}, [servers.Loss("org/m", 2, 1, 2, ("n2",), ())]),
        # A busy server gives no answer in time, and is not lost.
        ([(-1, ""), (401, "")], {}, []),
        ([], {"rollout_min_available": 2}, []),
    ],
)
def test_a_change_that_would_lose_the_servers_that_have_requests(answers, more, lost):
    hostvars = {name: host(name, **more) for name in ("n1", "n2")} | {"gw": {}}
    made = pools.pools_behind(hostvars, ["n1", "n2"], "gw", port=8080, ports={}, offset=10000)["pools"]
    up = seen_at("gw", **{f"n{n}": "" for n in range(1, len(answers) + 1)})["servers"]
    questions = servers.verification_urls(made, [*up, {"name": "n3", "status": "UP"}, {"name": "n2", "status": "DOWN"}])
    assert len(questions) == len(answers)
    results = [
        {"item": item, "status": status, "json": {"data": [{"id": model}]}}
        for item, (status, model) in zip(questions, answers, strict=True)
    ]
    assert servers.losses(hostvars, made, results, ["known"]) == lost


def test_what_is_wrong_with_clients_is_known_from_the_inventory():
    given = {
        "gateway_port": 8080,
        "gateway_ports": {},
        "gateway_local_offset": 10000,
        "gateway_keys": [{"name": "a", "key": "k", "models": ["org/x"]}],
        "gateway_paths": ["x"],
        "gateway_split": {"chat": {"org/m": 100}},
        "gateway_aliases": {"gpt": "org/x"},
        "gateway_http2": "true",
        "gateway_certificate": "",
        "gateway_buffer_size": 8192,
    }
    hostvars = {"n1": host("n1"), "n2": host("n2", vllm_server_model=""), "gw": {"inventory_hostname": "gw"}}
    found = pools.client_problems(hostvars, ["n1", "n2"], "gw", given)
    assert [text.partition(" ")[0] for text in found] == [
        "gateway_keys:",
        "gateway_paths",
        "gateway_split:",
        "gateway_aliases:",
        "gateway_http2",
        "gateway_buffer_size",
    ]
    keys = [{"name": "a", "key": "k", "models": ["gpt"]}]
    fine = {
        **given,
        "gateway_keys": keys,
        "gateway_paths": [],
        "gateway_split": {},
        "gateway_aliases": {"gpt": "org/m"},
        "gateway_certificate": "/etc/ssl/gateway.pem",
        "gateway_buffer_size": 16384,
    }
    assert pools.client_problems(hostvars, ["n1", "n2"], "gw", fine) == []
