# SPDX-License-Identifier: Apache-2.0
"""The page of the fleet and the dashboards, before a real Prometheus: everything that they ask has an answer."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_fleet import FILES, Watched, watched

BOARDS = sorted((FILES / "dashboards").glob("*.json"))
#: Titles of panels that show trouble alone.
QUIET = {"Alerts that fire", "Not as recorded or described", "Hot, slow or held by nobody"}
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--hide-scrollbars"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Sixty-four nodes, some of them in trouble."""
    with watched(tmp_path_factory.mktemp("watched"), 64, trouble=True) as made:
        made.until("rate(vllm:generation_tokens_total[10s])")
        made.until('ALERTS{alertstate="firing"} or vllm_fleet:itl_seconds:mean')
        yield made


def queries() -> list[tuple[str, str, str]]:
    out = []
    for board in BOARDS:
        for panel in json.loads(board.read_text())["panels"]:
            out += [(board.stem, panel["title"], target["expr"]) for target in panel.get("targets") or []]
    return out


def test_every_query_of_every_dashboard_has_an_answer(fleet: Watched) -> None:
    asked = queries()
    assert len(asked) > 80
    silent = []
    for board, title, expr in asked:
        text = re.sub(r'"\$\w+"', '".*"', expr.replace("$__rate_interval", "10s"))
        if not fleet.query(text):
            silent.append((board, title))
    assert {title for _, title in silent} <= QUIET, silent


def test_every_rule_is_evaluated(fleet: Watched) -> None:
    rules = [rule for group in fleet.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, [r for r in rules if r["health"] == "err"]


def test_the_page_shows_every_server(fleet: Watched, tmp_path: Path) -> None:
    words = [*FLAGS, f"--user-data-dir={tmp_path}/profile", "--window-size=1280,1400"]
    page = f"{fleet.url}/consoles/fleet.html"
    done = subprocess.run(
        ["chromium", *words, "--virtual-time-budget=4000", "--dump-dom", page],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    assert 'data-shown="yes"' in done.stdout, done.stdout[-2000:]
    rows = re.findall(r"<tr>.*?</tr>", done.stdout.partition('id="servers"')[2].partition("</table>")[0])
    assert len(rows) == 1 + 64 // 2 * 3
    assert "<b>93 of 96</b>" in done.stdout
    assert done.stdout.count('class="state good"') == 96 - 1 - 2
