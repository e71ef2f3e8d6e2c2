# SPDX-License-Identifier: Apache-2.0
"""Releases of a node: what is the same, what is kept, where a rollback goes."""

from __future__ import annotations

import json

import pytest

from ansible.module_utils.vllm_fleet.server import release
from ansible.module_utils.vllm_fleet.server.release_store import Releases, commit_of, images
from ansible.module_utils.vllm_fleet.server.state import NodeState

CANARY = "canary-9d1e"
SPEC = {
    "image": "vllm:1",
    "image_id": "sha256:aa",
    "model": "acme/tiny",
    "revision": None,
    "args": {"max-model-len": 512},
    "env": {"HF_HUB_OFFLINE": "1", "VLLM_API_KEY": "(secret, fingerprint 1)", "MY_TOKEN": "(secret, fingerprint 2)"},
    "labels": {},
    "secrets": ["MY_TOKEN", "VLLM_API_KEY"],
    "engine_cache": True,
    "port": 8000,
}


def made(number, args=None, **changes):
    spec = {**SPEC, "args": {"n": args if args is not None else number}, **changes}
    return release.build(number, {"Id": f"c{number}", "Name": "/vllm"}, spec, ["sha256:aa"], "c" * 40, {}, "now")


def history(*contents):
    """Records as they come about when these contents are deployed one after the other."""
    records = []
    for number, content in enumerate(contents, 1):
        record, own = release.place(records, made(number, content))
        records = [*records, record] if own else [*records[:-1], record]
    return records


@pytest.mark.parametrize(
    ("contents", "numbers", "restores", "back"),
    [
        ("a", [1], None, None),
        ("ab", [1, 2], None, 1),
        ("aa", [1], None, None),  # made again in another container: the same release
        ("aba", [1, 2, 3], 1, None),  # a rollback from 2 to 1; before 1 there is nothing
        ("abcb", [1, 2, 3, 4], 2, 1),  # the second rollback goes on to 1, not back to 3
        ("abcba", [1, 2, 3, 4, 5], 1, None),
        ("abab", [1, 2, 3, 4], 2, 1),  # rolled back and then forth again
        ("abcbd", [1, 2, 3, 4, 5], None, 4),  # a new release after a rollback: back to what ran before it
    ],
)
def test_where_a_rollback_goes(contents, numbers, restores, back):
    records = history(*contents)
    assert [r["release"] for r in records] == numbers
    assert records[-1]["restores"] == restores
    target = release.target(records, records[-1])
    assert (target["release"] if target else None) == back


def test_a_returned_release_says_what_it_came_from():
    assert history(*"aba")[-1]["rolled_back_from"] == 2


def test_a_release_made_again_keeps_its_number_and_names_the_new_container():
    first = made(1, "a")
    record, own = release.place([first], made(2, "a"))
    assert (record["release"], record["container"]["id"], own) == (1, "c2", False)


def test_a_name_is_no_difference_but_a_commit_is():
    one = made(1, "a")
    renamed = {**one, "spec": {**one["spec"], "image": "vllm:other", "revision": "main"}}
    assert release.content(one) == release.content(renamed)
    assert release.content(one) != release.content({**one, "model": {**one["model"], "commit": "d" * 40}})
    assert release.content(one) != release.content({**one, "spec": {**one["spec"], "image_id": "sha256:bb"}})


def test_the_text_that_ranks_of_a_release_share_makes_no_release_of_its_own():
    guard = ["python3", "/opt/vllm-fleet/replica_guard.py", "--rank", "0", "--id"]
    one, other = (made(1, "a", entrypoint=[*guard, ident, "--", "vllm", "serve"]) for ident in ("0123", "4567"))
    assert release.content(one) == release.content(other)
    assert release.content(one) != release.content(made(1, "a", entrypoint=["vllm", "serve"]))


def test_without_a_known_server_the_newest_release_is_the_target():
    assert release.target(history(*"ab"), None)["release"] == 2
    assert release.target([], None) is None


