# SPDX-License-Identifier: Apache-2.0
"""playbooks/burnin.yml on nodes of emulated GPUs, with programs that print what a file says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import play
from sysfs import trees
from test_rocm_info import snapshot


def program(path: Path, output: str, rc: int = 0) -> Path:
    """Write a program that notes its arguments and prints ``output``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho \"$@\" >>{path}.called\ncat <<'END'\n{output}\nEND\nexit {rc}\n")
    path.chmod(0o755)
    return path


def row(busbw: float) -> str:
    return f"8589934592 2147483648 float sum -1 44000 195.2 341.6 0 43900 195.7 {busbw} 0"


def test_figures_skips_and_refusals(tmp_path: Path) -> None:
    """One node slow, one without programs, one on which somebody computes: it is told of each, and nothing runs there."""
    rvs = program(tmp_path / "slow/opt/bin/rvs", "\n".join(f"[RESULT] gst {n} met: TRUE pass: TRUE" for n in range(8)))
    (tmp_path / "slow/opt/share/rocm-validation-suite").mkdir(parents=True)
    halved = program(tmp_path / "slow/halved/bin/rvs", "no configurations here")
    reduce = program(tmp_path / "slow/opt/all_reduce_perf", row(250.0))
    bench = program(
        tmp_path / "slow/opt/TransferBench", "Average   bandwidth (GPU Timed):   46.552 GB/s\nAggregate bandwidth"
    )
    spared = program(tmp_path / "busy/opt/all_reduce_perf", row(310.0))
    busy = trees.foreign_holder(tmp_path / "busy/tree")
    hosts = {
        "slow": {
            "burnin_sysfs_root": str(trees.mi300x(tmp_path / "slow/tree").sys),
            "burnin_rvs_prefixes": [str(tmp_path / "slow/halved"), str(tmp_path / "slow/opt")],
            "burnin_all_reduce_perf": [str(tmp_path / "slow/none"), str(reduce)],
            "burnin_transfer_bench": [str(bench)],
        },
        "bare": {
            "burnin_sysfs_root": str(trees.mi300x(tmp_path / "bare/tree").sys),
            "burnin_rvs_prefixes": [str(tmp_path / "bare")],
            "burnin_all_reduce_perf": [str(tmp_path / "bare/none")],
        },
        "busy": {"burnin_sysfs_root": str(busy.sys), "burnin_all_reduce_perf": [str(spared)]},
    }
    common = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "burnin_log_dir": str(tmp_path / "logs/{{ inventory_hostname }}"),
        "burnin_json": str(tmp_path / "results.json"),
    }
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(json.dumps({"vllm": {"hosts": hosts, "vars": common}}))
    before = snapshot(busy.root)
    (tmp_path / "logs").mkdir()
    done = subprocess.run(
        [play.PLAYBOOK, "-i", str(inventory), "playbooks/burnin.yml"],
        cwd=play.ROOT,
        env={**play.environment(), "HOME": str(tmp_path / "home"), "VLLM_FLEET_REPORTS": str(tmp_path / "reports")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert "slow: all_reduce_perf: expected busbw 304 GB/s or more, found busbw 250.0 GB/s; check the links" in said
    assert "busy: a burn-in needs idle GPUs, and they are used by pid 4711 (" in said
    assert "); stop that first. Nothing was started." in said
    assert "bare  unknown  gst " in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    levels = {node: [one["level"] for one in rows] for node, rows in results.items()}
    assert levels == {"slow": ["ok", "ok", "ok", "refused"], "bare": ["unknown"] * 4}
    (page,) = (tmp_path / "reports").glob("*/index.html")
    assert f"Report: {page}" in done.stdout
    assert "3 nodes: 1 burned in, 1 failed, 1 refused" in page.read_text()
    for row_of in ("slow", "all_reduce_perf", "busbw 250.0 GB/s", "busbw 304 GB/s or more", "bare"):
        assert f">{row_of}<" in page.read_text()
    report = json.loads(page.with_name("report.json").read_text())
    assert [(node["name"], len(node["burn_in"])) for node in report["nodes"]] == [("bare", 4), ("busy", 0), ("slow", 4)]
    conf = tmp_path / "slow/opt/share/rocm-validation-suite/conf/MI300X"
    assert Path(f"{rvs}.called").read_text().splitlines() == [
        f"-c {conf}/gst_single.conf",
        f"-c {conf}/iet_single.conf",
    ]
    assert not Path(f"{halved}.called").exists()
    assert Path(f"{bench}.called").read_text() == "a2a\n"
    assert Path(f"{reduce}.called").read_text() == "-b 8 -e 8G -f 2 -g 8\n"
    assert not Path(f"{spared}.called").exists()
    assert not (tmp_path / "logs/busy").exists()
    assert snapshot(busy.root) == before
