# SPDX-License-Identifier: Apache-2.0
"""Records, report, status, rollback, verification, benchmark and teardown on two real nodes, as their user runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import standin
import yaml
from fleet import Fleet

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
KEY, TOKEN, OWN = "canary-key-71c0a9", "canary-token-3f9e12", "canary-own-b8d455"
#: What the table shows for what is not known.
NONE = "\u2013"
STATE = "/var/lib/vllm-fleet"


class Site:
    """A fleet, an inventory that a test edits, and the project's playbooks."""

    def __init__(self, fleet: Fleet, folder: Path, image: str) -> None:
        self.fleet, self.folder = fleet, folder
        self.reports = folder / "reports"
        self.said: list[str] = []
        self.variables: dict[str, Any] = {
            "vllm_server_image": image,
            "vllm_server_model": "acme/tiny",
            "vllm_server_accelerator": "cpu",
            "vllm_server_hf_cache": "",
            "vllm_server_api_key": KEY,
            "vllm_server_hf_token": TOKEN,
            "vllm_server_env": {"STANDIN_START_SECONDS": "0.3", "MY_ACCESS_KEY": OWN, "HF_HUB_OFFLINE": "0"},
            "vllm_server_stop_timeout": 6,
            "vllm_server_ready_timeout": 60,
            "rollout_waves": [1, "100%"],
        }

    def play(self, playbook: str, *words: str, **edit: Any) -> subprocess.CompletedProcess[str]:
        """Edit the inventory, run a playbook, keep what it said."""
        self.variables.update(edit)
        group = self.folder / "group_vars"
        group.mkdir(exist_ok=True)
        (group / "vllm.yml").write_text(yaml.safe_dump(self.variables))
        environ = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "COLUMNS": "400",
            "VLLM_FLEET_REPORTS": str(self.reports),
        }
        command = [PLAYBOOK, "-i", str(self.folder / "inventory.yml"), str(ROOT / "playbooks" / playbook), *words]
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        self.said.append(done.stdout + done.stderr)
        return done

    def deploy(self, *words: str, **edit: Any) -> str:
        """Roll out what the inventory describes; must go well."""
        done = self.play("rollout.yml", *words, **edit)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def records(self, node: str) -> list[dict[str, Any]]:
        """Every record of a node, oldest first."""
        script = f"for file in {STATE}/vllm/releases/*.json; do cat $file; echo ' '; echo %%; done"
        text = self.fleet.exec(node, ["sh", "-c", script]).stdout
        return [json.loads(part) for part in text.split("%%\n") if part.strip()]

    def table(self, *words: str) -> dict[str, list[str]]:
        """The rows of playbooks/status.yml by node, and its exit code under ''."""
        done = self.play("status.yml", *words)
        found = re.findall(r"^ *((?:node\d|ghost) {2,}(?![ :]).*)$", done.stdout, re.M)
        assert found, done.stdout + done.stderr
        rows = {line.split()[0]: re.split(r" {2,}", line.strip())[1:] for line in found}
        return {**rows, "": [str(done.returncode)]}

    def report(self) -> dict[str, Any]:
        """The newest report."""
        newest = max(self.reports.glob("*/report.json"), key=lambda path: path.stat().st_mtime_ns)
        found: dict[str, Any] = json.loads(newest.read_text())
        return found

    def running(self, node: str) -> list[str]:
        words = ["docker", "ps", "-a", "--format", "{{.Names}} {{.State}}"]
        return sorted(self.fleet.exec(node, words).stdout.split("\n")[:-1])


@pytest.fixture(scope="module")
def site(tmp_path_factory, standin_image):
    folder = tmp_path_factory.mktemp("site")
    fleet = Fleet(f"report-{os.getpid()}", lambda _: None)
    try:
        fleet.up(folder, ["bookworm", "trixie"])
        fleet.load([standin_image])
        yield Site(fleet, folder, standin_image)
    finally:
        fleet.down()


@pytest.fixture(scope="module")
def standin_image():
    import docker

    client = docker.from_env()
    yield standin.build_image(client, "plain")
    client.close()


