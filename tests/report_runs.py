# SPDX-License-Identifier: Apache-2.0
"""Runs as the callback would have collected them, of any size, for tests of the report: real shapes, made-up times."""

from __future__ import annotations

from typing import Any

# As vllm_server returned it for a stand-in that was replaced, with a large model's times.
STAGES = [
    {"stage": "starting", "at": 0.0},
    {"stage": "configuring", "at": 11.2},
    {"stage": "loading weights", "at": 24.9},
    {"stage": "compiling", "at": 171.0},
    {"stage": "capturing graphs", "at": 214.5},
    {"stage": "ready", "at": 236.4},
]
FAILURE = {
    "class": "kv_cache_too_small",
    "cause": "No room for one request of 131072 tokens: 61.0 GiB of KV cache are needed, 43.7 GiB are there",
    "evidence": [
        "ValueError: To serve at least one request with the models's max seq len (131072), (61.00 GiB KV cache is needed,"
        " which is larger than the available KV cache memory (43.71 GiB).",
    ],
    "remedy": "Lower max-model-len to 93888 or less (vllm_server_args)",
    "exit_code": 1,
}
TEXT = "The stars above, a silent choir,\nThey burn with slow and steady fire."


def summary(number: int, ttft: float, rate: float) -> dict[str, Any]:
    return {
        "release": number,
        "when": "2026-11-24T05:42:45Z",
        "run": "20261124T054240Z-d4c0",
        "image": "vllm/vllm-openai-rocm:v0.32.0",
        "model": "deepseek-ai/DeepSeek-V3.1",
        "commit": "9" * 40,
        "downtime": 241.0,
        "ready": 229.0,
        "ttft": ttft,
        "tokens_per_second": rate,
        "restores": None,
        "rolled_back_from": None,
    }


