# SPDX-License-Identifier: Apache-2.0
"""Waiting for a server to be idle: time is given, so it passes at once."""

from __future__ import annotations

import contextlib
import http.server
import resource
import threading

import pytest

from ansible.module_utils.vllm_fleet.gateway import drain, haproxy
from ansible.module_utils.vllm_fleet.gateway.drain import Look
from ansible.module_utils.vllm_fleet.vllm import metrics

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a \\"b\\" } c"} 2.0
vllm:num_requests_running{engine="1",model_name="a"} 1.0
vllm:num_requests_waiting{engine="0",model_name="a"} 4.0
vllm:num_requests_waiting{engine="1",model_name="a"} NaN
vllm:generation_tokens_total{engine="0"} 10.0
vllm:prompt_tokens_total{engine="0"} 5.0 1700000000000
not a sample
"""


class Time:
    def __init__(self):
        self.now = 100.0

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def wait(looks, timeout=60.0, stall=30.0, **more):
    time, left = Time(), list(looks)
    return drain.wait(
        lambda: left.pop(0) if len(left) > 1 else left[0], timeout, stall, clock=time.clock, sleep=time.sleep, **more
    )


def test_idle_at_once():
    outcome = wait([Look(0, "0 running", 5.0)])
    assert (outcome.drained, outcome.stalled, outcome.elapsed) == (True, False, 0.0)


def test_idle_after_a_while():
    outcome = wait([Look(3, "3", 1.0), Look(1, "1", 2.0), Look(0, "0", 3.0)])
    assert outcome.drained
    assert outcome.elapsed == pytest.approx(0.3)


def test_the_time_is_over_while_it_still_works():
    numbers = iter(range(1000))
    time = Time()
    outcome = drain.wait(lambda: Look(2, "2 running", float(next(numbers))), 60, 30, clock=time.clock, sleep=time.sleep)
    assert (outcome.drained, outcome.stalled) == (False, False)
    assert outcome.elapsed == pytest.approx(60)


def test_an_engine_without_a_step_is_not_waited_for_to_the_end():
    outcome = wait([Look(2, "2 running", 7.0)])
    assert (outcome.drained, outcome.stalled) == (False, True)
    assert 30 <= outcome.elapsed < 32


def test_a_stall_is_carried_from_call_to_call():
    outcome = wait([Look(2, "2 running", 7.0)], timeout=10, unchanged=25, progress=7.0)
    assert outcome.stalled
    assert outcome.elapsed < 7


def test_sessions_of_a_gateway_never_stall():
    outcome = wait([Look(2, "2 sessions")], timeout=100)
    assert (outcome.drained, outcome.stalled) == (False, False)
    assert outcome.elapsed == pytest.approx(100)


def test_metrics_are_summed_over_the_engines():
    load = metrics.load(PAGE)
    assert (load.running, load.waiting, load.requests, load.progress) == (3, 4, 7, 15.0)


@pytest.mark.parametrize("page", ["", "up 1\n", PAGE.replace("requests_waiting", "other")])
def test_a_page_of_something_else_is_no_answer(page):
    with pytest.raises(ValueError, match="num_requests_waiting"):
        metrics.load(page)


@pytest.fixture
def page():
    """An HTTP server; gives its URL for a status and a body."""
    with contextlib.ExitStack() as stack:

        def serve(status, body):
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self):
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(body.encode())

                def log_message(self, *_):
                    pass

            server = stack.enter_context(http.server.HTTPServer(("127.0.0.1", 0), Handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield serve


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [(404, "", "answered HTTP 404"), (503, PAGE, "answered HTTP 503"), (200, "up 1\n", "is not vLLM's: no vllm:num_")],
)
def test_a_server_without_the_counts_is_not_waited_for_and_not_called_idle(page, status, body, says):
    look = drain.look_at_server(page(status, body))
    assert look.unknown and says in look.says
    outcome = wait([look])
    told = drain.result(outcome)
    assert (told["drained"], told["unknown"], told["gone"], told["elapsed"]) == (False, True, False, 0.0)


def test_a_server_with_its_counts_is_known(page):
    look = drain.look_at_server(page(200, PAGE))
    assert (look.requests, look.unknown) == (7, False)


STAT = """\
# pxname,svname,qcur,qmax,scur,smax,slim,stot,status,check_status,last_chk,check_desc,lastchg,
m,FRONTEND,,,0,1,,5,OPEN,,,,,
m,node1,1,0,2,3,,40,UP,* L7OK,OK: 200,Layer7 check passed,12,
m,node2,0,0,0,3,,4,DRAIN,L4CON,"Connection refused, really",,3,
m,BACKEND,0,0,2,3,,44,UP,,,,20,
"""


def test_haproxys_table_is_read_without_its_totals():
    first, second = haproxy.servers(STAT)
    assert (first.name, first.status, first.sessions, first.queue, first.requests, first.check, first.seconds) == (
        ("node1", "UP", 2, 1, 40, "L7OK OK: 200", 12)
    )
    assert (second.name, second.status, second.check) == ("node2", "DRAIN", "L4CON Connection refused, really")


@pytest.mark.parametrize(
    ("status", "said", "agent"),
    [
        ("", "", ""),
        ("INI", "", ""),
        ("L7OK", "via agent : up", "up"),
        ("L7STS", '"via agent : down (hung: 3 requests, none moves)"', "down (hung: 3 requests, none moves)"),
        # It is being asked again.
        ("* L7STS", "", "down"),
        ("L7OK", "", "up"),
        ("L4CON", "Connection refused", "no answer (Connection refused)"),
        ("* L4TOUT", "", "no answer (L4TOUT)"),
    ],
)
def test_what_a_servers_watchdog_said(status, said, agent):
    text = f"# pxname,svname,status,agent_status,last_agt,agent_desc\nm,node1,UP,{status},{said},\n"
    assert next(haproxy.servers(text)).agent == agent


CONFIG = """\
backend a
    server n1 192.0.2.1:8000
    server n1:8000 [2001:db8::1]:8000 weight 1
