# SPDX-License-Identifier: Apache-2.0
"""The host part of preflight as a user runs it: the playbook on nodes of emulated GPUs, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import play
import pytest
from sysfs import trees

BASE_IMAGE = "vllm-fleet-base:bookworm"


def docker(*arguments: str) -> str:
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()


def preflight_hosts(folder: Path, *asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the module on this machine, once with each of the options, in one play; return the results."""
    tasks = [
        {
            "name": f"Look {number}",
            "preflight_host": {"accelerator": "cpu", "inventory": False, **options},
            "register": f"seen{number}",
            "ignore_errors": True,
        }
        for number, options in enumerate(asked)
    ]
    names = [str(task["register"]) for task in tasks]
    facts = play.run(folder, tasks, {}, "--check", facts=names).ok().facts
    assert not any(facts[name]["changed"] for name in names)
    return [facts[name] for name in names]


def preflight(
    inventory: dict[str, Any], folder: Path, *more: str, gateways: dict[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run scripts/preflight from somewhere else, as a user may."""
    path = folder / "inventory.yml"
    path.write_text(json.dumps({"vllm": inventory, "gateway": {"hosts": gateways or {}}}), encoding="utf-8")
    return subprocess.run(
        [str(play.ROOT / "scripts/preflight"), "-i", path.name, *more],
        cwd=folder,
        env=play.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


COMMON = {
    "ansible_python_interpreter": "/usr/bin/python3",
    "vllm_server_model": "acme/tiny",
    "vllm_server_name": f"preflight-{os.getpid()}",
    "vllm_image_name": "acme",
    "vllm_image_tag": "1",
    "vllm_image_source": "archive",  # nobody asks a registry
    "preflight_disk_image": 0,
    "preflight_clock": False,
    "vllm_server_port": 1,
}


def emulated(tree: trees.Tree) -> dict[str, str]:
    return {"preflight_sysfs_root": str(tree.sys), "preflight_proc_root": str(tree.proc)}


def test_every_node_is_seen_before_the_run_ends(tmp_path: Path) -> None:
    """Bad and good nodes, one out of reach, one with half an inventory: one table, one sentence for each, JSON."""
    hosts = {
        "bad1": {**emulated(trees.one_missing(tmp_path / "bad1")), "vllm_server_replica": "pair"},
        "bad2": {
            **emulated(trees.foreign_holder(tmp_path / "bad2")),
            "vllm_server_replica": "pair",
            "vllm_server_model": "acme/other",
        },
        # What a preset asks for counts, and of the GPUs that it uses: nobody holds memory of GPU 0 here.
        "good": {
            **emulated(trees.foreign_holder(tmp_path / "good")),
            "vllm_server_model": "openai/gpt-oss-120b",
            "vllm_server_args": {"tensor-parallel-size": 1},
            "preflight_disk_weights": 0,
            "preflight_idle_vram": 10**11,
        },
        "preset": {
            **emulated(trees.foreign_holder(tmp_path / "preset")),
            "vllm_server_model": "openai/gpt-oss-120b",
            "vllm_server_args": {"tensor-parallel-size": 8},
            "preflight_disk_weights": 0,
            "preflight_idle_vram": 10**11,
        },
        # The same machine as the next two, so it has a container and a port of its own.
        "cpu": {
            "vllm_server_accelerator": "cpu",
            "vllm_server_name": f"preflight-{os.getpid()}-b",
            "vllm_server_port": 2,
            "vllm_node": "here",
        },
        "unset": {
            "vllm_node": "here",
            "vllm_server_accelerator": "cpu",
            "vllm_server_model": "",
            "vllm_server_bind": "0.0.0.0",
            "vllm_server_api_key": "{{ vault_vllm_server_api_key }}",
            "vllm_server_args": {"gpu_memory_utilization": 1.5, "max-model-length": 4096},
            "vllm_image_tag": "v0.31.0",
            "vllm_server_shm_size": "lots",
            "vllm_server_restart_policy": "sometimes",
            "ansible_host": "10.0.0.9",
            "hf_cache_path": "/no/such/disk/hf",
        },
        # Without a key, on loopback; a gateway would open it.
        "open": {
            "vllm_node": "here",
            "vllm_server_accelerator": "cpu",
            "vllm_server_api_key": "",
            "vllm_server_name": f"preflight-{os.getpid()}-c",
            "vllm_server_port": 3,
        },
        "gone": {
            **{"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9},
            "preflight_findings": [
                {"level": "warning", "what": "rack", "expected": "a rack", "got": "none", "remedy": "set it"}
            ],
        },
    }
    answer = tmp_path / "findings.json"
    variables = {**COMMON, "ansible_connection": "local", "rollout_waves": ["100%", 1], "vllm_server_api_key": "s3cret"}
    # Preflight asks them, too. HAProxy may be installed later.
    here = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    gateways = {
        "gateway1": {**here, "gateway_bind": "127.0.0.1", "ansible_host": "10.0.0.9", "gateway_port": 1},
        # Asks its clients for keys of its own.
        "gateway1b": {**here, "gateway_keys": [{"name": "a", "key": "{{ vault_of_a }}"}], "vault_of_a": "k-of-a"},
        "gateway2": here,
    }
    words = ["-e", f"preflight_json={answer}", "--check"]
    done = preflight({"hosts": hosts, "vars": variables}, tmp_path, *words, gateways=gateways)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert done.stdout.count("WHAT TO DO") == 1
    assert re.search(r"^.*\bgood\b.* ok +GPU count ", done.stdout, re.MULTILINE)
    assert re.search(r"^gone +warning +rack ", done.stdout, re.MULTILINE)
    assert "8 servers on 6 nodes: 5 refused, 1 not seen, 2 fine" in done.stdout
    for sentence in (
        "bad1 and bad2: replica pair: expected one model on all its hosts, found bad1: acme/tiny; bad2: acme/other; give",
        "bad1: rollout_waves: expected waves that add up, found [100%, 1], where nothing is left after 100%; put 100% last",
        "bad1: GPU count: expected 8, found 7 usable, without 0000:a6:00.0; see",
        "bad2: foreign use: expected under 5.0 GB a GPU, found GPU 3 29.2 GB by pid 4711",
        "preset: GPU memory: expected room for gpu-memory-utilization 0.95, found up to 0.85 (176.9 GB of 206.1 GB free on",
        "unset: vllm_server_api_key: expected a secret, found 'vault_vllm_server_api_key' is undefined; define it in",
        "open: vllm_server_api_key: expected a key behind a gateway, found none, and gateway2 would publish the server on *;",
        "unset: vllm_server_model: expected an exact model id or an absolute path, found not set; set",
        "unset: gpu-memory-utilization: expected above 0 and at most 1, found 1.5;",
        "unset: vLLM flags: expected flags of vLLM v0.31.0, found max-model-length; write max-model-len for max-model",
        "unset: vllm_server_shm_size: expected a size such as 16g, found 'lots'; correct the variable",
        "unset: gateway_port: expected a port of its own, found 1 for gateway1, which is vllm_server_port of unset on the",
        "unset: cache: expected a folder, found /no/such/disk/hf is not there; mount the disk",
    ):
        # Once, at the end.
        assert said.count(sentence) == 1, sentence
        assert sentence in said.partition("FLEET ***")[2]
    assert "A deployment would be refused: 8 hosts, " in said and said.count("Nothing was touched.") == 1
    words = " ".join(said.split())
    assert (
        "gone: connection: " in words
        and "To go on without it, add --limit '!gone', or set rollout_unreachable: skip." in words
    )
    assert "s3cret" not in said
    assert "failed=0" in next(
        line for line in done.stdout.splitlines() if line.startswith("good ") and "failed=" in line
    )
    assert "changed=0    unreachable=1" in next(
        line for line in done.stdout.splitlines() if line.startswith("gone ") and "failed=" in line
    )
    found = json.loads(answer.read_text())
    levels = {
        node: {one["what"] for one in rows if one["level"] in ("refused", "unseen")} for node, rows in found.items()
    }
    assert levels == {
        "bad1": {"replica pair", "rollout_waves", "GPU count"},
        "bad2": {"replica pair", "foreign use"},
        "preset": {"GPU memory"},
        "good": set(),
        "cpu": set(),
        "unset": {
            "vLLM flags",
            "vllm_server_shm_size",
            "vllm_server_restart_policy",
            "gateway_port",
            "vllm_server_api_key",
            "vllm_server_model",
            "gpu-memory-utilization",
            "cache",
        },
        "open": {"vllm_server_api_key"},
        "gone": {"connection"},
    }
    assert "rack" in {one["what"] for one in found["gone"]}, "what others found is kept of a node that is out of reach"


def test_hosts_of_one_machine_are_refused_unless_they_say_so_and_each_has_its_own_container_and_port(
    tmp_path: Path,
) -> None:
    """They would replace each other's server for ever, and every run would end well."""
    name = COMMON["vllm_server_name"]
    hosts = {
        "node1": {},
        "node2": {"ansible_host": "another-address.example", "vllm_server_port": 2},
        "node3": {"vllm_server_name": f"{name}-c", "vllm_server_bind": "localhost"},
        "node4": {"vllm_server_name": f"{name}-d", "vllm_server_port": 4},
    }
    variables = {**COMMON, "ansible_connection": "local", "vllm_server_accelerator": "cpu", "vllm_node": "here"}
    done = preflight({"hosts": hosts, "vars": variables}, tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "4 servers on 1 node: 3 refused, 1 fine" in done.stdout
    own = "one machine: expected a container and a port of its own for each host, found"
    both = f"node1 and node2: {own} node1 and node2 are the same machine, with one vllm_server_name ({name}); take all"
    assert said.count(both) == 1
    assert said.rstrip().endswith("\nNothing was touched.")
    assert f"node3: {own} node1 and node3 are the same machine, with one vllm_server_port (1); give each" in said
    # Judged are those that this run is for.
    done = preflight({"hosts": hosts, "vars": variables}, tmp_path, "--limit", "node1,node4")
    assert done.returncode == 0
    accepted, typed = done.stdout.rstrip().splitlines()[-2:]
    assert accepted.startswith("A deployment would be accepted: 2 hosts, no refusal")
    assert typed == f"Next: ansible-playbook -i inventory.yml --limit node1,node4 {play.ROOT}/deploy.yml"
    # Hosts of one machine say that they are.
    done = preflight({"hosts": hosts, "vars": {**variables, "vllm_node": ""}}, tmp_path, "--limit", "node1,node4")
    assert done.returncode == 1
    assert "one vllm_node for all servers of a machine, found node1 and node4 are the same machine; give" in done.stdout


@pytest.mark.parametrize(
    ("hosts", "more", "code"),
    [
        ({"cpu": {"vllm_server_accelerator": "cpu"}}, (), 0),
        ({"cpu": {"vllm_server_accelerator": "cpu", "vllm_server_port": 0}}, (), 1),
        ({"cpu": {"vllm_server_accelerator": "cpu", "ansible_python_interpreter": "/no/python"}}, (), 2),
        ({"gone": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}}, (), 2),
        ({"cpu": {"vllm_server_accelerator": "cpu"}}, ("--no-such-option",), 2),
        ({"cpu": {"vllm_server_accelerator": "cpu"}}, ("--limit", "nobody"), 2),
    ],
)
def test_exit_code_says_fine_refused_or_could_not_tell(
    hosts: dict[str, Any], more: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    done = preflight({"hosts": hosts, "vars": {**COMMON, "ansible_connection": "local"}}, tmp_path, *more)
    assert done.returncode == code, done.stdout + done.stderr


def test_a_misspelt_variable_is_refused_wherever_it_was_set(tmp_path: Path) -> None:
    """Host, group, command line, gateway. A name of another prefix, a known one and one that is accepted pass."""
    fine = {"nginx_port": 1, "vault_hf_token": "x", "docker_engine_become": False, "rollout_owner": "me"}
    # Two hosts on one machine, so each has a server of its own.
    hosts = {
        "a": {"hf_cache_pth": "/x"},
        "b": {"vllm_server_name": COMMON["vllm_server_name"] + "-b", "vllm_server_port": 2},
    }
    variables = {**COMMON, **fine, "ansible_connection": "local", "vllm_server_accelerator": "cpu", "vllm_node": "here"}
    # What stands here is no gateway's: its role does not see it.
    variables |= {
        "vllm_server_modell": "acme/tiny",
        "preflight_accept": ["rollout_owner"],
        "gateway_paths": ["/tokenize"],
    }
    answer = tmp_path / "findings.json"
    words = ("-e", "rollout_min_availble=2", "-e", f"preflight_json={answer}")
    gateways = {
        "lb": {"gateway_prt": 80, "gateway_user": "x", "gateway_bind": "127.0.0.1", "haproxy_owner": "y"},
        # Of these a deployment would know when the weights are there.
        "lb2": {"gateway_bind": "127.0.0.1", "gateway_keys": [{"name": "a", "key": "k1k2k3", "models": ["acme/gone"]}]},
        "lb3": {"gateway_bind": "127.0.0.1", "gateway_keys": [{"name": "a", "key": "{{ vault_of_a }}"}]},
        "lb4": {"gateway_bind": "127.0.0.1", "gateway_balance": "random"},
    }
    done = preflight({"hosts": hosts, "vars": variables}, tmp_path, *words, gateways=gateways)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert (
        "vllm_server_modell: expected a variable of the role vllm_server, found none of this name; correct it to"
        in said
    )
    found = json.loads(answer.read_text())
    levels = {host: {one["what"] for one in found[host] if one["level"] == "refused"} for host in found}
    everywhere = {"vllm_server_modell", "rollout_min_availble"}
    assert levels == {
        "a": {
            *everywhere,
            "hf_cache_pth",
            "gateway_prt",
            "gateway_user",
            "gateway_paths",
            "gateway_balance",
            "lb2",
            "lb3",
        },
        "b": everywhere,
    }
    told = {one["what"]: one for one in found["a"]}
    assert "a may use acme/gone, which no host of group vllm serves" in told["lb2"]["got"]
    assert "'vault_of_a' is undefined" in told["lb3"]["got"]
    assert "k1k2k3" not in answer.read_text() + said
    [told] = [one for one in found["a"] if one["what"] == "gateway_prt"]
    assert (told["got"], told["remedy"].split(";")[0]) == (
        "none of this name, set for lb",
        "correct it to gateway_port",
    )
    assert [one["level"] for one in found["b"] if one["what"] == "rollout_owner"] == ["warning"]


#: Asks as sudo does, and takes no password.
SUDO = """#!/bin/sh
while [ "$1" != -p ]; do shift; done
printf '%s' "$2" >&2; read -r word; printf 'Sorry, try again.\\n%s' "$2" >&2; read -r word; exit 1
"""


def test_a_wrong_password_of_sudo_is_no_matter_of_the_network(tmp_path: Path) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text(SUDO)
    sudo.chmod(0o755)
    become = {"ansible_become_exe": str(sudo), "ansible_become_user": "nobody", "ansible_become_password": "wr0ng"}
    variables = {**COMMON, **become, "ansible_connection": "local", "vllm_server_accelerator": "cpu"}
    done = preflight({"hosts": {"cpu": {}}, "vars": variables}, tmp_path)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert (
        "found a password that sudo on the node does not accept; give the connecting user's own with --ask-become-pass"
        in said
    )
    assert "UNREACHABLE" not in said and "wr0ng" not in said


def test_role_is_quiet_when_all_is_well_and_refusals_can_be_accepted(tmp_path: Path) -> None:
    variables = {**COMMON, "ansible_connection": "local", **emulated(trees.one_missing(tmp_path / "node"))}
    cpu = play.run(tmp_path, [play.role("preflight")], {**variables, "vllm_server_accelerator": "cpu"}).ok()
    assert "msg:" not in cpu.output
    assert cpu.recap("changed") == 0
    accepted = play.run(tmp_path, [play.role("preflight")], {**variables, "preflight_accept": ["GPU count"]}).ok()
    assert "localhost  warning  GPU count" in accepted.output
    assert "GPU kind" not in accepted.output


def test_an_option_may_lean_on_the_kind_of_gpu(tmp_path: Path) -> None:
    """One look, and yet something that depends on what it finds: a variable is read when the kind is known."""
    tree = trees.mi325x(tmp_path / "node")
    variables = {**COMMON, **emulated(tree), "ansible_connection": "local", "wanted": "not {{ preflight_gpu_found }}"}
    look = {
        "name": "Look",
        "preflight_host": {
            "sysfs_root": str(tree.sys),
            "proc_root": str(tree.proc),
            "late": {"gpu_name": "wanted"},
            "inventory": False,
        },
        "register": "seen",
    }
    said = play.run(tmp_path, [look], variables, facts=["seen"]).ok().facts["seen"]
    assert [one["expected"] for one in said["findings"] if one["what"] == "GPU kind"] == ["not AMD Instinct MI325X"]


@pytest.mark.engine
def test_port_of_another_program_and_of_our_own_container(tmp_path: Path) -> None:
    """Docker's proxy holds a published port, whoever the container is."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        [taken] = preflight_hosts(tmp_path, {"port": port, "clock": False, "name": "preflight-nobody"})
    assert taken["worst"] == "refused"
    assert (
        f"port {port}: expected free, or our own server's, found taken by pid {os.getpid()} (" in taken["refusals"][0]
    )

    name = f"preflight-own-{os.getpid()}"
    docker("run", "-d", "--name", name, "-p", f"127.0.0.1:{port}:80", BASE_IMAGE, "sleep", "300")
    try:
        asked = [{"port": port, "clock": False, "name": one} for one in (name, "preflight-nobody")]
        ours, foreign = preflight_hosts(tmp_path, *asked)
    finally:
        docker("rm", "-f", name)
    assert [one["got"] for one in ours["findings"]] == [f"our server {name}"]
    assert "docker-proxy" in foreign["refusals"][0]


@pytest.mark.engine
def test_disk_counts_what_is_there_already(tmp_path: Path) -> None:
    """An image that the engine has needs no room, a cached blob is taken off; both on one disk are one sum."""
    root = docker("info", "--format", "{{.DockerRootDir}}")
    # On the engine's own disk, which may be another one than that of the tests' folders.
    with tempfile.TemporaryDirectory(dir=root) as cache:
        blobs = Path(cache, "hub/models--acme--tiny/blobs")
        blobs.mkdir(parents=True)
        (blobs / ("0" * 64)).write_bytes(bytes(4_000_000))
        common = {"clock": False, "cache": cache, "model": "acme/tiny", "disk_weights": 5_000_000}
        images = [{"image": one, "disk_image": 10**18, **common} for one in (BASE_IMAGE, "acme/absent:1")]
        settings = {"clock": False, "sysctls": {"kernel.ostype": "Linux", "kernel.nope": 1}}
        there, absent, sysctl = preflight_hosts(tmp_path, *images, settings)
    assert [one["expected"] for one in there["findings"] if one["what"].startswith("disk")] == ["1.0 MB free (weights)"]
    assert absent["worst"] == "refused"
    assert "or correct vllm_image_min_free_gib and preflight_disk_weights" in absent["refusals"][0]
    assert [one["level"] for one in sysctl["findings"]] == ["ok", "unknown"]


@pytest.mark.engine
def test_an_archive_is_looked_into_before_anything_is_sent(tmp_path: Path) -> None:
    """Where it lies, which tag it holds, what loading it takes, on the node and on the controller."""
    name = f"preflight-archive-{os.getpid()}"
    file, none, bad = (tmp_path / one for one in ("image.tar", "none.tar", "bad.tar"))
    bad.write_text("no archive")
    docker("build", "-q", "-t", f"{name}:1", "-f", str(dockerfile(tmp_path)), str(tmp_path))
    try:
        docker("save", "--output", str(file), f"{name}:1")
        identity = docker("image", "inspect", "--format", "{{.Id}}", f"{name}:1")
        [there] = about_archives(tmp_path, of(f"{name}:1", path=file))
        docker("tag", BASE_IMAGE, f"{name}:1")
        by_id = of(f"{name}:1", path="/nowhere.tar", expected_id=identity)
        other, known = about_archives(tmp_path, of(f"{name}:1", path=file), by_id)
        docker("tag", identity, f"{name}:1")
        more = {"path": "/nowhere.tar", "expected_id": identity, "location": "controller"}
        # The second as a deployment finds it, which gives it its tag and reads no archive.
        alike, untagged = about_archives(tmp_path, *(of(f"{name}:{tag}", disk_image=10**18, **more) for tag in (1, 2)))
    finally:
        docker("rmi", "--force", identity, f"{name}:1")
    assert of_got(there) == of_got(alike) == {"image": ("ok", "on the node", "")}
    got = other["image"]["got"]
    assert got == "to be loaded from the archive", "an image of the same name is not that of the archive"
    named = {"image": ("ok", "on the node by its id, and gets this name", "")}
    assert (of_got(known), of_got(untagged)) == (named, named)

    root, places = docker("info", "--format", "{{.DockerRootDir}}"), ("node", "controller")
    absent, *told, broken, tag1, tag2, disk1, disk2, given = about_archives(
        tmp_path,
        of(f"{name}:1", path=file),
        *(of(f"{name}:1", path=none, location=one) for one in places),
        of(f"{name}:1", path=bad),
        *(of(f"{name}:2", path=file, location=one) for one in places),
        *(of(f"{name}:1", path=file, location=one, cache=f"{root}/cache") for one in places),
        of(f"{name}:1", disk_image=10**18, path=file),
    )
    assert of_got(absent)["image"] == ("ok", "to be loaded from the archive", "")
    for gone, place in zip(told, ("this node", "the controller"), strict=True):
        assert of_got(gone)["archive"][:2] == ("refused", f"{none} is not on {place}")
    assert "cannot be read" in broken["archive"]["got"]
    for one in (tag1, tag2):
        level, got, remedy = of_got(one)["archive"]
        assert (level, got) == ("refused", f"one with {name}:1")
        assert remedy.startswith(f"set vllm_image_name: {name} and vllm_image_tag: 1, or ")

    # What it takes is what it is made of: 30 MB as a file and unpacked, and the file that is sent.
    size = file.stat().st_size
    assert 30_000_000 < size < 31_000_000
    for one, whole in ((disk1, 2 * size), (disk2, 3 * size)):
        disk = one[f"disk of {root}"]
        free = float(re.sub(r" MB free.*", "", disk["expected"]))
        assert whole < free * 1e6 < 1.2 * whole, disk
    refused = given[f"disk of {root}"]
    assert refused["level"] == "refused" and "vllm_image_min_free_gib" in refused["remedy"]


def dockerfile(folder: Path) -> Path:
    (folder / "content").write_bytes(os.urandom(30_000_000))
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY content /content\n")
    return folder / "Dockerfile"


def of(image: str, *, disk_image: int = 0, **archive: Any) -> dict[str, Any]:
    """Options about an image that comes from an archive."""
    asked = {name: str(value) for name, value in archive.items()}
    return {"image": image, "image_source": "archive", "archive": asked, "disk_image": disk_image, "clock": False}


def about_archives(folder: Path, *asked: dict[str, Any]) -> list[dict[str, dict[str, str]]]:
    """Of each of these the findings, by what they are about."""
    return [{one["what"]: one for one in answer["findings"]} for answer in preflight_hosts(folder, *asked)]


def of_got(found: dict[str, dict[str, str]]) -> dict[str, tuple[str, str, str]]:
    """Level, what was found and remedy."""
    return {what: (one["level"], one["got"], one["remedy"]) for what, one in found.items()}


def test_a_controller_without_rsync_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for one in [*Path("/usr/bin").iterdir(), *Path("/bin").iterdir(), *Path("/usr/sbin").iterdir()]:
        if one.name != "rsync" and not (programs / one.name).exists():
            (programs / one.name).symlink_to(one)
    local = {**COMMON, "ansible_connection": "local", "vllm_server_accelerator": "cpu"}
    os.environ["PATH"], path = f"{Path(sys.executable).parent}:{programs}", os.environ["PATH"]
    try:
        # To itself the controller sends an archive by it, and weights by other means.
        sent = {
            "vllm_image_source": "archive",
            "vllm_image_archive_location": "controller",
            "vllm_image_archive": "/x.tar",
        }
        done = preflight({"hosts": {"cpu": {}}, "vars": {**local, **sent, "hf_cache_source": "controller"}}, tmp_path)
    finally:
        os.environ["PATH"] = path
    said = " ".join((done.stdout + done.stderr).split())
    wanted = r"cpu (warning|refused) controller rsync, to send the image's archive none install it: `sudo apt-get install rsync`"
    assert re.search(wanted, said), said