@pytest.fixture(scope="module")
def two_releases(site):
    """Release 1 with 512 tokens of context, release 2 with 1024."""
    first = site.deploy(vllm_server_args={"max-model-len": 512})
    again = site.deploy()
    second = site.deploy(vllm_server_args={"max-model-len": 1024})
    return first, again, second


def test_a_verified_release_is_recorded_once(site, two_releases):
    for node in ("node1", "node2"):
        records = site.records(node)
        assert [r["release"] for r in records] == [1, 2]
        assert [r["spec"]["args"]["max-model-len"] for r in records] == [512, 1024]
        last = records[-1]
        assert last["answers"][0]["content"] == "The capital of France is Paris."
        assert last["answers"][0]["ttft"] > 0
        assert last["image"]["reference"] == site.variables["vllm_server_image"]
        assert last["image"]["id"].startswith("sha256:")
        assert (last["settings"]["accelerator"], last["start"]["downtime"] > 0) == ("cpu", True)
        assert re.fullmatch(r"[0-9a-f]{40}", last["configuration"]["project"]["revision"])
        assert last["configuration"]["inventory"] is None
        assert last["run"] in [folder.name for folder in site.reports.iterdir()]


def test_a_run_ends_with_a_summary_a_page_or_one_line(site, two_releases):
    first, again, second = two_releases
    assert re.search(r"2 nodes in .*: 2 deployed", first)
    assert re.search(r"2 nodes, nothing to change; 2 nodes answered as expected, first token after ", again)
    assert "Report: " not in again
    assert re.search(r"^node2 +replaced +2 +\d.*\(was .*\(was ", second, re.M)
    assert len(list(site.reports.glob("*/report.json"))) == 2
    page = next(iter(site.reports.glob("*/index.html"))).read_text()
    assert "node1" in page and "node2" in page


def test_status_shows_the_fleet_and_its_drift(site, two_releases):
    fine = site.table("-e", "status_fail_on_drift=true")
    image = site.variables["vllm_server_image"]
    row = ["2", "acme/tiny", image, "running", "ready", "0", "0", "off", "none"]
    assert fine == {"node1": row, "node2": row, "": ["0"]}
    site.variables["vllm_server_args"] = {"max-model-len": 2048}
    site.fleet.exec("node2", ["docker", "stop", "-t", "1", "vllm"])
    drifted = site.table()
    assert drifted["node1"] == [*row[:-1], "args.max-model-len"]
    assert drifted["node2"][3:7] == ["exited", NONE, NONE, NONE]
    assert drifted["node2"][-1] == "args.max-model-len, state"
    assert drifted[""] == ["0"]
    assert site.table("-e", "status_fail_on_drift=true")[""] == ["2"]
    site.fleet.exec("node2", ["docker", "start", "vllm"])


def test_a_node_that_is_not_there_is_a_row(site, two_releases):
    hosts = yaml.safe_load((site.folder / "inventory.yml").read_text())
    kept = (site.folder / "inventory.yml").read_text()
    nodes = hosts["all"]["children"]["vllm"]["hosts"]
    nodes["ghost"] = {**nodes["node1"], "ansible_port": 1}
    (site.folder / "inventory.yml").write_text(yaml.safe_dump(hosts))
    try:
        rows = site.table()
    finally:
        (site.folder / "inventory.yml").write_text(kept)
    assert rows["ghost"][3] == "unreachable"
    assert "nothing listens at" in rows["ghost"][-1]
    assert rows["node1"][4] == "ready"
    assert "fatal" not in site.said[-1]
    assert "FLEET" not in site.said[-1]  # the table is the whole answer


def test_verify_asks_and_changes_nothing(site, two_releases):
    done = site.play("verify.yml", vllm_server_args={"max-model-len": 1024})
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    assert re.search(r"^2 nodes answered as expected, first token after .* tokens/s\.$", done.stdout, re.M)


BERLIN = [{"name": "capital", "prompt": "What is the capital of France?", "expect": {"pattern": "Berlin"}}]


