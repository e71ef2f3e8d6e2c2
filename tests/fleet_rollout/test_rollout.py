# SPDX-License-Identifier: Apache-2.0
"""deploy.yml over a fleet, as its users see it, while clients go on asking. One story: every test leaves the fleet whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from itertools import product

import docker
import pytest
import standin
import yaml
from load import Load
from scene import ASK, KEY, NEXT, ROOT, TOKEN, Scene

pytestmark = pytest.mark.engine
ALL = ["node1", "node2", "node3", "node4"]
CANARIES = f"{KEY}|{NEXT}|{TOKEN}"
# As nobody, who sees what the whole world may. Patterns that do not match themselves, for they stand in a command line.
HIDDEN = "|".join(f"[{word[0]}]{word[1:]}" for word in (KEY, NEXT, TOKEN))
SEARCH = f"""
grep -rIlsE '{HIDDEN}' /etc /var /run /tmp /home /root /opt /srv /usr/local
for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$file; echo; done 2>/dev/null | grep -E '{HIDDEN}'
true
"""


#: Run at the gateway until its input ends: says five times a second how many servers are up.
COUNT = """
import contextlib, select, socket, sys
while not select.select([sys.stdin], [], [], 0.2)[0]:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as s:
        s.connect("/run/haproxy/vllm-fleet.sock"); s.sendall(b"show stat\\n")
        table = b"".join(iter(lambda: s.recv(65536), b"")).decode()
        rows = [row.split(",") for row in table.splitlines() if "," in row]
        states = [row[rows[0].index("status")].split()[0] for row in rows if row[1].startswith("node")]
        if states: print(states.count("UP"), flush=True)
"""


class Watch(threading.Thread):
    """Looks at the gateway and at all processes of the machine until told to stop; node processes are among them."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(daemon=True)
        self.scene, self.ended = scene, threading.Event()
        self.fewest, self.seen, self.counted = len(ALL), set(), False

    def run(self) -> None:
        # One process for the whole time: to start one for each look would take a core from what is watched.
        command = ["docker", "exec", "-i", self.scene.fleet.node("gateway1").container, "python3", "-c", COUNT]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as counting:
            while not self.ended.wait(0.5):
                shown = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=False).stdout
                self.seen |= {line for line in shown.splitlines() if re.search(CANARIES, line)}
            counts, _ = counting.communicate()
        self.fewest = min(self.fewest, *map(int, counts.split()))
        self.counted = counting.returncode == 0 and bool(counts)

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join(30)
        assert self.counted, "the gateway was not watched to the end"


@pytest.fixture
def load(scene, note):
    """Eight clients with streaming requests for the length of a test; every one of them must get its whole answer."""
    with scene.clients(8) as clients:
        clients.wait_for(16)
        yield clients
        clients.wait_for(16)
    note(clients.report)
    assert clients.report.clean, str(clients.report)


@pytest.fixture(autouse=True)
def edits(scene):
    """What a refused or failed release had in it is gone for the next test, also when the test itself fails."""
    kept = dict(scene.variables)
    yield
    if scene.bad:
        scene.variables, scene.bad = kept, False


def all_up(scene):
    return scene.gateway() == dict.fromkeys(ALL, "UP")


def test_run_again_changes_nothing(scene):
    run = scene.deploy("-vvv").ok()
    assert set(run.recap("changed").values()) == {0}, run.output
    assert "Nothing to do: node1, node2, node3 and node4 match the inventory" in run.text
    assert all_up(scene)
    # Every node is asked once: for all that it has, what would change, and a question to the model.
    asked = Counter(re.findall(r"Using module file \S*/(\w+)\.py", run.output))
    assert asked["node_probe"] == len(ALL), asked
    assert {run.recap(word)[host] for word, host in product(("ok", "skipped"), ALL[1:])} == {0, 1}, "no other task"
    assert not asked.keys() & {
        "preflight_host",
        "docker_engine",
        "vllm_image",
        "hf_snapshot",
        "vllm_server",
        "vllm_chat",
    }


