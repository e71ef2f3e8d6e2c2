# SPDX-License-Identifier: Apache-2.0
"""One shape for every failure, and no class that the table does not explain."""

from __future__ import annotations

import json

import pytest

from ansible.module_utils.vllm_fleet.common.failure import Failure, FailureClass
from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.diagnosis.patterns import CLASSES


def test_every_class_has_its_row_in_the_table():
    assert sorted(FailureClass) == sorted(CLASSES)


def test_a_refusal_becomes_a_failure_and_travels_as_plain_json():
    refused = Refused(FailureClass.PORT_TAKEN, "port 1 is taken", "stop that program.", ["nginx"])
    result = refused.failure.as_result()
    assert type(result["class"]) is str  # Ansible's serialiser wants nothing else
    assert result == {
        "class": "port_taken",
        "cause": "port 1 is taken",
        "evidence": ["nginx"],
        "remedy": "Stop that program",
        "exit_code": None,
    }
    assert Failure.from_result(json.loads(json.dumps(result))) == refused.failure
    assert refused.failure.sentence("n1") == "n1: port 1 is taken (port_taken). Stop that program."
    assert str(refused) == "port 1 is taken; stop that program."


def test_what_only_a_replica_says_is_there_only_for_one():
    failure = Failure(FailureClass.ENGINE_DIED, "it died", host="n2", lost=True, exit_code=1)
    assert Failure.from_result(failure.as_result()) == failure
    assert failure.as_result()["host"] == "n2"
    assert failure.as_result()["lost"] is True


def test_a_class_that_does_not_exist_is_no_failure():
    with pytest.raises(ValueError, match="prot_taken"):
        Failure.from_result({"class": "prot_taken"})
