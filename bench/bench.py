# SPDX-License-Identifier: Apache-2.0
"""Measurements, side by side in one run: what nothing to change costs, and how quickly a verdict comes.

Prints a table and writes bench/results/bench.json. Figures of one machine compare only with figures of the same run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import distribution
import fleet_noop
import gateway
import gateway_real
import module_time
import replica_death
import watch_latency

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Measure, show, keep."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    results = {"module_time": module_time.run(runs), "watch_latency": watch_latency.run(runs)}
    fleet = results["fleet"] = fleet_noop.run(max(3, runs // 4))
    deaths = results["replica_death"] = replica_death.run(max(3, runs // 4))
    balance = results["gateway"] = {"four stand-ins": gateway.run()}
    try:
        balance["two real engines (CPU)"] = gateway_real.run()
    except SystemExit as left_out:
        print(f"gateway_balance with real engines is left out: {left_out}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench.json").write_text(json.dumps(results, indent=2) + "\n")
    cost = results["module_time"]
    print(f"Nothing to change, the module's own time on the node, {runs} runs (s)")
    for name, median in cost["median"].items():
        worst = cost["worst"].get(name)
        print(f"  {name:<24} median {median:6.3f}" + (f"   worst {worst:6.3f}" if worst else ""))
    print(f"  vllm_server takes {cost['ratio']:.2f} of what docker_container and uri take together")
    print(f"Verdicts, {runs} runs (s)")
    for name, row in results["watch_latency"].items():
        print(f"  {name:<56} median {row['median']:6.3f}   worst {row['worst']:6.3f}")
    print(f"Nothing to change, the whole of deploy.yml on {fleet['nodes']} nodes over SSH, {fleet['runs']} runs (s)")
    for name, median in fleet["median"].items():
        print(f"  {name:<24} median {median:6.2f}")
    print(f"  deploy.yml takes {fleet['ratio']:.2f} of what the do-it-yourself playbook takes")
    besides = max(fleet["downtime_besides_start"], default=0.0)
    longest = max(fleet["downtime"])
    print(f"A changed argument: nodes were down for {longest:.2f} s at most, {besides:.2f} s besides the start")
    print("A worker of a server over two nodes dies while it starts (s)")
    for name, row in deaths.items():
        print(f"  {name:<56} median {row['median']:6.3f}   worst {row['worst']:6.3f}")
    for name, rows in balance.items():
        print(f"gateway_balance in front of {name}, and as ratios to leastconn")
        gateway.show(rows)
    print("Weights from one node to all others")
    try:
        distribution.main([])
    except SystemExit as left_out:  # root and programs that a controller need not have
        print(f"  left out: {left_out}")
    print(f"as JSON: {RESULTS / 'bench.json'}")


if __name__ == "__main__":
    main()
