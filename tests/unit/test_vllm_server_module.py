# SPDX-License-Identifier: Apache-2.0
"""The module's own file: secrets in `env` and `args` reach neither its output nor the node's log."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import vllm_server
from ansible.module_utils.testing import patch_module_args

from ansible.module_utils.vllm_fleet.server import lifecycle

SECRET = "canary-own-key-77b0"
GIVEN = {"image": "vllm:1", "model": "org/m", "docker_host": "unix:///nonexistent"}


def run(monkeypatch, capsys, options):
    """Call main() up to its exit, without an engine: what it printed and what it logged."""
    logged = []
    monkeypatch.setattr(vllm_server.Module, "log", lambda self, msg, log_args=None: logged.append(f"{msg} {log_args}"))
    with patch_module_args(options), pytest.raises(SystemExit):
        vllm_server.main()
    return capsys.readouterr().out, " ".join(logged)


@pytest.mark.parametrize(
    "secret",
    [
        {"env": {"MY_API_KEY": SECRET}},
        {"env": {"MASTER_KEY": SECRET}},
        {"env": json.dumps({"MY_PASSWORD": SECRET})},
        {"env": f"MY_API_KEY={SECRET}"},
        {"args": {"hf-token": SECRET}},
        {"place": {"env": {"MY_API_KEY": SECRET}}},
        {"api_key": SECRET},
    ],
    ids=lambda given: next(iter(given)),
)
def test_secrets_are_neither_logged_nor_shown(monkeypatch, capsys, secret):
    shown, logged = run(monkeypatch, capsys, {**GIVEN, **secret})
    assert "Invoked with" in logged and "org/m" in logged
    assert SECRET not in logged
    assert "no Docker engine answers" in shown
    assert SECRET not in shown


@pytest.mark.parametrize("wrong", [{"image": None}, {"port": "many"}, {"prot": 1}], ids=["missing", "type", "unknown"])
def test_a_wrong_option_does_not_show_the_others(monkeypatch, capsys, wrong):
    options = {k: v for k, v in {**GIVEN, **wrong, "env": {"MY_API_KEY": SECRET}}.items() if v is not None}
    shown, _ = run(monkeypatch, capsys, options)
    assert json.loads(shown)["failed"]
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("mode", "check", "changes"),
    [
        (None, False, True),
        ("deploy", False, True),
        ("deploy", True, False),
        ("plan", False, False),
        ("status", False, False),
    ],
)
def test_only_a_deployment_changes_anything(monkeypatch, capsys, mode, check, changes):
    seen = {}

    class Run:
        def __init__(self, *_, **options):
            seen.update(options)
            self.context = SimpleNamespace(secrets=options["secrets"])

        def run(self):
            return {"changed": False}

    monkeypatch.setattr(lifecycle, "Engine", lambda *_, **__: None)
    monkeypatch.setattr(vllm_server, "Lifecycle", Run)
    run(monkeypatch, capsys, {**GIVEN, **({"mode": mode} if mode else {}), "_ansible_check_mode": check})
    assert seen["check_mode"] is not changes
