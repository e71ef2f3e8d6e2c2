# SPDX-License-Identifier: Apache-2.0
"""What the node remembers: whole or not at all, and nothing created by looking."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.container.plan import Trust
from ansible.module_utils.vllm_fleet.server.state import KEPT_LOGS, LockTaken, NodeState
from ansible.module_utils.vllm_fleet.vllm.cli import Known


def test_looking_creates_nothing(tmp_path):
    state = NodeState(str(tmp_path / "s"), "vllm")
    assert state.trust("c") is Trust.UNKNOWN
    assert state.flags("sha256:1") is None
    assert len(state.fingerprint_key(create=False)) == 32
    assert list(tmp_path.iterdir()) == []


def test_ranks_rise_and_the_gone_are_forgotten(tmp_path):
    state = NodeState(str(tmp_path), "vllm")
    state.note_trust("a", Trust.CONFIRMED, ("a",))
    state.note_trust("a", Trust.READY, ("a",))
    assert state.trust("a") is Trust.CONFIRMED
    state.note_trust("b", Trust.READY, ("b",))
    assert (state.trust("a"), state.trust("b")) == (Trust.UNKNOWN, Trust.READY)


def test_one_that_failed_is_below_one_of_which_nothing_is_known(tmp_path):
    state = NodeState(str(tmp_path), "vllm")
    state.note_trust("a", Trust.FAILED, ("a",))
    assert state.trust("a") is Trust.FAILED < Trust.UNKNOWN
    state.note_trust("a", Trust.READY, ("a",))
    state.note_trust("a", Trust.FAILED, ("a",))
    assert state.trust("a") is Trust.READY


def test_a_restore_is_remembered_until_its_end(tmp_path):
    state = NodeState(str(tmp_path), "vllm")
    assert state.restoring() is None
    state.note_trust("a", Trust.READY, ("a",))
    state.note_restoring("a")
    assert (state.restoring(), state.trust("a")) == ("a", Trust.READY)
    state.note_restoring(None)
    assert (state.restoring(), state.trust("a")) == (None, Trust.READY)


def test_a_stop_is_remembered_until_the_end_of_the_run(tmp_path):
    state = NodeState(str(tmp_path), "vllm")
    assert state.stopping() is None
    state.note_restoring("b")
    state.note_stopping(("a", "2026-01-01T00:00:00Z"))
    assert (state.stopping(), state.restoring()) == (("a", "2026-01-01T00:00:00Z"), "b")
    state.note_stopping(None)
    assert (state.stopping(), state.restoring()) == (None, "b")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"ranks": 3}', '{"ranks": {"a": 99}}'])
def test_a_damaged_memory_knows_nothing_and_is_mended(tmp_path, content):
    state = NodeState(str(tmp_path), "vllm")
    state.folder.mkdir()
    (state.folder / "state.json").write_text(content)
    assert state.trust("a") is Trust.UNKNOWN
    state.note_trust("a", Trust.READY, ("a",))
    assert state.trust("a") is Trust.READY


def cut_at_every_length(path):
    """Damage a file in each way that a broken write could, then put it back."""
    whole = path.read_bytes()
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        yield
    path.write_bytes(whole)


def test_a_memory_that_cannot_be_read_is_no_empty_one(tmp_path):
    state = NodeState(str(tmp_path), "vllm")
    assert state.damage() is None  # nothing was noted yet
    state.note_trust("old", Trust.CONFIRMED, ("old",))
    state.note_trust("new", Trust.READY, ("old", "new"))
    path, both = tmp_path / "vllm" / "state.json", ("old", "new")
    for _ in cut_at_every_length(path):
        left = path.read_bytes()
        assert (state.trust("old"), state.restoring(), state.stopping()) == (Trust.UNKNOWN, None, None)
        assert state.damage().filename == str(path)
        for note in (
            lambda: state.note_trust("new", Trust.READY, both),
            lambda: state.note_restoring("new"),
            lambda: state.note_stopping(("old", "now")),
        ):
            with pytest.raises(OSError, match="is damaged"):
                note()
        assert path.read_bytes() == left  # what a person may still read is not overwritten
    assert state.damage() is None
    path.write_bytes(b"[" * 100_000)
    assert state.damage()
    # A right answer settles which one is good.
    state.note_trust("new", Trust.CONFIRMED, both)
    assert (state.trust("new"), state.damage()) == (Trust.CONFIRMED, None)


def test_what_is_asked_for_again_may_be_damaged(tmp_path):
    state = NodeState(str(tmp_path), "vllm")
    state.note_failure("c", {"msg": "why"})
    state.note_flags("sha256:1", Known(frozenset({"port"})))
    for _ in cut_at_every_length(tmp_path / "vllm" / "failure.json"):
        assert state.failure("c") is None
    for _ in cut_at_every_length(tmp_path / "flags" / "1.json"):
        assert state.flags("sha256:1") is None
    assert state.flags("sha256:1") is not None and state.failure("c")["msg"] == "why"


def test_a_key_that_is_too_short_makes_no_fingerprints(tmp_path):
    state = NodeState(str(tmp_path), "vllm")
    key = state.fingerprint_key(create=True)
    for length in range(32):
        (tmp_path / "fingerprint.key").write_bytes(key[:length])
        for create in (True, False):
            with pytest.raises(Refused, match=f"has {length} bytes, expected 32"):
                state.fingerprint_key(create=create)


def test_the_newest_log_stays_where_the_clock_was_set_back(tmp_path, monkeypatch):
    state = NodeState(str(tmp_path), "vllm")
    for number in range(KEPT_LOGS):
        state.save_log(b"x", f"{number:012}")
    monkeypatch.setattr("time.gmtime", lambda: (2001, 1, 1, 0, 0, 0, 0, 1, 0))
    path = state.save_log(b"new", "c" * 12)
    assert path.read_bytes() == b"new" and len(list(path.parent.glob("*.log"))) == KEPT_LOGS


def test_the_fingerprint_key_stays_and_is_roots_alone(tmp_path):
    state = NodeState(str(tmp_path), "vllm")
    assert state.fingerprint_key(create=True) == state.fingerprint_key(create=False)
    assert (tmp_path / "fingerprint.key").stat().st_mode & 0o777 == 0o600


def test_logs_are_roots_alone_and_do_not_pile_up(tmp_path):
    state = NodeState(str(tmp_path), "vllm")
    for number in range(KEPT_LOGS + 3):
        path = state.save_log(b"x", f"{number:012}")
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(list(path.parent.glob("*.log"))) == KEPT_LOGS
    assert path.exists()


def test_engine_caches_are_apart_by_image_and_model(tmp_path):
    state = NodeState(str(tmp_path), "vllm")
    one = state.engine_cache("sha256:" + "a" * 64, "org/m")
    assert one == tmp_path / "engine-cache" / "aaaaaaaaaaaa-org--m"
    assert one != state.engine_cache("sha256:" + "b" * 64, "org/m")
    assert state.engine_cache("sha256:" + "a" * 64, "/models/../x").parent == one.parent


def test_two_runs_on_one_container_take_turns(tmp_path):
    state = NodeState(str(tmp_path), "vllm")
    with state.lock(0.1), pytest.raises(LockTaken, match=f"pid {os.getpid()}"), state.lock(0.3):
        pass
    with state.lock(0.1):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path):
    program = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
        import conftest
        from ansible.module_utils.vllm_fleet.server.state import NodeState
        with NodeState({str(tmp_path)!r}, "vllm").lock(1):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    with NodeState(str(tmp_path), "vllm").lock(0.1):
        pass


def test_a_release_on_trial_is_that_of_one_container(tmp_path):
    node = NodeState(str(tmp_path), "vllm")
    assert not node.trial("one")
    node.note_trial("one", 1000.5)
    node.note_trial("one", 2000.0)
    assert node.trial("one")
    assert not node.trial("two")
    node.note_trial("two", 3000.0)
    assert (node.trial("one"), node.trial("two")) == (False, True)
    (node.folder / "trial.json").write_text('{"container": "two", "since": ')
    assert not node.trial("two")


def test_what_a_soak_found_is_kept_with_the_trial(tmp_path):
    node = NodeState(str(tmp_path), "vllm")
    node.note_soak("one", {"wrong": "it leaks"})
    assert node.trial_note("one") == {}
    node.note_trial("one", 1000.5)
    node.note_soak("one", {"first": {"counts": {}}})
    node.note_soak("one", {"wrong": "it leaks"})
    node.note_soak("two", {"wrong": "of another container"})
    assert node.trial_note("one") == {
        "container": "one",
        "since": 1000.5,
        "before": None,
        "first": {"counts": {}},
        "wrong": "it leaks",
    }
    node.note_soak("one", {}, since=2000.0)
    assert node.trial_note("one") == {
        "container": "one",
        "since": 2000.0,
        "before": None,
        "wrong": "it leaks",
    }
    assert node.trial_note("two") == {}
