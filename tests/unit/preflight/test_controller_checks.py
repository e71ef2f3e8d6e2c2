# SPDX-License-Identifier: Apache-2.0
"""What the controller lacks."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.preflight import controller


@pytest.mark.parametrize(
    ("sends", "there", "level"),
    [
        ({}, False, None),
        ({"the weights": True}, True, None),
        ({"the weights": False}, False, None),
        ({"the weights": None}, False, "warning"),
        ({"the weights": True}, False, "refused"),
        ({"the image's archive": None, "the weights": True}, False, "refused"),
    ],
)
def test_rsync_is_refused_where_it_is_needed_and_only_there(sends, there, level):
    found = controller.rsync(sends, there=there)
    assert [one.level for one in found] == ([level] if level else [])
    if found:
        assert "sudo apt-get install rsync" in found[0].sentence


def test_the_rest_is_told_with_its_command_where_it_is_missing():
    assert controller.git(needed=False, there=False) == controller.git(needed=True, there=True) == []
    assert "apt-get install git" in controller.git(needed=True, there=False)[0].remedy
    assert controller.ssh("ssh", there=True) == []
    assert "openssh-client" in controller.ssh("ssh", there=False)[0].remedy
    assert controller.room("/tmp", controller.ROOM) == []
    assert controller.room("/tmp", 5_000_000)[0].got == "5.0 MB"
    assert controller.files(1024, 100) == controller.files(-1, 5000) == []
    assert "`ulimit -n 4096`" in controller.files(256, 20)[0].remedy
