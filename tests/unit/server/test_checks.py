# SPDX-License-Identifier: Apache-2.0
"""Whether the image still starts with the wanted mounts: what is tried, and what is said."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.container import plan
from ansible.module_utils.vllm_fleet.container.engine import Ran
from ansible.module_utils.vllm_fleet.container.mounts import ENGINE_CACHE, HF_HOME, Volume
from ansible.module_utils.vllm_fleet.container.spec import Image
from ansible.module_utils.vllm_fleet.server import checks
from ansible.module_utils.vllm_fleet.server.options import ServerOptions
from ansible.module_utils.vllm_fleet.server.run import RunContext
from ansible.module_utils.vllm_fleet.vllm import cli

IMAGE = Image("vllm:1", "sha256:" + "1" * 64, entrypoint=("vllm", "serve"))
KNOWN = cli.Known(frozenset({"port", "nnodes"}))
#: Of vLLM before 0.11, where --help=all is no question.
OLD = cli.Known(frozenset({"port", "headless"}))


class Docker:
    """An image that has something at /opt and below /usr, and ends as it is told."""

    def __init__(self, ran: Ran) -> None:
        self.ran, self.asked = ran, []

    def holds(self, image, paths):
        return [path for path in paths if path.startswith(("/opt", "/usr"))]

    def run_once(self, image, words, **given):
        self.asked.append((words, given["binds"], given["env"]))
        return self.ran


@pytest.fixture
def check(tmp_path):
    def run(ran, volumes=(), env=None, known=KNOWN, actions=("create", "start")):
        docker = Docker(ran)
        context = RunContext(ServerOptions(model="a/b", state_dir=str(tmp_path)), docker, "node7", secrets=("canary",))
        if known is not None:
            context.node.note_flags(IMAGE.id, known)
        seen = SimpleNamespace(image=IMAGE, plan=plan.Plan(actions, watch=True))
        checks._image_still_starts(context, seen, SimpleNamespace(volumes=volumes, env=env or {}))
        return docker.asked, context.state.notes

    return run


HIDING = (Volume("/srv/x", "/opt/venv"),)


@pytest.mark.parametrize(
    "given",
    [
        {"volumes": (Volume("/srv/x", "/data"),)},
        {"volumes": (Volume("/srv/x", HF_HOME), Volume("/srv/y", ENGINE_CACHE))},
        # To try these would make a volume, or change the labels of the node's files.
        {"volumes": (Volume("name", "/opt/venv"), Volume("/srv/x", "/usr/lib", "rw,z"))},
        {"env": {"HF_HOME": "/x"}},
        # Of an image that never answered nothing can be said, and what is not created anew is not tried.
        {"volumes": HIDING, "known": cli.Known()},
        {"volumes": HIDING, "known": None},
        {"volumes": HIDING, "actions": ("start",)},
    ],
)
def test_nothing_is_tried_where_nothing_is_hidden_or_nothing_can_be_learnt(check, given):
    assert check(Ran(1), **given) == ([], [])


def test_what_is_hidden_is_tried_with_the_variables_of_programs(check):
    asked, notes = check(Ran(0), volumes=(*HIDING, Volume("/a", "/data")), env={"PATH": "/x", "A": "1"})
    assert asked == [(["vllm", "serve", "--help=all"], list(HIDING), {"PATH": "/x"})]
    assert notes == []


def test_an_old_release_is_tried_with_the_help_that_it_has(check):
    asked, _ = check(Ran(0), volumes=HIDING, known=OLD)
    assert [words for words, *_ in asked] == [["vllm", "serve", "--help"]]


def test_an_image_that_does_not_answer_in_time_is_not_refused(check):
    _, notes = check(Ran(None), volumes=HIDING)
    assert notes == ["whether vllm:1 starts with /srv/x at /opt/venv could not be tried in time"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"volumes": HIDING}, "volumes: with /srv/x at /opt/venv the server of vllm:1 cannot start"),
        ({"env": {"PATH": "/x"}}, "env: with PATH=/x the server of vllm:1 cannot start"),
    ],
)
def test_what_the_image_needs_may_not_be_hidden(check, given, said):
    with pytest.raises(Refused) as refused:
        check(Ran(127, error='Traceback\nModuleNotFoundError: No module named "vllm" canary\n'), **given)
    assert refused.value.cause.startswith(said)
    assert refused.value.evidence == ['`vllm serve --help=all` says: ModuleNotFoundError: No module named "vllm" ***']
    assert f"vllm_server_{next(iter(given))}" in refused.value.remedy
