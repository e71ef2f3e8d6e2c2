# SPDX-License-Identifier: Apache-2.0
"""Busy or hung: stories of pages, requests and log lines, each with what is to be thought of the server in the end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible.module_utils.vllm_fleet.vllm import metrics
from ansible.module_utils.vllm_fleet.watchdog.judge import Judge

SILENCE = 120.0
STEP = 5.0


def page(*loads, asleep=""):
    """A page as vLLM writes it, with one engine for each (running, waiting, steps, tokens)."""
    lines = ["# TYPE vllm:num_requests_running gauge", 'http_requests_total{handler="/metrics"} 7.0']
    for engine, (running, waiting, steps, tokens) in enumerate(loads):
        label = f'{{engine="{engine}",model_name="a{{,engine=\\"9\\"}}"}}'
        awake = 0.0 if str(engine) == asleep else 1.0
        lines += [
            f"vllm:num_requests_running{label} {running:.1f}",
            f"vllm:num_requests_waiting{label} {waiting:.1f}",
            f"vllm:iteration_tokens_total_count{label} {steps:.1f}",
            f"vllm:generation_tokens_total{label} {tokens:.1f}",
            f'vllm:engine_sleep_state{{engine="{engine}",model_name="a",sleep_state="awake"}} {awake}',
            f'vllm:engine_sleep_state{{engine="{engine}",model_name="a",sleep_state="discard_all"}} 0.0',
        ]
    return metrics.engines("\n".join(lines))


class Story:
    """A server over time. ``answers``: what becomes of the watchdog's own request."""

    def __init__(self, silence=SILENCE):
        self.now = 1000.0
        self.judge = Judge(silence, self.now)
        self.asked = []
        self.looked = 0

    def during(self, seconds, engines, *, answers=None, log=None, step=STEP):
        """Let so many seconds pass with pages of ``engines`` (a function of the time, or always the same)."""
        end = self.now + seconds
        verdict = None
        while self.now < end:
            self.now += step
            self.judge.page(self.now, engines(self.now) if callable(engines) else engines)
            verdict = self.judge.verdict(self.now)
            if verdict.look:
                self.looked += 1
                if log is not None:
                    self.judge.logged(self.now - log, None)
            if verdict.ask is not None:
                self.asked.append(verdict.ask)
                self.judge.asking(self.now, verdict.ask)
                if answers:
                    self.judge.answer(self.now, verdict.ask, answers)
            if verdict.kind == "hung":
                return verdict
        return verdict


def working(now):
    return page((3, 40, now, 7 * now))


def test_a_server_that_works_is_never_asked_and_its_log_is_never_read():
    story = Story()
    assert story.during(3600, working).kind == "moving"
    assert (story.asked, story.looked) == ([], 0)


def test_a_hung_engine_with_requests_is_found_after_the_silence():
    story = Story()
    story.during(60, working)
    begun = story.now
    verdict = story.during(1000, working(begun))
    assert verdict.kind == "hung"
    assert SILENCE <= story.now - begun <= SILENCE + STEP
    assert (
        verdict.why
        == "the engine did nothing for 120 s while 3 requests ran and 40 waited, and a request for one token got no answer in 60 s"
    )


def test_an_idle_server_is_asked_for_a_token_each_half_of_the_silence():
    story = Story()
    assert story.during(3600, page((0, 0, 5, 5)), answers="token").kind in ("moving", "silent")
    assert 55 <= len(story.asked) <= 60
    assert story.looked == 0


def test_an_engine_that_hung_while_idle_is_found_although_its_page_shows_no_request():
    story = Story()
    verdict = story.during(1000, page((0, 0, 5, 5)))
    assert verdict.kind == "hung"
    assert story.now - 1000 <= SILENCE + STEP
    assert verdict.why == "the engine did nothing for 120 s, and a request for one token got no answer in 60 s"


def test_a_gauge_that_was_left_over_is_no_reason_while_the_engine_answers():
    assert Story().during(3600, page((1, 0, 5, 5)), answers="token").kind != "hung"


def test_a_model_without_completions_is_not_judged_while_idle():
    assert Story().during(3600, page((0, 0, 5, 5)), answers="refused").kind != "hung"


def test_a_full_queue_that_turns_requests_away_is_hung_when_nothing_moves():
    assert Story().during(3600, page((4, 9, 5, 5)), answers="refused").kind == "hung"


