# SPDX-License-Identifier: Apache-2.0
"""Merging daemon.json and deciding what a change takes; tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from ansible.module_utils.vllm_fleet.container.daemon_json import (
    RELOADABLE,
    action,
    described,
    differences,
    merge,
    parse,
    render,
)

ROLE = Path(__file__).resolve().parents[3] / "roles" / "docker_engine"


@pytest.mark.parametrize(
    ("existing", "wanted", "merged"),
    [
        ({}, {"live-restore": True}, {"live-restore": True}),
        ({"live-restore": False}, {"live-restore": True}, {"live-restore": True}),
        ({"data-root": "/srv"}, {"live-restore": True}, {"data-root": "/srv", "live-restore": True}),
        ({"live-restore": True}, {"live-restore": None}, {}),
        ({}, {"live-restore": None}, {}),
        # a container toolkit's runtimes stay
        (
            {"runtimes": {"amd": {"path": "amd-container-runtime"}}, "default-runtime": "amd"},
            {"runtimes": {"other": {"path": "x"}}},
            {"runtimes": {"amd": {"path": "amd-container-runtime"}, "other": {"path": "x"}}, "default-runtime": "amd"},
        ),
        # lists get what they lack, in order, nothing twice
        (
            {"registry-mirrors": ["https://a", "https://b"]},
            {"registry-mirrors": ["https://b", "https://c"]},
            {"registry-mirrors": ["https://a", "https://b", "https://c"]},
        ),
        # a value of another kind is replaced
        ({"registry-mirrors": "https://a"}, {"registry-mirrors": ["https://b"]}, {"registry-mirrors": ["https://b"]}),
        # options of the same driver are merged; json-file is the default driver
        (
            {"log-opts": {"tag": "x", "max-size": "1g"}},
            {"log-driver": "json-file", "log-opts": {"max-size": "50m"}},
            {"log-driver": "json-file", "log-opts": {"tag": "x", "max-size": "50m"}},
        ),
        # options of another driver would be refused by the new one
        (
            {"log-driver": "syslog", "log-opts": {"syslog-address": "udp://x"}},
            {"log-driver": "json-file", "log-opts": {"max-size": "50m"}},
            {"log-driver": "json-file", "log-opts": {"max-size": "50m"}},
        ),
    ],
)
def test_merge(existing: dict[str, Any], wanted: dict[str, Any], merged: dict[str, Any]) -> None:
    before = json.dumps(existing)
    assert merge(existing, wanted) == merged
    assert json.dumps(existing) == before, "the input is not touched"
    assert merge(merged, wanted) == merged, "a second merge changes nothing"


BOUNDS = {"log_max_size": "100m", "log_max_file": 5}
LOG_OPTS = {"max-size": "100m", "max-file": "5"}


@pytest.mark.parametrize(
    ("options", "settings", "wanted"),
    [
        ({}, {}, {}),
        (BOUNDS, {}, {}),
        ({**BOUNDS, "log_driver": "json-file"}, {}, {"log-driver": "json-file", "log-opts": LOG_OPTS}),
        ({**BOUNDS, "log_driver": "local"}, {}, {"log-driver": "local", "log-opts": LOG_OPTS}),
        ({**BOUNDS, "log_driver": "syslog"}, {}, {"log-driver": "syslog"}),
        (
            {"live_restore": True, "registry_mirrors": ["https://m"], "insecure_registries": ["r:5000"]},
            {},
            {"live-restore": True, "registry-mirrors": ["https://m"], "insecure-registries": ["r:5000"]},
        ),
        # further settings come last: objects key by key, the rest replaced, null kept for merge() to remove the key
        (
            {**BOUNDS, "log_driver": "json-file", "live_restore": True, "registry_mirrors": ["https://m"]},
            {"log-opts": {"tag": "x", "max-size": None}, "live-restore": None, "registry-mirrors": [], "debug": True},
            {
                "log-driver": "json-file",
                "log-opts": {"max-size": None, "max-file": "5", "tag": "x"},
                "live-restore": None,
                "registry-mirrors": [],
                "debug": True,
            },
        ),
        ({}, {"runtimes": {"amd": {"path": "p"}}}, {"runtimes": {"amd": {"path": "p"}}}),
    ],
)
def test_the_settings_that_options_describe(
    options: dict[str, Any], settings: dict[str, Any], wanted: dict[str, Any]
) -> None:
    found = described(settings, **options)
    assert found == wanted
    assert list(found) == list(wanted), "the order that the file gets"


@pytest.mark.parametrize(("text", "found"), [("", {}), (" \n", {}), ("{}", {}), ('{"debug": true}', {"debug": True})])
def test_parse(text: str, found: dict[str, Any]) -> None:
    assert parse(text) == found


@pytest.mark.parametrize("text", ["[]", '"x"', "{", "{'a': 1}", '{"a": 1,}'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_render_keeps_the_order_and_reads_back() -> None:
    text = render({"b": 1, "a": {"c": True}})
    assert text == '{\n  "b": 1,\n  "a": {\n    "c": true\n  }\n}\n'
    assert parse(text) == {"b": 1, "a": {"c": True}}


def test_differences_name_what_changes_and_only_that() -> None:
    assert differences({"a": 1, "b": 2, "d": 4}, {"a": 1, "b": 3, "c": None, "e": 5}) == [
        {"name": "b", "current": 2, "desired": 3},
        {"name": "d", "current": 4, "desired": None},
        {"name": "e", "current": None, "desired": 5},
    ]


@pytest.mark.parametrize(
    ("changed", "running", "containers", "live_restore", "allow", "expected"),
    [
        ([], False, 0, False, False, "start"),
        (["log-opts"], False, 0, False, False, "start"),
        ([], True, 3, False, False, "none"),
        (["live-restore"], True, 3, False, False, "reload"),
        (["live-restore", "registry-mirrors"], True, 3, False, False, "reload"),
        (["log-opts"], True, 0, False, False, "restart"),
        (["log-opts"], True, 3, True, False, "restart"),
        (["log-opts"], True, 3, False, False, "pending"),
        (["log-opts", "live-restore"], True, 3, False, False, "pending"),
        (["log-opts"], True, 3, False, True, "restart"),
    ],
)
def test_action(
    changed: list[str], running: bool, containers: int, live_restore: bool, allow: bool, expected: str
) -> None:
    assert action(changed, running, containers, live_restore, allow) == expected


def test_log_settings_are_not_taken_for_reloadable() -> None:
    assert not {"log-driver", "log-opts", "data-root", "storage-driver", "hosts"} & RELOADABLE


# Docker's own repository has a folder a distribution and a suite a release (docs.docker.com, "Install Docker Engine").
MIRROR = {
    "docker_engine_repo_url": "http://mirror.lan/docker",
    "docker_engine_repo_suite": "pool",
    "docker_engine_repo_components": ["stable", "test"],
    "docker_engine_version": "5:28.3.3-1~*",
}
DOCKER = "https://download.docker.com/linux"
PACKAGES = ["docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin"]


@pytest.mark.parametrize(
    ("distribution", "codename", "architecture", "variables", "lines"),
    [
        ("debian", "bookworm", "amd64", {}, [f"{DOCKER}/debian", "bookworm", "stable", "amd64"]),  # 12
        ("debian", "trixie", "amd64", {}, [f"{DOCKER}/debian", "trixie", "stable", "amd64"]),  # 13
        ("ubuntu", "jammy", "amd64", {}, [f"{DOCKER}/ubuntu", "jammy", "stable", "amd64"]),  # 22.04
        ("ubuntu", "noble", "amd64", {}, [f"{DOCKER}/ubuntu", "noble", "stable", "amd64"]),  # 24.04
        ("ubuntu", "resolute", "amd64", {}, [f"{DOCKER}/ubuntu", "resolute", "stable", "amd64"]),  # 26.04
        ("ubuntu", "noble", "arm64", {}, [f"{DOCKER}/ubuntu", "noble", "stable", "arm64"]),
        ("ubuntu", "noble", "amd64", MIRROR, ["http://mirror.lan/docker/ubuntu", "pool", "stable test", "amd64"]),
        ("debian", "trixie", "amd64", MIRROR, ["http://mirror.lan/docker/debian", "pool", "stable test", "amd64"]),
    ],
)
def test_docker_s_own_repository(
    distribution: str, codename: str, architecture: str, variables: dict[str, Any], lines: list[str]
) -> None:
    node = {"os": {"id": distribution, "version_codename": codename, "architecture": architecture}}
    known = {**of_role("defaults"), **variables, "docker_engine_result": {**node, "daemon": False, "sdk": False}}
    fields = dict(line.split(": ", 1) for line in rendered("docker.sources.j2", known) if not line.startswith("#"))
    assert [fields["URIs"], fields["Suites"], fields["Components"], fields["Architectures"]] == lines
    assert fields["Types"] == "deb"
    assert fields["Signed-By"] == "/etc/apt/keyrings/docker.gpg"
    # The key lies beside the suites, and the packages have the same names everywhere.
    own = of_role("vars")
    assert value(own["__docker_engine_repo_key_url"], known) == f"{lines[0]}/gpg"
    version = known["docker_engine_version"]
    wanted = [f"{one}={version}" if version and one.startswith("docker-ce") else one for one in PACKAGES]
    assert [value(text, known) for text in own["__docker_engine_ce_packages"]] == wanted
    assert rendered("docker.pref.j2", known)[1:] == [
        "Package: docker-ce docker-ce-* containerd.io docker-*-plugin",
        "Pin: release o=Docker",
        "Pin-Priority: 500",
        "",
        "# No other package of this repository takes the place of one of the distribution.",
        "Package: *",
        "Pin: release o=Docker",
        "Pin-Priority: 100",
    ]


def of_role(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROLE / folder / "main.yml").read_text(encoding="utf-8"))
    return found


def rendered(template: str, known: dict[str, Any]) -> list[str]:
    return value((ROLE / "templates" / template).read_text(encoding="utf-8"), known).splitlines()


def value(text: str, known: dict[str, Any]) -> str:
    return jinja2.Template(text, undefined=jinja2.StrictUndefined).render(known)
