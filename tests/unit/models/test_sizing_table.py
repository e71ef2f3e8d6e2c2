# SPDX-License-Identifier: Apache-2.0
"""The table that sizing fills: equal nodes share a line."""

from __future__ import annotations

import re

from model_configs import LLAMA, V31

from ansible.module_utils.vllm_fleet.models import sizing, sizing_table
from ansible.module_utils.vllm_fleet.models.sizing import Facts

MI300X = sizing.named("MI300X", 8)


DEEPSEEK = Facts("deepseek-ai/DeepSeek-V3.1", V31, 688586727753, "test", "0.12.0")


DENSE = Facts("meta-llama/Llama-3.3-70B-Instruct", LLAMA, 141107412992)


RECIPE = {"tensor-parallel-size": 8, "enable-expert-parallel": True}


def test_equal_nodes_share_a_line_and_the_arithmetic_comes_on_request():
    row = sizing_table.as_row(sizing.size(DEEPSEEK, MI300X, RECIPE))
    other = sizing_table.as_row(sizing.size(DEEPSEEK, sizing.named("MI355X", 8), RECIPE))
    text = sizing_table.table([("n1", row), ("n2", row), ("n3", row), ("n4", other)])
    assert [line.split("  ")[0] for line in text.splitlines()[1:]] == ["NODE", "n1 .. n3 (3)", "n4"]
    assert re.search(
        r"^n1 .. n3 \(3\) +8 x MI300X +8 +1,2,4,8 +80.2 GiB +<= 96.5 GiB +<= 163840 +<= 9.0 +641.3 GiB$", text, re.M
    )
    assert "bytes per GPU" not in text
    assert "61 layers x (512 + 64) x 2 bytes" in sizing_table.table([("n1", row)], arithmetic=True)
    nothing = sizing_table.as_row(sizing.size(Facts("acme/x", {}), MI300X, {}))
    assert sizing_table.table([("n1", nothing), ("n2", nothing)]) == ""
    assert sizing_table.table([("n1", nothing), ("n2", nothing)], arithmetic=True).splitlines() == [
        "acme/x: nothing is known before it is there; playbooks/plan.yml reads its figures from the Hub."
    ]


def test_rows_are_what_preflight_returned_on_each_host():
    row = sizing_table.as_row(sizing.size(DENSE, MI300X, {}))
    hostvars = {"n1": {"preflight_result": {"sizing": row}}, "n2": {"preflight_result": {"sizing": None}}, "n3": {}}
    assert sizing_table.of_hosts(hostvars, ["n1", "n2", "n3"]) == [("n1", row)]
    assert sizing_table.of_hosts(hostvars, ["n3"]) == []
