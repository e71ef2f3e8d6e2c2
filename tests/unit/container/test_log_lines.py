# SPDX-License-Identifier: Apache-2.0
"""The last lines of a log: put together, chosen, without secrets, bounded."""

from __future__ import annotations

from ansible.module_utils.vllm_fleet.container import log_lines
from ansible.module_utils.vllm_fleet.container.log_lines import Kept, Wanted, collect
from fleet_report import logs


def stamp(second):
    return f"2026-11-30T06:00:{second:02d}.000000001Z"


def piece(second, text):
    return f"{stamp(second)} {text}".encode()


def kept(pieces, **wanted):
    found = Kept()
    collect(pieces, Wanted(**wanted), found)
    return found


def test_a_line_that_docker_cut_is_one_line_and_the_last_may_lack_its_end():
    found = kept([piece(1, "one, "), piece(2, "two\n"), piece(3, "half")])
    assert [(at, text) for at, _, text in found.lines] == [(stamp(1), "one, two"), (stamp(3), "half")]
    assert found.newest == stamp(3)


def test_the_newest_lines_of_a_class_after_a_time_are_kept_and_the_rest_is_counted():
    log = [piece(n, f"ERROR: number {n}\n" if n % 2 else "INFO: fine\n") for n in range(10)]
    found = kept(log, lines=2, level="error", after=stamp(2))
    assert [text for _, _, text in found.lines] == ["ERROR: number 7", "ERROR: number 9"]
    assert (found.left_out, found.newest) == (2, stamp(9))


def test_secrets_and_what_a_terminal_obeys_are_taken_out():
    log = [
        piece(1, "key=hunter22x \x1b]0;title\x07red\x1b[31m\n"),
        piece(2, "--api-key abcdef\n"),
        piece(3, "1%\r2%\r\n"),
    ]
    found = kept(log, hidden=frozenset({"hunter22x"}))
    assert [text for _, _, text in found.lines] == ["key=*** red", "--api-key ***", "2%"]


def test_a_secret_at_the_end_of_a_line_that_is_cut_is_hidden():
    log = [piece(1, "x" * (log_lines.LONGEST - 20) + "known-key-of-27-characters-\n")]
    ((_, _, text),) = kept(log, hidden=frozenset({"known-key-of-27-characters-"})).lines
    assert len(text) <= log_lines.LONGEST
    assert "known" not in text


def test_memory_is_bounded_whatever_is_asked_for(monkeypatch):
    monkeypatch.setattr(log_lines, "MOST", 9000)
    found = kept([piece(1, "x" * 100_000 + "\n")] * 5, lines=99)
    assert [len(text) for _, _, text in found.lines] == [4000, 4000]
    assert found.left_out == 3


def test_the_lines_of_all_nodes_stand_in_one_order_of_time_with_what_is_missing():
    found = {
        "node1": {"lines": [[stamp(1), "info", "a"], [stamp(3), "info", "c"]], "left_out": 1},
        "node2": {"lines": [[stamp(2), "error", "b"]]},
        "node3": {"msg": "no route"},
    }
    assert logs.lines(found, "in the logs") == [
        "[node1] 2026-11-30 06:00:01 a",
        "[node2] 2026-11-30 06:00:02 b",
        "[node1] 2026-11-30 06:00:03 c",
        "node1: 1 older line not shown; logs_lines shows more.",
        "node3 did not answer, so its lines are missing: no route",
    ]
    assert logs.lines({"node2": {"lines": []}}, "of class error in the last 1h") == [
        "No lines of class error in the last 1h. Logs of failed starts are files: /var/lib/vllm-fleet/<name>/logs on the node."
    ]
