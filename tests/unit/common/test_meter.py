# SPDX-License-Identifier: Apache-2.0
"""Progress in bytes, step by step."""

from ansible.module_utils.vllm_fleet.common.meter import Meter


def test_each_count_is_shown_and_none_is_past_the_total() -> None:
    shown: list[tuple[str, int, int]] = []
    meter = Meter(lambda *progress: shown.append(progress))
    meter.begin("hashing", 10)
    meter.add(4)
    meter.reach(12)
    meter.reach(-1)
    meter.begin("waiting")
    assert shown == [
        ("hashing", 0, 10),
        ("hashing", 4, 10),
        ("hashing", 10, 10),
        ("hashing", 0, 10),
        ("waiting", 0, 0),
    ]
    Meter().add(1)