#: Imported by the nodes' Python at each start: breaks the probe, and only the probe, where it comes to one of its parts.
BREAKS = """
import sys
class Break:
    def find_spec(self, name, path=None, target=None):
        run = getattr(sys.modules["__main__"].__spec__, "name", "")
        if name == "ansible.module_utils.vllm_fleet.{part}" and run.endswith("node_probe"):
            raise ImportError("made to break")
sys.meta_path.insert(0, Break())
"""


@pytest.mark.parametrize(
    ("part", "works", "says"),
    [
        # Each node's own task probes the image, and finds it.
        (
            "container.find_image",
            True,
            ["PLAY [Fetch the image]", "Nothing to do: node1, node2, node3 and node4 match"],
        ),
        # A plan probes in the same way, so it cannot ask either. Another server is planned with it: one that can speak.
        ("server.lifecycle", False, ["ImportError: made to break", "node2 could not be asked or would refuse"]),
    ],
)
def test_a_probe_that_breaks_on_a_node_is_no_answer(scene, part, works, says):
    before = scene.servers()
    module, hook = (f"/usr/lib/python3/dist-packages/made_to_break.{end}" for end in ("py", "pth"))
    write = f"echo import made_to_break >{hook}; cat >{module} <<'END'\n{BREAKS.replace('{part}', part)}\nEND"
    scene.fleet.exec("node2", ["sh", "-c", write])
    try:
        run = scene.deploy()
    finally:
        scene.fleet.exec("node2", ["rm", hook, module])
    assert (run.rc == 0) is works, run.output
    assert set(run.recap("changed").values()) == {0}, run.output
    assert [words for words in says if words not in run.text] == [], run.output
    assert scene.servers() == before


@pytest.mark.parametrize(
    ("playbook", "words"),
    [
        ("playbooks/preflight.yml", []),
        ("playbooks/status.yml", ["-e", "status_fail_on_drift=true"]),
        ("playbooks/verify.yml", []),
        ("deploy.yml", ["--check"]),
    ],
)
def test_what_only_looks_finds_nothing_on_a_copy_of_inventory_tensorwave(scene, playbook, words):
    """Its nodes are these, and of what it says of them stays what needs no GPU."""
    site = json.loads((scene.groups / "site.json").read_text()) | scene.variables
    kept = yaml.safe_load((ROOT / "inventory/tensorwave/group_vars/vllm/main.yml").read_text())
    assert site.pop("hf_cache_path") == kept["hf_cache_path"], "as it was deployed"
    before = scene.servers()
    user = {"ansible_user": "ops"}
    run = scene.deploy(*words, "-e", json.dumps(site | user), playbook=playbook, template="inventory/tensorwave").ok()
    assert set(run.recap("changed").values()) == {0}, run.output
    assert set(ALL) <= run.recap("changed").keys(), run.output
    assert scene.servers() == before


def test_an_edit_is_predicted_and_nothing_is_touched(scene):
    before, scene.bad = scene.servers(), True
    run = scene.deploy("--check", "--diff", vllm_server_args={"max-model-len": 600}).ok()
    assert {host: n for host, n in run.recap("changed").items() if n} == dict.fromkeys(ALL, 1), run.output
    assert run.output.count("max-model-len: 600") == 1, "told once for all that have it in common"
    assert "4 of 4 replicas, in 3 waves: node1 | node2 | node3 and node4" in run.text
    # By what the nodes measured at their start, and for programs.
    assert re.search(
        r"Wave 3, node3 and node4: about \d+ s \(.*load \d+ s.*\); 2 of 4 of acme/tiny serve meanwhile", run.text
    )
    file = scene.dir / "plan.json"
    words = ["--check", "-e", "plan_rollout=true", "-e", f"plan_file={file}"]
    scene.deploy(*words, playbook="playbooks/plan.yml").ok()
    found = json.loads(file.read_text())
    assert found["waves"] == [["node1"], ["node2"], ["node3", "node4"]]
    assert (found["estimate"]["unknown"], found["estimate"]["seconds"] > 0, found["irreversible"]) == (0, True, [])
    assert "add --check" in scene.deploy(*words[1:], playbook="playbooks/plan.yml").failed().text
    assert scene.servers() == before