def test_a_slow_first_token_and_a_token_each_ten_seconds_are_work():
    story = Story()
    story.during(90, page((1, 0, 5, 5)))
    assert story.during(3600, lambda now: page((1, 0, now // 10, now // 10))).kind == "moving"


@pytest.mark.parametrize("steps", [115, 60])
def test_a_step_that_takes_nearly_all_of_the_silence_is_work(steps):
    assert Story().during(3600, lambda now: page((1, 0, now // steps, 0))).kind != "hung"


def test_lines_of_an_engine_are_signs_of_life():
    story = Story()
    assert story.during(900, page((0, 0, 5, 5)), log=30).kind != "hung"
    assert story.looked > 0
    assert story.during(900, page((0, 0, 5, 5))).kind == "hung"


def test_a_line_from_before_the_last_step_is_no_sign():
    story = Story()
    assert story.during(900, page((2, 0, 5, 5)), log=5000).kind == "hung"


def test_one_of_two_engines_hangs():
    story = Story()
    verdict = story.during(900, lambda now: page((3, 0, now, now), (2, 1, 8, 8)), answers="token")
    assert verdict.kind == "hung"
    assert verdict.why.startswith("engine 1 did nothing for 120 s while 2 requests ran and 1 waited")
    assert story.asked == ["1"]


def test_two_idle_engines_are_asked_by_their_numbers():
    story = Story()
    assert story.during(900, page((0, 0, 1, 1), (0, 0, 2, 2)), answers="token").kind != "hung"
    assert set(story.asked) == {"0", "1"}


def test_a_frontend_that_does_not_answer_is_hung_after_the_silence_and_one_slow_answer_is_nothing():
    story = Story()
    story.during(50, working)
    assert story.during(100, None).kind == "silent"
    assert story.during(50, working).kind == "moving"
    begun = story.now
    verdict = story.during(900, None)
    assert verdict.why == "/metrics has not answered for 120 s, while the container runs"
    assert story.now - begun <= SILENCE + STEP


def test_a_server_without_vllms_series_is_judged_by_its_answers_alone():
    assert Story().during(900, {}, answers="token").kind != "hung"
    silent = Story().during(900, {})
    assert (silent.kind, silent.blind) == ("hung", True), "behind a long queue it would look just the same"
    assert not Story().during(900, page((1, 0, 5, 5))).blind


def test_a_watchdog_that_could_not_look_for_a_long_time_gives_the_page_its_time():
    judge = Judge(SILENCE, 0.0)
    judge.page(5.0, page((0, 0, 5, 5)))
    judge.page(200.0, None)
    assert judge.verdict(200.0).kind == "silent"
    judge.page(300.0, None)
    assert judge.verdict(319.0).kind == "silent"
    assert judge.verdict(320.0).kind == "hung"
    judge.page(321.0, page((0, 0, 5, 5)))
    assert judge.verdict(321.0).kind != "hung"


def test_a_watchdog_that_could_not_look_for_a_long_time_asks_before_it_judges():
    story = Story()
    story.during(20, page((0, 0, 5, 5)))
    story.now += 500
    assert story.during(50, page((0, 0, 5, 5))).kind == "silent"
    assert story.during(30, page((0, 0, 6, 6))).kind == "moving"


def test_a_request_that_failed_is_sent_again_and_the_engine_that_goes_on_is_alive():
    story = Story()
    story.during(900, page((0, 0, 5, 5)), answers="none")
    assert len(story.asked) > 5
    assert not story.judge.alive
    story.during(10, page((0, 0, 6, 6)))
    assert story.judge.alive


def test_the_first_step_after_a_start_may_take_longer():
    story = Story()
    assert story.during(5 * SILENCE - 20, page((4, 24, 0, 0))).kind == "silent"
    assert story.during(60, page((4, 24, 0, 0))).kind == "hung"
    story = Story()
    story.during(400, page((4, 24, 0, 0)))
    assert story.during(SILENCE + 10, page((4, 24, 1, 0))).kind == "hung"


def test_when_to_look_again():
    story = Story()
    story.judge.page(1000.0, page((1, 0, 5, 5)))
    assert story.judge.due(1000.0) == SILENCE / 2
    assert story.judge.due(1059.0) == pytest.approx(1)
    story.judge.page(1060.0, page((1, 0, 5, 5)))
    story.judge.asking(1060.0, "0")
    assert story.judge.due(1060.0) == SILENCE / 2
    assert story.judge.due(1119.0) == pytest.approx(1)
    assert story.judge.due(5000.0) == SILENCE


def test_engines_that_sleep_are_seen():
    story = Story()
    story.during(10, page((0, 0, 1, 1), (0, 0, 1, 1), asleep="1"))
    assert story.judge.asleep
    story.during(10, page((0, 0, 1, 1), (0, 0, 1, 1)))
    assert not story.judge.asleep


def test_what_the_page_says_of_each_engine():
    found = page((3, 4, 10, 20), (0, 0, 1, 2), asleep="1")
    assert set(found) == {"0", "1"}
    assert (found["0"].running, found["0"].waiting, found["0"].requests, found["0"].asleep) == (3, 4, 7, False)
    assert found["1"].asleep
    assert found["0"].signature != replace(found["0"], signature=()).signature
    assert metrics.engines("http_requests_total 3.0\nvllm:generation_tokens_total 4.0") == {}
    old = metrics.engines(
        'vllm:num_requests_running{model_name="m"} 1.0\nvllm:num_requests_waiting{model_name="m"} NaN'
    )
    assert (old[""].running, old[""].waiting) == (1, 0)
