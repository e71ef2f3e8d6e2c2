# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: every node is there, nothing runs out of the window, nothing is complained about."""

from __future__ import annotations

import html as html_entities
import json
import re
import subprocess
from pathlib import Path

import pytest
from report_runs import BENCHMARK, Run

from fleet_report import build, page

# Says, once the page is laid out, what a reader could see: the window, what is wider than it, and the nodes' names.
MEASURE = """
<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1);
  const seen = [...document.querySelectorAll(".rows .name")].filter(e => e.getBoundingClientRect().height > 8);
  const drawn = [...document.querySelectorAll(".rows svg")].filter(e => e.getBoundingClientRect().width > 100);
  const found = {
    window: innerWidth, content: document.documentElement.scrollWidth,
    wide: wide.slice(0, 5).map(e => e.tagName + "." + e.className), names: seen.map(e => e.textContent), pictures: drawn.length,
    colour: getComputedStyle(document.body).backgroundColor,
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>
"""
# A window cannot be made as narrow as a phone's; a frame can.
FRAME = """<!doctype html><body><iframe src="page.html" style="border: 0; width: {width}px; height: 1200px"></iframe>
<script>addEventListener("message", e => document.body.setAttribute("data-found", e.data));</script>"""
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"]


def runs():
    failing = Run(64, failing=("node20", "node23"), unreachable=("node50",)).deploy()
    return {
        "four": build.build((four := Run(4).deploy()).described(), four.events),
        "sixty-four": build.build(failing.described(), failing.events),
        "failed": build.build((bad := Run(4, failing=("node1",)).deploy()).described(), bad.events),
        "benchmark": build.build((m := Run(2).deploy()).described(benchmarks={"node1": BENCHMARK}), m.events),
    }


@pytest.fixture(scope="module")
def reports():
    return runs()


def browse(folder: Path, html: str, width: int, *flags: str) -> dict:
    (folder / "page.html").write_text(html + MEASURE, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("{width}", str(width)), encoding="utf-8")
    words = [*FLAGS, f"--user-data-dir={folder / 'profile'}", *flags]
    # --dump-dom waits for the load event, that of the frame included.
    done = subprocess.run(
        ["chromium", *words, "--virtual-time-budget=2000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stdout[-2000:] + done.stderr
    return json.loads(html_entities.unescape(found.group(1)))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["four", "sixty-four", "failed", "benchmark"])
def test_everything_is_seen(reports, name, width, tmp_path):
    found = browse(tmp_path, page.render(reports[name]), width)
    assert found["window"] == width
    assert found["content"] <= width
    assert found["wide"] == []
    drawn = [n["name"] for n in reports[name]["nodes"] if n["timeline"]]
    assert found["names"] == drawn
    assert found["pictures"] == len(drawn)


def test_a_dark_system_gets_a_dark_page(reports, tmp_path):
    html = page.render(reports["four"])
    light = browse(tmp_path, html, 1280, "--blink-settings=preferredColorScheme=1")
    dark = browse(tmp_path, html, 1280, "--blink-settings=preferredColorScheme=0")
    assert (light["colour"], dark["colour"]) == ("rgb(246, 247, 249)", "rgb(18, 21, 27)")


def test_a_page_fetches_nothing(reports):
    html = page.render(reports["sixty-four"])
    # But for a link to the page of all runs, which is followed by those who want it.
    assert re.findall(r'(?:src|href)="(?!data:|\.\./index\.html")[^"]*"|url\(|@import|https?://', html) == []
