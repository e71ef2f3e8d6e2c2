# SPDX-License-Identifier: Apache-2.0
"""One node's part in a swarm: its torrent is made once, and what keeps it out is named."""

import shutil
from pathlib import Path
from typing import Any

import hf_swarm
import pytest

from ansible.module_utils.vllm_fleet.common.job import Job
from ansible.module_utils.vllm_fleet.weights import said, swarm
from ansible.module_utils.vllm_fleet.weights import torrent as torrents

A, B = "a" * 64, "b" * 64


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's home and its folder of blobs, without systemd."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(swarm, "RUN", tmp_path / "run")
    monkeypatch.setattr(swarm, "stop", lambda place: shutil.rmtree(place.run, ignore_errors=True))
    monkeypatch.setattr(swarm, "lacking", lambda programs: [name for name in programs if name == "mktorrent"])
    (blobs := tmp_path / "blobs").mkdir()
    for name in (A, B):
        (blobs / name).write_text(name)
    return blobs


def share(folder: Path, blobs: list[str], programs: tuple[str, ...] = ()) -> dict[str, Any]:
    place = swarm.Settings("c" * 40, 1, 2)
    options = {"state": "shared", "address": "127.0.0.1", "hint": "", "seed": "", "folder": str(folder), "blobs": blobs}
    because = "No package matching 'mktorrent' is available\nmore"
    found: dict[str, Any] = hf_swarm.act(options | {"programs": programs, "lacking_because": because}, place)
    return found


def test_hashing_that_goes_on_after_an_interruption_is_joined_and_ended_only_for_another_torrent(node: Path) -> None:
    argv = share(node, [A, B])["argv"]
    torrent = Path(argv[argv.index("-o") + 1])
    torrent.write_text("as mktorrent opens it: before it hashes")
    job = Job(node.parent / ".cache/vllm-fleet/jobs" / ("torrent-" + "c" * 40))
    run_id, _ = job.begin(["sleep", "60"], None, {}, argv)  # of that identity, and no mktorrent needed
    try:
        assert share(node, [A, B])["argv"] == argv
        assert job.running() and torrent.exists()
        # As long as before, so by the same command; but of other contents.
        assert share(node, [A])["argv"] == argv
        assert not job.running() and not torrent.exists()
    finally:
        job.stop(run_id)


def test_a_program_that_could_not_be_installed_is_the_reason(node: Path) -> None:
    said = r"^mktorrent not installed, .* \(No package matching 'mktorrent' is available\); install by hand$"
    with pytest.raises(torrents.SwarmError, match=said):
        share(node, [A], ("aria2c", "mktorrent"))


def test_a_node_of_many_networks_names_no_more_addresses_than_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{n}: eth{n}    inet 10.0.{n}.1/24 brd 10.0.{n}.255 scope global eth{n}" for n in range(30)]
    monkeypatch.setattr(swarm, "_run", lambda argv, what: "\n".join(lines))
    named = ["10.0.29.1", *swarm.own_addresses()]  # the one that it is bound to, and these
    assert said.addresses(named, "n1") == named
