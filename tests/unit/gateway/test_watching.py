# SPDX-License-Identifier: Apache-2.0
"""Which Prometheus stands behind the port of a gateway, and what is refused."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.gateway import haproxy, watching

OPEN = {"monitoring_certificate": "/etc/ssl/watch.pem", "monitoring_users": {"ops": "$2y$10$x"}}
GIVEN = {"gateway_monitoring_port": 9443, "gateway_port": 8080, "gateway_ports": {"org/b": 8081}}
GIVEN |= {"gateway_local_offset": 10000, "gateway_stats_port": 8404}


def behind(*hosts, gateway=None, **given):
    found = {f"watch{n}": {"inventory_hostname": f"watch{n}", **OPEN, **host} for n, host in enumerate(hosts, 1)}
    hostvars = {**found, "gw": {"inventory_hostname": "gw", "ansible_host": "10.0.0.1", **(gateway or {})}}
    return watching.behind(hostvars, found, "gw", {**GIVEN, **given})


def test_without_the_port_nobody_looks_at_the_monitoring():
    assert behind({"monitoring_certificate": ""}, gateway_monitoring_port=0) == {"servers": [], "problems": []}


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ({"monitoring_bind": "10.0.0.9"}, "10.0.0.9", 9090),
        ({"monitoring_bind": "0.0.0.0", "ansible_host": "10.0.0.9", "monitoring_port": 9099}, "10.0.0.9", 9099),
        ({"monitoring_bind": "::"}, "watch1", 9090),
        ({"monitoring_bind": "fd00::9"}, "fd00::9", 9090),
        # The gateway's own machine.
        ({"ansible_host": "10.0.0.1"}, "127.0.0.1", 9090),
        ({"ansible_host": "10.0.0.1", "monitoring_bind": "::1"}, "::1", 9090),
        ({"ansible_host": "10.0.0.1", "monitoring_bind": "localhost"}, "127.0.0.1", 9090),
        ({"ansible_host": "10.0.0.1", "monitoring_bind": "0.0.0.0"}, "127.0.0.1", 9090),
    ],
)
def test_where_a_gateway_finds_prometheus(host, address, port):
    found = behind(host)
    assert found == {"servers": [{"name": "monitoring:watch1", "address": address, "port": port}], "problems": []}


@pytest.mark.parametrize(
    ("hosts", "given", "said"),
    [
        ((), {}, "gateway_monitoring_port of gw is 9443, but group monitoring has no hosts: name the host of"),
        (({"ansible_host": "10.0.0.9"},), {}, "The Prometheus of watch1 listens on 127.0.0.1 alone, where gw cannot"),
        (
            ({"monitoring_bind": "10.0.0.9", "monitoring_users": {}},),
            {},
            "gateway_monitoring_port of gw would open the Prometheus of watch1 without monitoring_users: set them",
        ),
        # Loopback is enough for Prometheus itself, but not for what a gateway opens.
        (
            ({"ansible_host": "10.0.0.1", "monitoring_certificate": "", "monitoring_users": {}},),
            {},
            "open the Prometheus of watch1 without monitoring_certificate and monitoring_users: set them",
        ),
        *(
            (({"ansible_host": "10.0.0.1"},), {"gateway_monitoring_port": port}, f"is {port}, which is {what}: take")
            for port, what in (
                (8080, "a port of models there"),
                (8081, "a port of models there"),
                (18081, "a port of models on loopback there"),
                (8404, "gateway_stats_port there"),
                (9090, "monitoring_port there"),
                (9093, "Alertmanager's there"),
                (9110, "monitoring_node_port there"),
                (70000, "no port"),
                (-1, "no port"),
            )
        ),
    ],
)
def test_what_is_refused(hosts, given, said):
    (problem,) = behind(*hosts, **given)["problems"]
    assert said in problem


def test_prometheus_on_another_machine_takes_no_port_of_the_gateway():
    assert behind({"monitoring_bind": "10.0.0.9"}, gateway_monitoring_port=9090)["problems"] == []


def test_prometheus_is_no_server_of_the_fleet():
    rows = "# pxname,svname,status\norg_a,node1,UP\nvllm-fleet-monitoring,monitoring:watch1,DOWN\n"
    assert [one.name for one in haproxy.servers(rows)] == ["node1"]