def test_old_records_go_and_what_is_needed_stays():
    records = history(*range(30))
    assert release.expendable(records, records[-1]) == list(range(1, 11))
    # Rolled back far: the running one and the one before it are the oldest there are.
    assert release.expendable(records, records[1]) == list(range(3, 11))


def test_a_changed_container_is_not_the_recorded_one():
    records = history(*"ab")
    assert release.serving(records, "c2", records[1]["spec"])["release"] == 2
    assert release.serving(records, "c2", {**records[1]["spec"], "restart_policy": "no"}) is None
    assert release.serving(records, "unknown", None) is None


def test_the_role_gets_what_was_recorded_and_never_a_secret():
    given = {
        "settings": {"accelerator": "cpu", "ready_timeout": 60},
        "verification": {"requests": [{"name": "capital", "prompt": "?", "api_key": CANARY}], "endpoints": ["/docs"]},
        "answers": [{"name": "capital", "content": "Paris", "ttft": 0.5, "tokens_per_second": 10.0, "checks": ["x"]}],
        "start": {"downtime": 3.5, "stages": [{"stage": "starting", "at": 0.0}, {"stage": "ready", "at": 2.5}]},
    }
    record = release.build(7, {"Id": "c", "Name": "/vllm"}, SPEC, [], "c" * 40, given, "now")
    assert CANARY not in json.dumps(record)
    assert release.summary(record) | {"release": 7, "ttft": 0.5, "ready": 2.5, "downtime": 3.5} == release.summary(
        record
    )
    assert "checks" not in record["answers"][0]
    values = release.role_variables(record, "sha256:aa", "c" * 40)
    assert values["vllm_server_env"] == {"HF_HUB_OFFLINE": "1"}
    assert values["vllm_server_image"] == "sha256:aa"
    assert values["vllm_server_verify"] == [{"name": "capital", "prompt": "?"}]
    assert values["vllm_server_verify_endpoints"] == ["/docs"]
    assert values["vllm_server_accelerator"] == "cpu"
    assert values["vllm_server_revision"] == ""
    assert not {"vllm_server_secrets", "vllm_server_image_id", "vllm_server_engine_cache"} & values.keys()
    # The branch that was served has moved since: the commit is asked for.
    assert release.role_variables(record, "x", "d" * 40)["vllm_server_revision"] == "c" * 40
    # VLLM_API_KEY has an option of its own.
    assert release.secret_env(record) == ["MY_TOKEN"]


def test_a_start_that_nobody_watched_has_no_time_to_ready():
    assert release.ready_seconds([{"stage": "starting", "at": 0.0}, {"stage": "ready", "at": 4.2}]) == 4.2
    assert release.ready_seconds([{"stage": "ready", "at": 4000.0}]) is None
    assert release.ready_seconds([]) is None


@pytest.fixture
def kept(tmp_path):
    return Releases(NodeState(str(tmp_path), "vllm"))


def container(ident):
    return {"Id": ident, "Name": "/vllm"}


def test_files_are_numbered_written_once_and_bounded(kept):
    for number in range(25):
        record, before = kept.keep(container(f"c{number}"), {**SPEC, "args": {"n": number}}, frozenset(), {})
        assert record["release"] == number + 1
        assert (before["release"] if before else None) == (number or None)
    names = sorted(path.name for path in kept.folder.iterdir())
    assert names == [f"{n:06d}.json" for n in range(6, 26)]
    newest = kept.folder / names[-1]
    stamp = newest.stat().st_mtime_ns, newest.stat().st_ino
    again, _ = kept.keep(container("c24"), {**SPEC, "args": {"n": 24}}, frozenset(), {})
    assert again["release"] == 25
    assert (newest.stat().st_mtime_ns, newest.stat().st_ino) == stamp
    assert newest.stat().st_mode & 0o777 == 0o600