def test_verify_fails_where_an_answer_is_wrong_or_nobody_answers(site, two_releases):
    before = site.running("node1")
    wrong = site.play("verify.yml", "-e", json.dumps({"vllm_server_verify": BERLIN}))
    assert wrong.returncode == 2, wrong.stdout
    assert "verification: " in wrong.stdout
    assert "expected a match of /Berlin/" in wrong.stdout
    site.fleet.exec("node2", ["docker", "stop", "-t", "1", "vllm"])
    absent = site.play("verify.yml")
    site.fleet.exec("node2", ["docker", "start", "vllm"])
    assert absent.returncode == 2, absent.stdout
    assert re.search(r"^2 nodes in .*: 1 answered as expected, 1 failed$", absent.stdout, re.M), absent.stdout
    assert "node2: verification: " in absent.stdout
    assert site.running("node1") == before


def test_a_run_of_the_verification_alone_fails_for_what_is_wrong_and_for_nothing_else(site, two_releases):
    before = site.running("node1")
    for mode in ((), ("--check",)):
        right = site.play("rollout.yml", "--tags", "verify", *mode, vllm_server_args={"max-model-len": 1024})
        assert right.returncode == 0, right.stdout + right.stderr
        wrong = site.play("rollout.yml", "--tags", "verify", *mode, "-e", json.dumps({"vllm_server_verify": BERLIN}))
        assert wrong.returncode == 2, wrong.stdout
        assert "expected a match of /Berlin/" in wrong.stdout
    # It takes no lock, so it puts nothing back.
    assert site.running("node1") == before


def test_a_benchmark_goes_into_the_report(site, two_releases):
    refused = site.play("benchmark.yml", "-e", "benchmark_input_tokens=1000")
    assert refused.returncode != 0
    assert "more than the 1024 of this server's max-model-len" in " ".join(refused.stdout.split())
    done = site.play("benchmark.yml", "-e", "benchmark_requests=12", "-e", "benchmark_concurrency=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^node2 +12 +\d", done.stdout, re.M)
    found = {n["name"]: n["benchmark"] for n in site.report()["nodes"]}
    assert (found["node1"]["completed"], found["node2"]["failed"]) == (12, 0)
    assert "--num-prompts 12" in found["node1"]["command"]
    site.play("benchmark.yml", "--check")
    assert "failed=0" in site.said[-1]


