# SPDX-License-Identifier: Apache-2.0
"""rocm_info as Ansible runs it: real module transfer, real /proc, a real container, an amd-smi that answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sysfs import trees

ROOT = Path(__file__).resolve().parents[2]
BASE_IMAGE = "vllm-fleet-base:bookworm"


def rocm_info(*flags, **options):
    """Run the module on this machine through `ansible` and return its result (with `failed` when it failed)."""
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible"),
            *("localhost", "-i", "localhost,", "-c", "local", "-m", "rocm_info"),
            *(("-a", json.dumps(options)) if options else ()),
            *("-e", "ansible_python_interpreter=/usr/bin/python3", *flags),
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    verdict, _, answer = done.stdout.partition("=>")
    assert answer, done.stdout + done.stderr
    return json.loads(answer) | {"failed": "FAILED" in verdict}


def roots(tree, **options):
    return {
        "sysfs_root": str(tree.sys),
        "proc_root": str(tree.proc),
        "modules_root": str(tree.modules),
        "docker_root": str(tree.docker),
        **options,
    }


def snapshot(root):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in root.rglob("*")}


def test_foreign_holder_and_allowed_driver(tmp_path):
    tree = trees.foreign_holder(tmp_path)
    before = snapshot(tmp_path)
    result = rocm_info("--check", **roots(tree, allowed_driver_versions=["30.30"]))
    assert not result["failed"]
    assert result["changed"] is False
    assert len(result["gpus"]) == 8
    # What users may rely on; more keys may come.
    assert {"index", "name", "gfx", "pci", "vram_total", "vram_used", "vram_free", "partition", "holders"} <= set(
        result["gpus"][0]
    )
    assert {"pid", "command", "container", "bytes"} <= set(result["gpus"][3]["holders"][0])
    assert result["gpus"][3]["holders"][0]["container_name"] == "trainer"
    assert result["safe_gpu_memory_utilization"] == 0.85
    assert "27.22 GiB are taken by pid 4711" in result["memory"]["sentence"]
    assert "s3cret" not in json.dumps(result)
    assert (result["driver"]["release"], result["driver"]["allowed"]) == ("30.30", True)
    assert (result["kernel"]["missing"], result["os"]["id"]) == ([], "debian")
    assert result["gpus"][0]["ecc"] is None
    assert snapshot(tmp_path) == before


def test_own_container_gives_its_memory_back(tmp_path):
    tree = trees.foreign_holder(tmp_path)
    result = rocm_info(**roots(tree, own_container="trainer"))
    assert result["safe_gpu_memory_utilization"] == 0.92
    assert result["memory"]["highest"] == 0.99


def amd_smi(folder, answers, exit_code=0):
    """Write a program that answers as amd-smi does, by its first argument."""
    folder.mkdir()
    for name, rows in answers.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    program = folder / "amd-smi"
    program.write_text(f'#!/bin/sh\ncat "{folder}/$1.json"\nexit {exit_code}\n')
    program.chmod(0o755)
    return str(program)


def test_ecc_and_bad_pages_from_amd_smi(tmp_path):
    """ROCm 7's mixture: `list` and `bad-pages` bare, `metric` wrapped; amd-smi's order is not KFD's."""
    tree = trees.mi300x(tmp_path / "node")
    kfd = dict(enumerate(reversed(tree.kfd_ids)))
    program = amd_smi(
        tmp_path / "bin",
        {
            "list": [{"gpu": number, "bdf": "N/A", "kfd_id": kfd[number]} for number in range(8)],
            "metric": {
                "gpu_data": [
                    {"gpu": number, "ecc": {"total_uncorrectable_count": 2 if number == 7 else 0}}
                    for number in range(8)
                ]
            },
            "bad-pages": [
                {"gpu": number, "retired": "No bad pages found.", "pending": "N/A", "un_res": "No bad pages found."}
                for number in range(7)
            ],
        },
    )
    gpus = rocm_info(**roots(tree, amd_smi=program))["gpus"]
    assert gpus[0]["ecc"] == {"correctable": None, "uncorrectable": 2, "deferred": None}
    assert gpus[0]["bad_pages"] is None
    assert [one["ecc"]["uncorrectable"] for one in gpus[1:]] == [0] * 7
    assert gpus[1]["bad_pages"] == {"retired": 0, "pending": None, "unreservable": 0}


def test_amd_smi_that_fails_is_a_note(tmp_path):
    tree = trees.mi300x(tmp_path / "node")
    program = tmp_path / "amd-smi"
    program.write_text("#!/bin/sh\necho 'ERROR: driver not initialized' >&2\nexit 34\n")
    program.chmod(0o755)
    result = rocm_info(**roots(tree, amd_smi=str(program)))
    assert not result["failed"]
    assert result["notes"] == [
        "ECC errors and bad pages are not known: `amd-smi list` ended with 34: ERROR: driver not initialized"
    ]


@pytest.mark.parametrize(
    ("fails", "word", "kept"), [("metric", "ECC errors are", "bad_pages"), ("bad-pages", "bad pages are", "ecc")]
)
def test_what_amd_smi_told_before_it_failed_is_kept(tmp_path, fails, word, kept):
    tree = trees.mi300x(tmp_path / "node")
    rows = {
        "list": [{"gpu": 0, "bdf": "N/A", "kfd_id": tree.kfd_ids[0]}],
        "metric": [{"gpu": 0, "ecc": {"total_uncorrectable_count": 2}}],
        "bad-pages": [{"gpu": 0, "retired": "No bad pages found."}],
    }
    program = amd_smi(tmp_path / "bin", rows)
    (tmp_path / "bin" / f"{fails}.json").unlink()
    result = rocm_info(**roots(tree, amd_smi=program))
    first = result["gpus"][0]
    assert [name for name in ("ecc", "bad_pages") if first[name]] == [kept]
    assert [note for note in result["notes"] if note.startswith(f"{word} not known: ")] == result["notes"]


def test_machine_without_gpu_and_a_wrong_root(tmp_path):
    result = rocm_info()
    assert (result["gpus"], result["safe_gpu_memory_utilization"]) == ([], None)
    assert (result["driver"]["loaded"], result["driver"]["allowed"]) == (False, False)
    assert result["kernel"]["release"] == os.uname().release
    wrong = rocm_info(sysfs_root=str(tmp_path / "none"))
    assert wrong["failed"]
    assert wrong["msg"] == f"sysfs_root is {tmp_path / 'none'}; a directory is expected there. Nothing was read."


@pytest.mark.engine
def test_holder_in_a_real_container(tmp_path):
    """A process of a real container, found by the real /proc and named by the engine's own files."""

    def docker(*arguments):
        return subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, check=True, timeout=120
        ).stdout.strip()

    name = f"rocm-info-{os.getpid()}"
    container = docker("run", "-d", "--name", name, BASE_IMAGE, "sleep", "300")
    try:
        pid = int(docker("inspect", "-f", "{{.State.Pid}}", container))
        tree = trees.mi300x(tmp_path)
        tree.hold(0, pid, 20 << 30)
        result = rocm_info(sysfs_root=str(tree.sys))
    finally:
        docker("rm", "-f", container)
    assert result["gpus"][0]["holders"] == [
        {"pid": pid, "command": "sleep 300", "container": container, "container_name": name, "bytes": 20 << 30}
    ]