class Run:
    """Collects events of the tasks of a deployment."""

    def __init__(self, nodes: int, *, failing: tuple[str, ...] = (), unreachable: tuple[str, ...] = ()) -> None:
        self.names = [f"node{n}" for n in range(1, nodes + 1)]
        self.failing, self.unreachable = failing, unreachable
        self.events: list[dict[str, Any]] = []
        self.at = 0.0

    def play(self, *roles: str) -> None:
        self.events.append({"type": "play", "hosts": self.names, "roles": list(roles)})

    def task(
        self, name: str, role: str, action: str, hosts: dict[str, tuple[float, str, dict[str, Any]]], **more: Any
    ) -> None:
        """``hosts``: seconds, status and data for each; ``more``: state, changed."""
        ident = f"t{len(self.events)}"
        made = {"task": ident, "name": name, "role": role, "file": more.pop("file", "main"), "action": action}
        self.events.append({"type": "task", "at": self.at, **made})
        changed = more.pop("changed", False)
        ends = []
        for host, (seconds, status, data) in hosts.items():
            self.events.append({"type": "start", "task": ident, "host": host, "at": self.at})
            result = {"type": "result", "task": ident, "host": host, "at": self.at + seconds, "status": status}
            ends.append({**result, "changed": changed, "ignored": False, "state": None, "data": data, **more})
        self.events += sorted(ends, key=lambda e: e["at"])
        self.at = max((e["at"] for e in ends), default=self.at)

    def deploy(self) -> Run:
        """Stage everywhere, then roll in waves of one, a quarter, the rest."""
        self.play("preflight", "docker_engine", "rocm", "vllm_image", "hf_cache")
        up = [n for n in self.names if n not in self.unreachable]
        self.task("Look at the node", "preflight", "preflight_host", {
            n: (2.0, "ok", {}) if n in up else (10.0, "unreachable", {"msg": "Connection timed out"}) for n in self.names
        })  # fmt: skip
        self.task(
            "Copy the weights", "hf_cache", "hf_snapshot", {n: (180 + 3.7 * k % 60, "ok", {}) for k, n in enumerate(up)}
        )
        left = list(up)
        for size in (1, max(1, len(up) // 4), len(up)):
            wave, left = left[:size], left[size:]
            if wave and not self.wave(wave):
                break
        return self

    def wave(self, names: list[str]) -> bool:
        self.play("vllm_server")
        self.task(
            "Take it out", "gateway", "community.general.haproxy", {n: (0.5, "ok", {}) for n in names}, file="drain"
        )
        self.task(
            "Wait", "gateway", "vllm_drained", {n: (4 + k % 7, "ok", {"drained": True}) for k, n in enumerate(names)}
        )
        started = {}
        for k, n in enumerate(names):
            longer = (k * 5.3) % 23
            ready = round(236.4 + longer, 1)
            data = {
                "actions": ["create", "stop", "keep", "rename", "start"],
                "differences": [{"name": "args.max-model-len", "current": 65536, "desired": 131072}],
                "downtime": round(ready + 5.3, 1),
                "elapsed": round(ready + 7, 1),
                "stages": [*STAGES[:-1], {"stage": "ready", "at": ready}],
                "release": None,
            }
            if n in self.failing:
                data |= {"failure": FAILURE, "rolled_back": True, "msg": "it failed", "release": summary(6, 0.2, 50),
                         "downtime": 402.0, "stages": STAGES[:4], "log_file": "/var/lib/vllm-fleet/vllm/logs/x.log"}  # fmt: skip
                started[n] = (410.0, "failed", data)
            else:
                started[n] = (ready + 8, "ok", data)
        self.task("Run the server", "vllm_server", "vllm_server", started, state="started", changed=True)
        good = [n for n in names if n not in self.failing]
        answers = {
            n: [
                {
                    "name": "capital",
                    "api": "chat",
                    "content": "Paris.",
                    "ttft": 0.11 + k % 5 / 100,
                    "tokens_per_second": 51.0 + k % 4,
                },
                {"name": "poem", "api": "chat", "content": TEXT, "ttft": 0.12, "tokens_per_second": 53.1},
            ]
            for k, n in enumerate(good)
        }
        self.task("Verify", "vllm_server", "vllm_chat", {n: (3.0, "ok", {"results": answers[n]}) for n in good})
        kept = {"release": summary(7, 0.11, 51.0), "previous_release": summary(6, 0.14, 48.2)}
        self.task("Record", "vllm_server", "vllm_server", dict.fromkeys(good, (0.6, "ok", kept)), state="confirmed")
        self.task(
            "Put it behind the gateway", "gateway", "community.general.haproxy", {n: (1.5, "ok", {}) for n in good},
            file="admit",
        )  # fmt: skip
        landed = {n: (0.4, "ok", {"results": [{"name": "through gateway1", "api": "chat", "ttft": 0.2}]}) for n in good}
        self.task("Send a request through it", "gateway", "vllm_chat", landed, file="verify_routing")
        return len(good) == len(names)

    def described(self, **more: Any) -> dict[str, Any]:
        return {
            "id": "20261124T054250Z-c51e",
            "when": "2026-11-24 05:42 UTC",
            "began": "2026-11-24T05:42:50Z",
            "elapsed": self.at + 1,
            "playbook": "deploy.yml",
            "inventory": ["inventory/tensorwave"],
            "limit": None,
            "tags": [],
            "check_mode": False,
            "by": "ops@controller",
            "configuration": {"project": {"revision": "1" * 40, "dirty": True}, "inventory": None},
            "failed": [
                n for n in self.failing if any(e.get("host") == n and e.get("status") == "failed" for e in self.events)
            ],
            "unreachable": list(self.unreachable),
            "benchmarks": {},
            **more,
        }


BENCHMARK = {
    "completed": 200,
    "failed": 0,
    "duration": 41.2,
    "request_throughput": 4.85,
    "output_throughput": 620.9,
    "total_token_throughput": 5588.0,
    "mean_ttft_ms": 212.4,
    "p99_ttft_ms": 890.1,
    "mean_tpot_ms": 19.8,
    "p99_tpot_ms": 31.0,
    "command": "vllm bench serve --dataset-name random --num-prompts 200",
}