def test_a_new_image_is_predicted_although_no_node_has_it_yet(scene):
    before, scene.bad = scene.servers(), True
    run = scene.deploy("--check", "--diff", vllm_image_tag="next").ok()
    assert "4 of 4 replicas, in 3 waves: node1 | node2 | node3 and node4" in run.text, run.output
    assert "node1, node2, node3 and node4 get the image first: what changes there is known then." in run.text
    assert "Check: 4 of 4 nodes would change." in run.text
    assert scene.servers() == before
    # Where nothing is staged, not even for show, it will be missing.
    run = scene.deploy("--check", "--tags", "rollout").failed()
    assert "is not on this node (image_missing)" in run.text, run.output


def gateway_whole(scene):
    """The gateway's files to the byte, and the process that serves."""
    script = "ls -l --time-style=full-iso /etc/haproxy; sha256sum /etc/haproxy/vllm-fleet*"
    files = scene.fleet.exec("gateway1", ["sh", "-c", script]).stdout
    about = scene.fleet.exec("gateway1", ["python3", "-c", ASK, "show info"]).stdout
    return files, [line for line in about.splitlines() if line.startswith("Pid:")]


@pytest.mark.parametrize(
    ("words", "edit", "says"),
    [
        (
            ["--tags", "rollout"],
            {"vllm_server_args": {"max-model-len": 600}, "vllm_server_port": 8100, "rollout_min_available": 4},
            "rollout_min_available is 4, but 4 of 4 replicas of acme/tiny serve",
        ),
        (
            ["--limit", "node3"],
            {"vllm_server_api_key": KEY[::-1]},
            "node3 would get another key, which gateway1 would not know: this run does not change that gateway. Run "
            "deploy.yml with both: --limit node3,gateway1",
        ),
        (
            ["--limit", "gateway1"],
            {"vllm_server_api_key": KEY[::-1], "gateway_keep_old": False},
            "gateway1 would send requests for acme/tiny to 0 of 4 servers that have them now, expected at least 1",
        ),
        (
            ["--limit", "node3"],
            {"vllm_server_args": {"served-model-name": "other"}},
            "gateway1 does not know node3 by the model other, and this run does not change that gateway. Run deploy.yml with "
            "both: --limit node3,gateway1. Nothing was touched.",
        ),
    ],
    ids=["too few", "key, gateway outside the limit", "key, at once", "gateway outside the limit"],
)
def test_what_cannot_work_is_refused_before_anything_is_touched(scene, load, words, edit, says):
    before, kept, scene.bad = scene.servers(), gateway_whole(scene), True
    run = scene.deploy(*words, **edit).failed()
    assert says in run.text, run.output
    assert scene.servers() == before
    assert gateway_whole(scene) == kept
    assert all_up(scene)


@pytest.mark.parametrize(
    ("group", "rc", "says"),
    [
        ("vllm", 4, "node9: connection: "),
        ("gateway", 2, "other cannot be asked ("),
    ],
)
def test_a_host_out_of_reach_ends_the_run_before_anything_is_touched(scene, load, tmp_path, group, rc, says):
    """Nothing but that is wrong, and there is something to do: a port that the gateway would have to know."""
    before, kept, scene.bad = scene.servers(), gateway_whole(scene), True
    name = {"vllm": "node9", "gateway": "other"}[group]
    # Nobody listens on the discard port.
    (tmp_path / "more.json").write_text(
        json.dumps({group: {"hosts": {name: {"ansible_host": "127.0.0.1", "ansible_port": 9}}}})
    )
    run = scene.deploy("-i", str(tmp_path / "more.json"), "-e", "ansible_ssh_retries=0", vllm_server_port=8100)
    assert run.rc == rc, run.output
    assert says in run.text, run.output
    assert "Nothing was touched." in run.text
    assert "nothing to change" not in run.text
    assert not any(run.recap("changed").values()), run.output
    # Preflight alone says it, too.
    more = ["-i", str(tmp_path / "more.json"), "-e", "ansible_ssh_retries=0"]
    look = scene.deploy(*more, playbook="playbooks/preflight.yml", vllm_server_port=8100)
    assert (look.rc, says in look.text) == (rc, True), look.output
    assert scene.servers() == before
    assert gateway_whole(scene) == kept
    assert all_up(scene)


