# SPDX-License-Identifier: Apache-2.0
"""push_files through ansible-playbook: rsync's own progress while it sends, and what synchronize makes of the rest."""

from __future__ import annotations

import os
import re
from pathlib import Path

import play


def test_progress_is_shown_and_the_result_is_that_of_synchronize(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "weights").write_bytes(os.urandom(9 << 20))
    said = {"src": f"{tmp_path}/from/", "dest": f"{tmp_path}/to/", "compress": False, "label": "sending org/model"}
    send = {"name": "Send", "push_files": {**said, "rsync_opts": ["--bwlimit=1500"]}, "register": "sent"}
    again = {"name": "Again", "push_files": said, "register": "again"}
    broken = {
        "name": "Broken",
        "push_files": {**said, "src": f"{tmp_path}/nothing/"},
        "register": "broken",
        "ignore_errors": True,
    }
    run = play.run(tmp_path, [send, again, broken], facts=["sent", "again", "broken"]).ok()
    lines = re.findall(r"^\[localhost\] sending org/model: (.*)$", run.output, re.MULTILINE)
    assert len(lines) == 1 and re.fullmatch(r"\d+ %, \d\.\d MB, [\d.]+ [kM]B/s, 0:00:\d\d left", lines[0]), run.output
    assert (tmp_path / "to" / "weights").read_bytes() == (tmp_path / "from" / "weights").read_bytes()
    assert run.facts["sent"]["changed"] and not run.facts["again"]["changed"]
    assert run.facts["sent"]["stdout_lines"] == ["cd+++++++++ ./", ">f+++++++++ weights"]
    assert run.facts["broken"]["failed"] and "nothing" in run.facts["broken"]["msg"]
