# SPDX-License-Identifier: Apache-2.0
"""What the run's state and its result are made of."""

from __future__ import annotations

import json
from pathlib import Path

from ansible.module_utils.vllm_fleet.common.failure import Failure, FailureClass
from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.server import result
from ansible.module_utils.vllm_fleet.server.options import ServerOptions
from ansible.module_utils.vllm_fleet.server.outcome import Outcome
from ansible.module_utils.vllm_fleet.server.run import RunContext, RunState


def test_a_state_travels_as_json_and_comes_back():
    state = RunState(actions=["stop"], failure=Failure(FailureClass.STALLED, "it stood still", lost=True))
    assert RunState.from_token(json.loads(json.dumps(state.as_token()))) == state
    fresh = RunState()
    assert RunState.from_token(json.loads(json.dumps(fresh.as_token()))) == fresh


def test_a_result_has_the_same_keys_on_success_and_on_failure(tmp_path):
    context = RunContext(ServerOptions(state_dir=str(tmp_path)), engine=None, host="n1")
    good = result.of_run(context, None)
    context.refuse(Refused(FailureClass.IMAGE_MISSING, "the image is not there", "pull it first"))
    bad = result.of_run(context, None, failed=True, msg=context.state.msg)
    assert bad.keys() - good.keys() == {"failed", "msg", "failure"}
    assert bad["msg"] == "n1, container vllm: the image is not there (image_missing). Pull it first."
    assert result.no_engine("vllm", "n1", OSError("no socket")).keys() >= bad.keys() - {"release"}
    assert list(tmp_path.iterdir()) == []  # nothing is created by reading


def test_secrets_of_the_log_are_in_no_result(tmp_path):
    options = ServerOptions(state_dir=str(tmp_path))
    context = RunContext(options, engine=None, host="n1", secrets=("s3cret",))
    outcome = Outcome("pending", 1.0, last_line="key s3cret", new_lines=["s3cret again"])
    slice_ = result.pending(context, None, outcome)
    assert "s3cret" not in json.dumps(slice_)
    assert slice_["pending"] and slice_["token"]["phase"] == "start"


def test_no_secret_of_a_log_is_saved(tmp_path):
    context = RunContext(ServerOptions(state_dir=str(tmp_path)), engine=None, host="n1", secrets=("s3cret",))
    context.save_log(context.scrubbed(b"key s3cret\n"), "c" * 64)
    assert "s3cret" not in Path(context.state.log_file).read_text()
