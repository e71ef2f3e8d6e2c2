# SPDX-License-Identifier: Apache-2.0
"""What may be the name of a server, in every state and module: it becomes a folder that root makes and removes."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.common import names
from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.server import lifecycle, options, release_info
from ansible.module_utils.vllm_fleet.watchdog import install

WRONG = ["", "..", ".", "a", "a/b", "../x", "/etc", ".hidden", "-v", "a b", "vllm\n", "a\0b", "x" * 201, "ä1"]


@pytest.mark.parametrize("name", ["vllm", "vllm-2", "a1", "A_b.c", "x" * 200])
def test_names_as_docker_has_them(name):
    assert names.wrong_container(name) == ""


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("state", options.ARGUMENTS["state"]["choices"])
def test_a_name_that_would_be_another_path_is_refused_in_every_state(tmp_path, name, state):
    defaults = {key: value.get("default") for key, value in options.ARGUMENTS.items()}
    asked = {**defaults, "name": name, "state": state, "state_dir": str(tmp_path / "state" / "deep")}
    done = lifecycle.perform(asked, check_mode=False)
    assert done["failed"] and not done["changed"]
    assert "name: expected a container name" in done["msg"] and "nothing was touched" in done["msg"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", WRONG)
def test_who_only_reads_by_that_name_refuses_it_too(tmp_path, name):
    with pytest.raises(Refused, match="expected a container name"):
        release_info.gather(None, name, str(tmp_path), None)
    for state in ("present", "absent"):
        done = install.perform({"name": name, "state": state}, check_mode=False)
        assert done["failed"] and "expected a container name" in done["msg"]