def test_a_configuration_that_haproxy_refuses_never_replaces_the_old(scene):
    def config():
        return scene.fleet.exec("gateway1", ["sh", "-c", "ls /etc/haproxy; sha256sum /etc/haproxy/vllm-fleet*"]).stdout

    before, kept, scene.bad = scene.servers(), config(), True
    edit = {"vllm_server_args": {"max-model-len": 600}, "gateway_certificate": "/nowhere.pem"}
    # Keys lie in a file of their own, and belong to the configuration that was checked with them.
    edit |= {"vllm_server_api_key": KEY[::-1], "rollout_min_available": 0}
    run = scene.deploy("--tags", "rollout", **edit).failed()
    assert run.recap("failed")["gateway1"] == 1, run.output
    assert "4 nodes, none replaced: gateway1 failed. gateway1: " in run.text
    assert "/nowhere.pem" in run.text
    assert config() == kept
    assert scene.servers() == before
    assert all_up(scene)


def ports(config):
    """The servers' ports in the gateway's file."""
    return dict(re.findall(r"^ +server (\S+) \S+:(\d+)", config, re.MULTILINE))


def test_an_edit_rolls_in_waves_and_no_request_is_lost(scene, load, note):
    before = scene.servers()
    # What the canary's engine has compiled, and what is none of the others' business.
    cache = "/var/lib/vllm-fleet/engine-cache/*-acme--tiny"
    fill = f"cd {cache} && mkdir -p triton/k modules && echo compiled >triton/k/one.so && echo code >modules/two && ln -s /etc inductor"
    scene.fleet.exec("node1", ["sh", "-c", fill])
    with Watch(scene) as watch:
        # Of a new port no client knows: the gateway goes on with the old one until a server's turn has come.
        edit = {"vllm_server_args": {"max-model-len": 1024}, "vllm_server_port": 8100}
        run = scene.start("-vvv", **edit, gateway_maxconn=4000)
        run.until("Drain the server at every gateway")
        second = scene.deploy("--tags", "rollout")
        done = run.wait().ok()
    assert "Another run holds this fleet: " in second.failed().text
    assert re.search(rf"\(pid {run.process.pid}\) since 20\d\d-\d\d-\d\d [\d:]+ UTC, from /", second.text)

    assert "4 of 4 replicas, in 3 waves: node1 | node2 | node3 and node4" in done.text
    started = {node: scene.server(node)["State"]["StartedAt"] for node in ALL}
    assert started["node1"] < started["node2"] < min(started["node3"], started["node4"])
    assert not set(scene.servers().values()) & set(before.values())
    assert all("1024" in scene.server(node)["Config"]["Cmd"] for node in ALL)
    config = scene.fleet.exec("gateway1", ["cat", "/etc/haproxy/vllm-fleet.cfg"]).stdout
    assert "maxconn 4000" in config
    assert ports(config) == dict.fromkeys(ALL, "8100")
    assert watch.fewest >= 2, "a wave of two leaves two"
    assert all_up(scene)
    assert load.report.servers.keys() == set(ALL)
    came = {
        node: scene.fleet.exec(node, ["sh", "-c", f"cd {cache} && find . ! -type d && cat triton/k/*"]).stdout
        for node in ALL
    }
    assert {came.pop(node) for node in ALL[1:]} == {"./triton/k/one.so\ncompiled\n"}, came
    keys = "cat /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys | grep -c hf_cache"
    left = f"{keys}; ls -d /tmp/hf_cache.* /var/lib/vllm-fleet/engine-cache/*.arriving; true"
    assert {scene.fleet.exec(node, ["sh", "-c", left]).stdout for node in ALL} == {"0\n"}
    record = "cat $(ls /var/lib/vllm-fleet/vllm/releases/*.json | tail -n 1)"
    start = json.loads(scene.fleet.exec("node1", ["sh", "-c", record]).stdout)["start"]
    assert start["drain"] is not None, start
    report = json.loads(max(scene.reports.glob("*/report.json")).read_text())
    waves = report["estimate"]["waves"]
    assert [bool(wave["took"] and wave["seconds"]) for wave in waves] == [True] * 3, report["estimate"]
    assert {"stop", "rename", "start"} <= report["nodes"][0]["spent"].keys(), report["nodes"][0]
    note(next(line for line in done.output.splitlines() if line.startswith("Estimated")))
    note(f"never less than {watch.fewest} of 4 servers up")
    assert not watch.seen


