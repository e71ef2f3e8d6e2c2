# SPDX-License-Identifier: Apache-2.0
"""What a run finds out before it acts."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.container import plan, spec
from ansible.module_utils.vllm_fleet.container.engine import Ran
from ansible.module_utils.vllm_fleet.server import observe
from ansible.module_utils.vllm_fleet.server.options import ServerOptions
from ansible.module_utils.vllm_fleet.server.state import NodeState
from ansible.module_utils.vllm_fleet.vllm import cli

OPTIONS = ServerOptions(model="org/m")
IMAGE = spec.Image("vllm:1", "sha256:" + "1" * 64, entrypoint=("vllm", "serve"))
HELP = "--max-model-len --served-model-name --host --port"


class OldDocker:
    """Runs images of vLLM before 0.11, which takes `--help=all` for a search or for an error."""

    def __init__(self, found: str) -> None:
        self.found, self.asked = found, []

    def run_once(self, _, words, **__):
        self.asked.append(words[-1])
        said = {
            "--help=all": self.found,
            "--help": HELP + " --headless",
            "--version": "INFO 07-01 __init__\n0.9.2+cpu\n",
        }
        return Ran(0 if said[words[-1]] else 2, said[words[-1]])


@pytest.mark.parametrize(
    ("answer", "noted", "asked_again"),
    [(Ran(0, HELP), True, False), (Ran(1), True, False), (Ran(0, "usage: x"), True, False), (Ran(None), False, True)],
    ids=["help", "failed", "no help", "too slow"],
)
def test_an_image_is_asked_again_only_where_it_was_too_slow(tmp_path, answer, noted, asked_again):
    node, asked, notes = NodeState(str(tmp_path), "vllm"), [], []

    class Docker:
        def run_once(self, *_, **__):
            asked.append(1)
            return answer

    for _ in range(2):
        known = observe._known_flags(OPTIONS, IMAGE, Docker(), node, notes)
    assert bool(known.flags) is (answer.output == HELP) is not bool(notes)
    assert (node.flags(IMAGE.id) is not None) is noted
    # An old release prints its flags without `=all`: it is asked twice before it counts as one that cannot answer.
    assert len(asked) == (1 if answer.output == HELP else 2)


def test_a_wrong_value_is_refused_from_the_answer_that_was_kept(tmp_path):
    node = NodeState(str(tmp_path), "vllm")
    answer = cli.read_help(HELP + "\n  --dtype {auto,half}\n                        Data type. (default: auto)\n")
    node.note_flags(IMAGE.id, answer)
    assert node.flags(IMAGE.id) == answer
    options = ServerOptions(model="org/m", flags={"dtype": "bf16", "max-model-len": "abc"})
    with pytest.raises(Refused, match=r"dtype: expected one of auto, half, got 'bf16'; max-model-len: expected a numb"):
        observe._known_flags(options, IMAGE, None, node, [])


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("max-model-length", "did you mean --max-model-len?"),
        ("swap-space", "leave it out, as vLLM no longer swaps"),
        ("disable-log-requests", "leave it out, as requests are not logged"),
        ("no-port", "leave port out (null)"),
        ("made-up", "see `vllm serve --help=all`"),
    ],
)
def test_an_unknown_flag_gets_the_right_advice_or_none(tmp_path, flag, hint):
    node = NodeState(str(tmp_path), "vllm")
    node.note_flags(IMAGE.id, cli.read_help(HELP + " --disable-log-stats"))
    with pytest.raises(Refused) as refused:
        observe._known_flags(ServerOptions(model="org/m", flags={flag: 1}), IMAGE, OldDocker(""), node, [])
    assert refused.value.remedy.startswith(hint)


@pytest.mark.parametrize("found", ["", "Parameters matching 'all':\n  --disable-custom-all-reduce\n"])
def test_an_old_release_is_asked_without_all_and_named_in_the_refusal(tmp_path, found):
    node, docker = NodeState(str(tmp_path), "vllm"), OldDocker(found)
    assert "headless" in observe._known_flags(OPTIONS, IMAGE, docker, node, []).flags
    options = ServerOptions(model="org/m", flags={"max-num-queued-reqs": "8", "swap-space": "4"})
    with pytest.raises(Refused) as refused:
        observe._known_flags(options, IMAGE, docker, node, [])
    assert refused.value.cause == (
        "args: vLLM 0.9.2 (vllm:1) has no --max-num-queued-reqs (since 0.29), --swap-space (gone since 0.18)"
    )
    assert refused.value.remedy.startswith("leave max-num-queued-reqs out, or take an image of vLLM 0.29 or newer (")
    assert docker.asked == ["--help=all", "--help", "--version"]


def test_a_flag_that_no_table_has_costs_no_question(tmp_path):
    node = NodeState(str(tmp_path), "vllm")
    node.note_flags(IMAGE.id, cli.read_help(HELP))
    with pytest.raises(Refused, match="--made-up is not a flag of the vLLM in vllm:1"):
        observe._known_flags(ServerOptions(model="org/m", flags={"made-up": 1}), IMAGE, None, node, [])


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("vllm:0.19.1", r"vLLM 0.19.1 \(vllm:0.19.1\) has no --grpc-port \(since 0.32\)"),
        ("host:5000/vllm:v0.10.2", r"vLLM v0.10.2 .* has no --grpc-port \(since 0.32\)"),
        ("vllm:0.32.0", ""),
        ("host:5000/vllm", ""),
        ("vllm:nightly", ""),
    ],
)
def test_an_image_that_does_not_answer_is_judged_by_its_tag(tmp_path, ref, says):
    node, notes, image = NodeState(str(tmp_path), "vllm"), [], spec.Image(ref, IMAGE.id)
    node.note_flags(IMAGE.id, cli.Known())
    options = ServerOptions(model="org/m", flags={"grpc-port": "1", "shutdown-timeout": None})
    if says:
        with pytest.raises(Refused, match=says):
            observe._known_flags(options, image, None, node, notes)
    else:
        assert not observe._known_flags(options, image, None, node, notes).flags
        assert notes


@pytest.mark.parametrize(
    ("ref", "says", "step"),
    [
        (
            "vllm:0.8.5.post2",
            r"vLLM 0.8.5.post2 .* has no --cuda-graph-sizes \(since 0.9\);",
            "take an image of vLLM 0.9",
        ),
        ("vllm:0.11.2", "", ""),
        (
            "vllm:0.13.0",
            r"vLLM 0.13.0 .* has no --cuda-graph-sizes \(gone since 0.13\);",
            "write cudagraph-capture-sizes",
        ),
        ("amd/vllm:rocm7.14_vllm_0.23.0", r"has no --cuda-graph-sizes \(gone since 0.13\);", "write cudagraph-capture"),
        ("vllm:nightly", "", ""),
    ],
)
def test_a_flag_that_is_gone_is_refused_by_the_tag_too(tmp_path, ref, says, step):
    node, image = NodeState(str(tmp_path), "vllm"), spec.Image(ref, IMAGE.id)
    node.note_flags(IMAGE.id, cli.Known())
    options = ServerOptions(model="org/m", flags={"cuda-graph-sizes": "8", "worker-use-ray": "1"})
    if says:
        with pytest.raises(Refused, match=says) as refused:
            observe._known_flags(options, image, None, node, [])
        assert step in refused.value.remedy
    else:
        assert not observe._known_flags(options, image, None, node, []).flags


def test_a_value_of_the_environment_that_the_vllm_is_too_old_for(tmp_path):
    options = ServerOptions(model="org/m", env={"VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    node = NodeState(str(tmp_path), "vllm")
    node.note_flags(IMAGE.id, cli.read_help(HELP))
    with pytest.raises(Refused, match=r"too old for VLLM_CPU_OMP_THREADS_BIND: nobind \(since 0.11.1\)"):
        observe._known_flags(options, IMAGE, None, node, [])
    node.note_flags(IMAGE.id, cli.read_help(HELP + " --nnodes"))
    assert observe._known_flags(options, IMAGE, None, node, [])


@pytest.mark.parametrize(
    ("state", "current", "previous", "names"),
    [
        ("absent", None, "exited", ["previous"]),
        ("absent", "exited", None, ["state"]),
        ("absent", "running", "running", ["state", "previous"]),
        ("stopped", "exited", "running", ["previous"]),
        ("stopped", None, "running", ["previous"]),
        ("stopped", "running", "exited", ["state"]),
        ("stopped", "exited", "exited", []),
        ("absent", None, None, []),
    ],
)
@pytest.mark.parametrize("left", [False, True])
def test_whatever_is_done_is_a_difference(state, current, previous, names, left):
    """`changed` comes from the differences, in check mode too."""

    def made(status):
        return status and {"Id": status, "State": {"Status": status, "Running": status == "running"}}

    ranks = (plan.Trust.UNKNOWN, plan.Trust.READY)
    found = made("created") if left else None
    seen = observe._without_spec("vllm", state, made(current), made(previous), ranks, restoring=None, left=found)
    assert [d.name for d in seen.differences] == names + ["next"] * left
    assert bool(seen.differences) is bool(seen.plan.actions)


def test_groups_that_the_options_name_are_looked_up_on_the_node():
    found = observe.node_facts(ServerOptions(rocm=False, groups=("root", "daemon", "0", "no-such-group")))
    assert found.groups == {"root": 0, "daemon": 1}
