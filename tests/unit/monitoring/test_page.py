# SPDX-License-Identifier: Apache-2.0
"""One page for node_exporter out of own samples and of pages of other programs, which may be anything."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.monitoring.page import Page

VLLM = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 13.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="org/m"} 3.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="org/m"} 1.234e+06
# TYPE vllm:generation_tokens_created gauge
vllm:generation_tokens_created{engine="0",model_name="org/m"} 1.7e+09
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="org/m"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="org/m"} 4.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="org/m"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="org/m"} 0.5
"""


def page(text: str, **given):
    made = Page()
    made.take(text, {"server": "a", "release": 7}, begins="vllm:", **given)
    return made.text().splitlines()


def test_series_of_vllm_get_labels_and_stay_families():
    assert page(VLLM) == [
        "# TYPE vllm:num_requests_running gauge",
        'vllm:num_requests_running{server="a",release="7",engine="0",model_name="org/m"} 3.0',
        "# TYPE vllm:generation_tokens_total counter",
        'vllm:generation_tokens_total{server="a",release="7",engine="0",model_name="org/m"} 1.234e+06',
        "# TYPE vllm:time_to_first_token_seconds histogram",
        'vllm:time_to_first_token_seconds_bucket{server="a",release="7",engine="0",le="0.1",model_name="org/m"} 2.0',
        'vllm:time_to_first_token_seconds_bucket{server="a",release="7",engine="0",le="+Inf",model_name="org/m"} 4.0',
        'vllm:time_to_first_token_seconds_count{server="a",release="7",engine="0",model_name="org/m"} 4.0',
        'vllm:time_to_first_token_seconds_sum{server="a",release="7",engine="0",model_name="org/m"} 0.5',
    ]


def test_two_servers_are_one_family():
    made = Page()
    for name in ("a", "b"):
        made.take(VLLM, {"server": name}, begins="vllm:num")
    assert made.text().count("# TYPE") == 1
    assert made.text().count("vllm:num_requests_running{") == 2


@pytest.mark.parametrize(
    "line",
    (
        "vllm:x",
        "vllm:x one",
        'vllm:x{a="b} 1',
        'vllm:x{a="b"c="d"} 1',
        'vllm:x{a="\\q"} 1',
        "vllm:x 1 1700000000",  # node_exporter takes no time stamps
        'vllm:x{server="me"} 1',  # it says who it is itself
        'vllm:x{a="1",a="2"} 1',
        "vllm:x 0x10",
        'vllm:x{a="' + "b" * 5000 + '"} 1',
        "vllm:x{} 1 # {} 2",
        'vllm:x{__a="b"} 1',  # node_exporter 1.5 dies of it
        "vllm:x 1e999",
        "vllm:x \u0661",  # a digit to Python alone
        "vllm:x{} NaN1",
    ),
)
def test_what_node_exporter_would_stumble_over_is_left_out(line):
    assert page(f"# TYPE vllm:x gauge\n{line}\nvllm:y 1\n") == [
        "# TYPE vllm:y untyped",
        'vllm:y{server="a",release="7"} 1',
    ]


def test_a_series_is_there_once_and_half_a_line_not_at_all():
    assert page("vllm:y 1\nvllm:y 2\nvllm:z 12") == ["# TYPE vllm:y untyped", 'vllm:y{server="a",release="7"} 1']


def test_special_numbers_are_numbers():
    assert [line.split()[-1] for line in page("vllm:a NaN\nvllm:b +Inf\nvllm:c -1.5e-3\n")[1::2]] == [
        "NaN",
        "+Inf",
        "-1.5e-3",
    ]


def test_of_haproxy_only_what_is_asked_and_the_server_is_a_replica():
    made = Page()
    text = '# TYPE haproxy_server_status gauge\nhaproxy_server_status{proxy="m",server="n1",state="UP"} 1\nhaproxy_other 1\n'
    assert made.take(text, {}, only={"haproxy_server_status"}, rename="server=replica") == 1
    assert made.text().splitlines()[1] == 'haproxy_server_status{proxy="m",replica="n1",state="UP"} 1'


def test_words_of_a_node_are_quoted():
    made = Page()
    made.add("x", 1, {"image": 'a"b\\c\nd\x1b[31m', "none": None})
    assert made.text() == '# TYPE x gauge\nx{image="a\\"b\\\\c?d?[31m"} 1\n'


@pytest.mark.parametrize(
    ("kind", "line"),
    (
        ("histogram", 'vllm:x_bucket{le="many"} 1'),
        ("histogram", 'vllm:x_bucket{le="1e999"} 1'),
        ("summary", 'vllm:x{quantile="half"} 1'),
    ),
)
def test_bounds_that_are_no_numbers_are_left_out(kind, line):
    assert page(f"# TYPE vllm:x {kind}\n{line}\nvllm:y 1\n")[-2:] == [
        "# TYPE vllm:y untyped",
        'vllm:y{server="a",release="7"} 1',
    ]


def test_a_histogram_has_no_family_of_the_name_of_its_parts():
    one, two = '# TYPE vllm:x histogram\nvllm:x_bucket{le="1"} 1\n', "# TYPE vllm:x_count counter\nvllm:x_count 1\n"
    for text in (one + two, two + one):
        assert page(text) == ["# TYPE vllm:x histogram", 'vllm:x_bucket{server="a",release="7",le="1"} 1']