backend b
    server n1 node1.example.org:8000
"""


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        (("a", "n1", 8100), "n1 192.0.2.1:8000", "n1 192.0.2.1:8100"),
        (("a", "n1", 8100, "192.0.2.9"), "n1 192.0.2.1:8000", "n1 192.0.2.9:8100"),
        (("a", "n1:8000", 8100), "[2001:db8::1]:8000 weight", "[2001:db8::1]:8100 weight"),
        (("a", "n1:8000", 8100, "2001:db8::2"), "[2001:db8::1]:8000 weight", "[2001:db8::2]:8100 weight"),
        (("b", "n1", 8100), "node1.example.org:8000", "node1.example.org:8100"),
        (("b", "n2", 8100), "", ""),
        (("c", "n1", 8100), "", ""),
    ],
)
def test_a_server_moves_in_the_configuration_alone_where_it_stands(where, old, new):
    assert haproxy.located(CONFIG, *where) == (CONFIG.replace(old, new) if old else CONFIG)


@pytest.mark.parametrize("late", [0, 1, 3, None])
def test_a_move_is_waited_for_where_haproxy_answers_before_it_has_moved(monkeypatch, late):
    """The table of HAProxy 3.0 has the old port for a while: for `late` looks, None for ever."""
    state, asked = "1\n# be_name srv_name srv_addr srv_port\na n1 192.0.2.1 {}\n", []

    def ask(_path, command, _timeout=0.0):
        asked.append(command)
        if command.startswith("set server"):
            return "port changed from '8000' to '8100'\n"
        moved = late is not None and len(asked) > 2 + late
        return state.format(8100 if moved else 8000)

    monkeypatch.setattr(haproxy, "ask", ask)
    monkeypatch.setattr(haproxy, "time", time := Time())
    time.monotonic = time.clock
    if late is None:
        with pytest.raises(haproxy.SocketError, match="did not take port 8100 for a/n1 within 5 s: port changed from"):
            haproxy.locate("socket", "a", "n1", 8100)
    else:
        assert haproxy.locate("socket", "a", "n1", 8100)
        assert not haproxy.locate("socket", "a", "n1", 8100), "it is there already"
    assert asked.count("set server a/n1 addr 192.0.2.1 port 8100") == 1


def test_haproxy_that_is_not_there_is_named(tmp_path):
    with pytest.raises(haproxy.SocketError, match=r"has no socket .*: it does not run, or with another configuration"):
        haproxy.ask(str(tmp_path / "none.sock"), "show info")


RUN, WAIT = metrics.RUNNING, metrics.WAITING
#: What no server of vLLM says, but one in other hands may: the watchdog and a drain read it for ever.
HOSTILE = {
    "a sum that is infinite": f"{RUN} 1e308\n{RUN} 1e308\n{WAIT} 1\n",
    "less than nothing": f"{RUN} -5\n{WAIT} -1e300\n",
    "a line without end": f"{RUN}{{{'a' * 4_000_000}\n{WAIT} 1\n",
    "a label of quotes": f"{RUN}{{" + '"a",' * 1_000_000 + f"\n{WAIT} 1\n",
}


@pytest.mark.parametrize("page", HOSTILE.values(), ids=HOSTILE)
def test_a_page_that_cannot_be_is_none(page):
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert metrics.engines(page) == {}
    with pytest.raises(ValueError, match="no vllm:num_requests_running"):
        metrics.load(page)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 64 << 10, "KiB"


def test_a_page_of_countless_engines_is_read_for_some():
    page = "".join(f'{RUN}{{engine="{number}"}} 1\n' for number in range(20_000))
    assert len(metrics.engines(page)) == metrics.MOST_ENGINES