def test_a_damaged_record_is_passed_over_and_its_number_not_used_again(kept):
    kept.keep(container("c1"), SPEC, frozenset(), {})
    (kept.folder / "000002.json").write_text("{")
    assert [r["release"] for r in kept.all()] == [1]
    assert kept.serving("c1", None)["release"] == 1
    record, _ = kept.keep(container("c3"), {**SPEC, "port": 9000}, frozenset(), {})
    assert record["release"] == 3


def test_what_lies_beside_the_records_harms_nothing(kept, tmp_path):
    kept.keep(container("c1"), SPEC, frozenset(), {})
    for name in ("000001 (copy).json", "9.json", "000001.json~", ".000002.json.part", "notes.txt", "1234567890.json"):
        (kept.folder / name).write_text("{}")
    (kept.folder / "old").mkdir()
    (tmp_path / "a file").write_text("")
    assert [record["release"] for record in kept.all()] == [1]
    record, before = kept.keep(container("c2"), {**SPEC, "args": {"n": 2}}, frozenset(), {})
    assert (record["release"], before["release"], kept.unreadable()) == (2, 1, [])
    assert kept.serving("c2", None)["release"] == 2
    assert images(tmp_path) == ({"sha256:aa"}, [])


def test_a_record_cut_at_any_length_is_unreadable_and_not_absent(kept):
    kept.keep(container("c1"), SPEC, frozenset(), {})
    path = kept.folder / "000001.json"
    whole = path.read_bytes()
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        assert (kept.all(), kept.unreadable(), kept.serving("c1", None)) == ([], [1], None)
    path.write_bytes(b"[" * 100_000)
    assert (kept.all(), kept.unreadable()) == ([], [1])


@pytest.mark.parametrize(
    ("unreadable", "goal", "current", "in_doubt"),
    [
        ([2], 1, 3, [2]),  # it may be the one before
        ([1], 2, 3, []),
        ([4], 2, 3, []),  # came later than what runs
        ([2], None, 3, [2]),
        ([3], 2, None, [3]),  # what runs may be this one
        ([], 1, 2, []),
    ],
)
def test_a_record_that_cannot_be_read_may_be_where_a_rollback_goes(unreadable, goal, current, in_doubt):
    found = release.in_doubt(unreadable, made(goal) if goal else None, made(current) if current else None)
    assert found == in_doubt


def test_every_image_of_a_record_is_needed_and_a_record_that_does_not_say_is_told(kept, tmp_path):
    kept.keep(container("c1"), SPEC, frozenset(), {})
    other = Releases(NodeState(str(tmp_path), "second"))
    other.node.write(other.folder / "000007.json", made(7, image_id="sha256:bb"))
    assert images(tmp_path) == ({"sha256:aa", "sha256:bb"}, [])
    silent = {
        "000008.json": "{",
        "000009.json": json.dumps({**made(9), "format": release.FORMAT + 1}),
        "000010.json": json.dumps({"image_id": "sha256:cc"}),
    }
    for name, text in silent.items():
        (other.folder / name).write_text(text)
    assert images(tmp_path) == ({"sha256:aa", "sha256:bb"}, [other.folder / name for name in silent])
    assert images(tmp_path / "none") == (set(), [])


def test_nothing_is_created_by_reading(kept):
    assert kept.all() == []
    assert kept.serving("c1", None) is None
    assert not kept.folder.exists()


def test_the_commit_comes_from_the_revision_or_from_the_cache(tmp_path):
    refs = tmp_path / "hub" / "models--acme--tiny" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("e" * 40)
    assert commit_of({**SPEC, "hf_cache": str(tmp_path)}) == "e" * 40
    assert commit_of({**SPEC, "hf_cache": str(tmp_path), "revision": "c" * 40}) == "c" * 40
    assert commit_of({**SPEC, "hf_cache": str(tmp_path), "revision": "v2"}) is None
    assert commit_of({**SPEC, "model": "/models/tiny"}) is None