def test_rollback_goes_back_to_the_record_and_not_to_the_inventory(site, two_releases):
    # What the inventory says today is none of its business.
    site.variables["vllm_server_args"] = {"max-model-len": 4096, "enforce-eager": True}
    checked = site.play("rollback.yml", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "2 -> 1: acme/tiny" in checked.stdout
    assert "Check: 2 of 2 nodes would change." in checked.stdout
    assert [r["release"] for r in site.records("node1")] == [1, 2]

    one = site.play("rollback.yml", "--limit", "node1")
    assert one.returncode == 0, one.stdout + one.stderr
    last = site.records("node1")[-1]
    assert (last["release"], last["restores"], last["rolled_back_from"]) == (3, 1, 2)
    assert last["spec"]["args"]["max-model-len"] == 512
    assert "enforce-eager" not in last["spec"]["args"]
    assert last["spec"]["env"]["MY_ACCESS_KEY"] == site.records("node1")[0]["spec"]["env"]["MY_ACCESS_KEY"]
    assert site.records("node2")[-1]["release"] == 2

    half = site.play("rollback.yml")
    assert half.returncode != 0
    assert "node1 went back already, node2 not yet. Finish with --limit node2" in half.stdout
    rest = site.play("rollback.yml", "--limit", "node2")
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert site.records("node2")[-1]["restores"] == 1

    further = site.play("rollback.yml")
    assert further.returncode != 0
    assert "There is no earlier release to go back to" in further.stdout
    assert [r["release"] for r in site.records("node2")] == [1, 2, 3]


def test_a_rollout_that_ended_half_way_is_taken_back_where_it_came_to(site, two_releases):
    site.deploy(vllm_server_args={"max-model-len": 256})
    site.deploy("--limit", "node1", vllm_server_args={"max-model-len": 128})
    half = site.play("rollback.yml")
    assert half.returncode != 0
    says = "node2 never had the release that node1 would go back from. Take that one back with --limit node1"
    assert says in half.stdout, half.stdout
    further = site.play("rollback.yml", "--check", "-e", "rollback_again=true")
    assert further.returncode == 0, further.stdout + further.stderr
    assert "5 -> 4: " in further.stdout and "4 -> 3: " in further.stdout

    one = site.play("rollback.yml", "--limit", "node1")
    assert one.returncode == 0, one.stdout + one.stderr
    assert site.records("node1")[-1]["spec"]["args"]["max-model-len"] == 256
    # Both serve the same now, and go on from there together.
    both = site.play("rollback.yml", "--check")
    assert both.returncode == 0, both.stdout + both.stderr
    assert "6 -> 3: " in both.stdout and "4 -> 3: " in both.stdout


def test_a_rollback_that_cannot_end_well_touches_nothing(site, two_releases):
    before = site.running("node1")
    gone = f"sed -i 's/sha256:[0-9a-f]*/sha256:{'0' * 64}/' {STATE}/vllm/releases/000002.json"
    site.fleet.exec("node1", ["cp", f"{STATE}/vllm/releases/000002.json", "/tmp/kept"])
    site.fleet.exec("node1", ["sh", "-c", gone])
    refused = site.play("rollback.yml", "-e", "rollback_to=2", "--limit", "node1")
    site.fleet.exec("node1", ["cp", "/tmp/kept", f"{STATE}/vllm/releases/000002.json"])
    assert refused.returncode != 0
    assert "The image of release 2 is not on the node any more" in refused.stdout

    secrets = site.variables["vllm_server_env"]
    lost = {name: value for name, value in secrets.items() if name != "MY_ACCESS_KEY"}
    refused = site.play("rollback.yml", "-e", "rollback_to=2", "--limit", "node1", vllm_server_env=lost)
    assert "secrets in its environment that the inventory does not have today: MY_ACCESS_KEY" in refused.stdout
    site.variables["vllm_server_env"] = secrets

    refused = site.play(
        "rollback.yml", "-e", "rollback_to=2", "--limit", "node1", "-e", '{"vllm_server_args": {"max-model-len": 8}}'
    )
    assert "Not what was recorded: vllm_server_args" in refused.stdout
    refused = site.play("rollback.yml", "-e", "rollback_to=9", "--limit", "node1")
    assert "There is no release 9, known are 1, 2, 3, 4, 5, 6" in refused.stdout
    assert site.running("node1") == before


def test_teardown_asks_and_keeps_the_records(site, two_releases):
    caches = ["sh", "-c", f"ls {STATE}/engine-cache"]
    assert site.fleet.exec("node1", caches).stdout
    refused = site.play("teardown.yml")
    assert refused.returncode != 0
    assert "Nothing was removed" in refused.stdout
    assert "vllm running" in site.running("node1")
    checked = site.play("teardown.yml", "--check")
    assert checked.returncode == 0
    assert "vllm running" in site.running("node1")

    gone = site.play("teardown.yml", "-e", "teardown_confirm=yes")
    assert gone.returncode == 0, gone.stdout + gone.stderr
    for node in ("node1", "node2"):
        assert site.running(node) == []
        assert not site.fleet.exec(node, caches).stdout
        assert len(site.records(node)) == {"node1": 6, "node2": 4}[node]
    assert site.table()["node1"][3:] == ["absent", NONE, NONE, NONE, "off", "no server"]
    again = site.play(
        "teardown.yml", "-e", "teardown_confirm=yes", "-e", "teardown_remove_records=true", "--limit", "node1"
    )
    assert again.returncode == 0
    assert "vllm" not in site.fleet.exec("node1", ["ls", STATE]).stdout.split()


def test_no_secret_is_in_records_reports_or_on_the_terminal(site, two_releases):
    written = [path.read_text() for path in site.reports.rglob("*") if path.is_file()]
    recorded = site.fleet.exec("node2", ["grep", "-r", "", f"{STATE}/vllm"]).stdout
    assert "fingerprint" in recorded
    for text in (*written, recorded, *site.said):
        assert not re.search("|".join((KEY, TOKEN, OWN)), text)