def test_a_rollback_returns_to_the_release_before_and_no_request_is_lost(scene, load, note):
    # What the inventory says by now is none of its business.
    with Watch(scene) as watch:
        done = scene.deploy(playbook="playbooks/rollback.yml", vllm_server_args={"max-model-len": 2048}).ok()
    # The stories before made releases of their own.
    assert re.search(r"\b\d+ -> \d+: acme/tiny", done.text), done.text
    assert "4 rolled back" in done.text
    assert "4 of 4 replicas, in 3 waves: node1 | node2 | node3 and node4" in done.text
    assert all("512" in scene.server(node)["Config"]["Cmd"] for node in ALL)
    assert ports(scene.fleet.exec("gateway1", ["cat", "/etc/haproxy/vllm-fleet.cfg"]).stdout) == dict.fromkeys(
        ALL, "8000"
    )
    assert watch.fewest >= 2
    assert not watch.seen
    assert all_up(scene)
    assert load.report.servers.keys() == set(ALL)
    note(f"never less than {watch.fewest} of 4 servers up")
    del scene.variables["vllm_server_args"], scene.variables["vllm_server_port"]


def test_an_admission_that_never_came_is_made_up_for(scene):
    before = scene.servers()
    scene.fleet.exec("gateway1", ["python3", "-c", ASK, "set server acme_tiny/node3 state drain"])
    scene.until(lambda: scene.gateway()["node3"] == "DRAIN", "drained")
    run = scene.deploy("--tags", "rollout").ok()
    # What a rollback brought is what was described before.
    assert {host: n for host, n in run.recap("changed").items() if n} == {"node3": 1}, run.output
    assert scene.servers() == before
    assert all_up(scene)


def test_a_server_that_hangs_is_restarted_and_no_other_is_touched(scene):
    started = {node: scene.server(node)["State"]["StartedAt"] for node in ALL}
    before = scene.servers()
    scene.fleet.exec("node3", ["docker", "kill", "-s", "STOP", "vllm"])
    check = scene.deploy("--tags", "rollout", "--check", "-e", "vllm_server_verify_timeout=2").ok()
    assert "node3 is mended first, because it gave no answer" in check.text, check.output
    assert "Check: 1 of 4 nodes would change. node3: state" in check.text, check.output
    assert {node: scene.server(node)["State"]["StartedAt"] for node in ALL} == started
    run = scene.deploy("--tags", "rollout", "-e", "vllm_server_verify_timeout=2").ok()
    assert "node3 is mended first, because it gave no answer" in run.text, run.output
    assert "its engine did no step" in run.text
    assert [host for host, count in run.recap("changed").items() if count] == ["node3"], run.output
    assert "1 restarted, 3 unchanged" in run.text, run.output
    assert scene.servers() == before
    now = {node: scene.server(node)["State"]["StartedAt"] for node in ALL}
    assert [node for node in ALL if now[node] != started[node]] == ["node3"]
    assert all_up(scene)


@pytest.mark.parametrize(
    ("edit", "failure_class", "says"),
    [
        (
            {
                "vllm_server_env": {
                    "STANDIN_FAIL_TEXT": "vllm serve: error: argument --dtype: invalid choice: 'float31'"
                }
            },
            "bad_argument",
            "invalid choice: 'float31'",
        ),
        (
            {
                "vllm_server_env": {
                    "STANDIN_START_SECONDS": "0.5",
                    "STANDIN_TOKEN_DELAY": "0.02",
                    "STANDIN_NONSENSE": "1",
                }
            },
            "verification",
            "expected a match of /Paris/",
        ),
    ],
    ids=["does not start", "answers nonsense"],
)
def test_a_bad_release_ends_at_the_canary_which_serves_again(scene, load, note, edit, failure_class, says):
    before, scene.bad = scene.servers(), True
    with Watch(scene) as watch:
        run = scene.deploy("--tags", "rollout", **edit).failed()
    assert f"node1: {failure_class}: " in run.text, run.output
    assert says in run.text, run.output
    assert "not touched: node2, node3 and node4" in run.text, run.output
    assert "as rollout_max_failures is 0" in run.text
    assert run.recap("failed") == {"gateway1": 0, "node1": 1, "node2": 0, "node3": 0, "node4": 0}
    assert scene.servers() == before
    assert watch.fewest >= 3
    scene.until(lambda: all_up(scene), "all up")
    note(f"never less than {watch.fewest} of 4 servers up")
    table = scene.deploy("-e", "status_fail_on_drift=true", playbook="playbooks/status.yml").failed()
    (what,) = (f"{name.removeprefix('vllm_server_')}" for name in edit)
    for node in ALL:
        assert re.search(rf"{node} +\d+ +acme/tiny +\S+ +running +ready +\d+ +\d+ +off +{what}\.", table.output), (
            table.output
        )


def test_an_image_that_one_node_lacks_ends_the_run_before_anything_is_touched(scene, load):
    before, scene.bad = scene.servers(), True
    client = docker.from_env()
    with standin.using_images():
        other = standin.build_image(client, "openai")
        scene.fleet.load([other], ["node1", "node2", "node4"])
        edit = {"vllm_image_tag": other.partition(":")[2], "vllm_image_expected_id": client.images.get(other).id}
    with Watch(scene) as watch:
        run = scene.deploy(**edit).failed()
    # Preflight finds that the archive is not on the one node that needs it.
    assert run.recap("failed") == {"gateway1": 0, "node1": 0, "node2": 0, "node3": 1, "node4": 0}, run.output
    assert "node3: archive: expected a `docker save` file" in run.text, run.output
    assert "/nowhere.tar" in run.text
    assert scene.servers() == before
    assert watch.fewest == len(ALL)
    table = scene.deploy(playbook="playbooks/status.yml").ok()
    assert len(re.findall(r"^ *node\d .* running +ready ", table.output, re.M)) >= 3, table.output
    assert re.search(r"node3 .*image_missing: ", table.output), table.output


def backends(scene):
    """The pools of the gateway, each with its servers that are up."""
    table = scene.fleet.exec("gateway1", ["python3", "-c", ASK, "show stat"]).stdout.lstrip("# ")
    rows = [
        dict(zip(table.splitlines()[0].split(","), line.split(","), strict=False)) for line in table.splitlines()[1:]
    ]
    found = {}
    for row in rows:
        if row.get("svname", "").startswith("node"):
            found.setdefault(row["pxname"], set()).update({row["svname"]} if row["status"].startswith("UP") else set())
    return found


def test_keys_names_balance_and_port_change_over_killed_runs_and_a_node_without_power(scene, load, note):
    """Clients with the old key and name, and some with the new ones as soon as a server has them."""
    before = scene.servers()
    slow = {"STANDIN_START_SECONDS": "7", "STANDIN_TOKEN_DELAY": "0.02"}
    # Old clients go on with their name: it stays the second one.
    args = {"served-model-name": ["acme/next", "acme/tiny"]}
    new = {
        "vllm_server_api_key": NEXT,
        "vllm_server_args": args,
        "vllm_server_port": 8200,
        "gateway_balance": "leastconn",
    }
    run = scene.start(vllm_server_env=slow, **new)
    run.until(r"\[node1\] starting container")
    run.kill()
    assert backends(scene) == {"acme_tiny": {"node2", "node3", "node4"}, "acme_next": set()}

    # The run is gone, and so is its lock. It goes on with the canary; then a node and the controller die together.
    # A connection without an answer is given up after six seconds here, not sixty: nobody wants to wait for that.
    hasty = "-o ControlMaster=auto -o ControlPersist=120s -o ServerAliveInterval=2 -o ServerAliveCountMax=3"
    run = scene.start(ansible_ssh_args=hasty)
    del scene.variables["ansible_ssh_args"]
    run.until(r"\[node2\] starting container")
    assert backends(scene) == {"acme_tiny": {"node3", "node4"}, "acme_next": {"node1"}}
    with Load(scene.url, model="acme/next", api_key=NEXT, concurrency=4) as moved:
        moved.wait_for(8)
        scene.fleet.off("node2")
        run.until(r"\[node2\] the node cannot be reached")
        run.kill()
        scene.fleet.on("node2")
        assert "taking over" not in run.output

        # Of the fleet's own key the gateway forgets the old one with the last old server. So these clients move, too.
        run = scene.start()
        run.until(r"\[node3\] starting container")
        load.use(api_key=NEXT)
        done = run.wait().ok()
        moved.wait_for(8)
    note(f"new key and name: {moved.report}")
    assert moved.report.clean, str(moved.report)
    assert "3 of 4 replicas" in done.text, done.output
    assert all_up(scene)
    assert backends(scene) == {"acme_next": set(ALL)}
    assert not set(scene.servers().values()) & set(before.values())
    keys = scene.fleet.exec("gateway1", ["sh", "-c", f"grep -c -e '{KEY}' /etc/haproxy/vllm-fleet*; true"]).stdout
    assert set(re.findall(r":(\d+)", keys)) == {"0"}, "the old key is forgotten"
    again = scene.deploy().ok()
    assert set(again.recap("changed").values()) == {0}, again.output


def test_hooks_and_a_limit_while_ssh_is_cut(scene, load, tmp_path):
    before = scene.servers()
    hook = tmp_path / "hook.yml"
    line = "{{ inventory_hostname }} {{ rollout_outcome.state }}"
    task = {"name": "Note", "ansible.builtin.shell": f"echo '{line}' >>{tmp_path}/calls", "delegate_to": "localhost"}
    hook.write_text(json.dumps([{**task, "become": False}]))
    run = scene.start(
        "--limit",
        "node3",
        vllm_server_env={"STANDIN_START_SECONDS": "8", "STANDIN_TOKEN_DELAY": "0.02"},
        rollout_drain_tasks=str(hook),
        rollout_admit_tasks=str(hook),
    )
    run.until(r"\[node3\] starting container")
    with scene.fleet.cut("node3", 20):
        began = time.monotonic()
        while run.process.poll() is None and time.monotonic() < began + 20:
            time.sleep(0.2)
    done = run.wait().ok()
    assert "1 of 1 replica, in 1 wave: node3" in done.text
    assert (tmp_path / "calls").read_text().splitlines() == ["node3 draining", "node3 admitting"]
    scene.bad = True
    after = scene.servers()
    assert {node for node in ALL if after[node] != before[node]} == {"node3"}
    assert all_up(scene)


def test_a_server_that_an_administrator_keeps_out_is_replaced_and_stays_out(scene, load):
    before, scene.bad = scene.servers(), True
    # MAINT ends what is open.
    scene.fleet.exec("gateway1", ["python3", "-c", ASK, "set server acme_next/node4 state drain"])
    scene.until(lambda: scene.gateway("scur")["node4"] == "0", "node4 has nothing open")
    scene.fleet.exec("gateway1", ["python3", "-c", ASK, "set server acme_next/node4 state maint"])
    env = {"STANDIN_START_SECONDS": "0.6", "STANDIN_TOKEN_DELAY": "0.02"}
    run = scene.deploy("--limit", "node4", vllm_server_env=env).ok()
    assert "node4 is in state MAINT at gateway1, where it stays" in run.text, run.output
    assert scene.server("node4")["Id"] != before["node4"]
    assert scene.gateway()["node4"] == "MAINT"
    scene.fleet.exec("gateway1", ["python3", "-c", ASK, "set server acme_next/node4 state ready"])
    scene.until(lambda: all_up(scene), "all up")


def test_a_node_in_maintenance_and_one_that_does_not_answer_are_left_out(scene, load, note):
    """node4 is stopped, while SSH of node3 alone is gone: its server goes on. The next run takes both up."""
    scene.bad = True
    began = time.monotonic()
    stop = ["--limit", "node4", "-e", '{"maintenance_why": "new DIMM", "maintenance_by": "ada"}']
    scene.deploy(*stop, playbook="playbooks/stop.yml").ok()
    assert scene.server("node4")["State"]["Running"] is False
    scene.until(lambda: scene.gateway()["node4"] != "UP", "node4 is out")
    again = scene.deploy(*stop, playbook="playbooks/stop.yml").ok()
    assert set(again.recap("changed").values()) == {0}, again.output

    # Connections that are open would be used on.
    scene.fleet.exec("node3", ["sh", "-c", "systemctl stop ssh.socket ssh; pkill sshd; true"])
    before = scene.servers()
    quick = ["-e", "ansible_ssh_retries=0"]
    try:
        run = scene.deploy(*quick, rollout_unreachable="skip", rollout_min_available=2)
        assert run.rc == 4, run.output
        assert "Left out: node3, which does not answer; node4, in maintenance since " in run.text, run.output
        assert "by ada (new DIMM)." in run.text
        assert "node3: connection: nothing listens at" in run.text, run.output
        assert "It was left out (rollout_unreachable is skip): the next run takes it up." in run.text
        look = scene.deploy(*quick, "--check", playbook="playbooks/restart.yml")
        assert look.rc == 4, look.output
        assert "To replace: 2 of 2 replicas, in 2 waves: node1 | node2." in look.text, look.output
        assert "Left out: node3, which does not answer; node4, in maintenance since " in look.text
        health = health_of(scene)
        assert health["servers"]["node3"]["wrong"] == [
            f"nothing listens at {scene.fleet.node('node3').address}, port 22"
        ]
        assert health["servers"]["node4"]["state"] == "maintenance"
        assert health["servers"]["node1"]["gateways"] == {"gateway1": "UP"}
        assert (health["well"], health["servers"]["node1"]["wrong"]) == (False, [])
    finally:
        scene.fleet.exec("node3", ["systemctl", "start", "ssh"])
    assert {node for node, one in scene.servers().items() if one != before[node]} <= {"node1", "node2"}

    # Of node3 no note is to be removed: it is deployed as by any other run.
    scene.deploy("--limit", "node3,node4", playbook="playbooks/start.yml").ok()
    assert all_up(scene)
    assert health_of(scene)["well"]
    note(f"{time.monotonic() - began:.0f} s")


def health_of(scene):
    """What scripts/health says as JSON, its exit code checked."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    command = [str(ROOT / "scripts/health"), "--json", "-i", str(scene.dir / "inventory.yml")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["well"] else 1), done.stdout + done.stderr
    return found


def test_secrets_are_nowhere(scene):
    """After all that has gone well and badly: what the runs said and wrote, what the nodes have."""
    said = [path for path in (*scene.dir.glob("run*.log"), *scene.reports.rglob("*")) if path.is_file()]
    assert any("EXEC" in path.read_text() for path in said), "one run was as talkative as can be"
    assert not [path for path in said if re.search(CANARIES, path.read_text())]
    for node in [*ALL, "gateway1"]:
        found = scene.fleet.exec(
            node, ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", SEARCH]
        )
        assert found.stdout == "", node
        own = f"journalctl --no-pager | grep -E '{HIDDEN}'; grep -rIE '{HIDDEN}' /var/lib/vllm-fleet /var/log; true"
        assert scene.fleet.exec(node, ["sh", "-c", own]).stdout == "", node
    for node in ALL:
        assert scene.fleet.exec(node, ["sh", "-c", "ls /var/lib/vllm-fleet/vllm/releases"]).stdout
        for line in scene.fleet.exec(node, ["docker", "ps", "-a", "--format", "{{.Names}}"]).stdout.split():
            container = json.loads(scene.fleet.exec(node, ["docker", "inspect", line]).stdout)[0]
            environ = container["Config"].pop("Env") if line in ("vllm", "vllm.previous") else []
            assert not re.search(CANARIES, json.dumps(container))
            # What the engine itself must get.
            told = {entry.partition("=")[0] for entry in environ if re.search(CANARIES, entry)}
            assert told <= {"VLLM_API_KEY", "HF_TOKEN"}
            logs = scene.fleet.exec(node, ["docker", "logs", line])
            assert not re.search(CANARIES, logs.stdout + logs.stderr)


def test_a_server_that_is_torn_down_finishes_its_requests(scene, load):
    before = scene.servers()
    run = scene.deploy("--limit", "node4", "-e", "teardown_confirm=yes", playbook="playbooks/teardown.yml").ok()
    assert scene.fleet.exec("node4", ["docker", "ps", "-aq"]).stdout == ""
    assert {node: scene.server(node)["Id"] for node in ALL[:3]} == {node: before[node] for node in ALL[:3]}
    assert "gateway1 will send no more requests to node4, but go on naming them, as drained" in run.text
    assert "UP" not in scene.gateway()["node4"]
    assert {scene.gateway()[node] for node in ALL[:3]} == {"UP"}
