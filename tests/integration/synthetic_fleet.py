# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus that watches a fleet which is not there: one page says what its machines would."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible.module_utils.vllm_fleet.monitoring.page import Page

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "roles/monitoring/files"
STATES = ("serving", "starting", "silent", "stopped", "absent")
HISTOGRAMS = {
    "time_to_first_token_seconds": (0.1, 0.5, 2),
    "inter_token_latency_seconds": (0.01, 0.05, 0.2),
    "e2e_request_latency_seconds": (1, 5, 30),
    "request_queue_time_seconds": (0.1, 1, 10),
    "request_prompt_tokens": (100, 1000, 10000),
    "request_generation_tokens": (100, 1000, 10000),
}


def page(nodes: int, elapsed: float, now: float, *, trouble: bool = False) -> str:
    """What ``nodes`` nodes with eight GPUs and a gateway say after ``elapsed`` seconds; with ``trouble`` some are sick."""
    out = Page()
    for number in range(1, nodes + 1):
        _node(out, number, elapsed, now, trouble=trouble)
    gateway = {"node": "gateway1"}
    out.add("vllm_fleet_gateway_up", 1, gateway)
    out.add("vllm_fleet_certificate_expiry_timestamp_seconds", now + 90 * 86400, {**gateway, "certificate": "gateway"})
    for pool in ("deepseek-v3.1", "llama-3.3-70b"):
        own = {**gateway, "proxy": pool}
        for name, value in {"active_servers": nodes // 2, "current_queue": 0, "current_sessions": 31}.items():
            out.add(f"haproxy_backend_{name}", value, own)
        out.add("haproxy_backend_http_requests_total", 12 * elapsed, own, kind="counter")
        for code, share in (("2xx", 12), ("4xx", 1), ("5xx", 0.2)):
            out.add("haproxy_backend_http_responses_total", share * elapsed, {**own, "code": code}, kind="counter")
            out.add("haproxy_frontend_http_responses_total", share * elapsed, {**own, "code": code}, kind="counter")
        for number in range(1, nodes + 1):
            one = {**own, "replica": f"node{number}"}
            out.add("haproxy_server_status", 1, {**one, "state": "UP"})
            out.add("haproxy_server_current_sessions", 3, one)
            out.add("haproxy_server_retry_warnings_total", 0, one, kind="counter")
    return out.text()


def _node(out: Page, number: int, elapsed: float, now: float, *, trouble: bool) -> None:
    node, model = f"node{number}", ("deepseek-ai/DeepSeek-V3.1", "meta-llama/Llama-3.3-70B-Instruct")[number % 2]
    for server in ("vllm",) if number % 2 else ("chat-1", "chat-2"):
        own = {"node": node, "server": server, "replica": node, "model": model, "release": 7 + number % 3}
        state = {3: "silent", 4: "starting"}.get(number, "serving") if trouble else "serving"
        for one in STATES:
            out.add("vllm_fleet_server_state", one == state, {**own, "state": one})
        out.add("vllm_fleet_server_up", state == "serving", own)
        out.add("vllm_fleet_server_verified", 1, own)
        for reason in ("container", "undescribed"):
            drifts = trouble and number == 2 and reason == "container"
            out.add("vllm_fleet_server_drift", drifts, {**own, "reason": reason})
        out.add("vllm_fleet_server_start_timestamp_seconds", now - 3600 * number, own)
        out.add("vllm_fleet_server_restarts_total", 0, own, kind="counter")
        of_release = {"revision": "a" * 40, "image": "vllm/vllm-openai-rocm:v0.33.0", "vllm_version": "0.33.0"}
        out.add("vllm_fleet_release_info", 1, {**own, **of_release})
        for outcome, ago in (("verified", 7200), ("failed", 90000)):
            out.add("vllm_fleet_server_changed_timestamp_seconds", now - ago, {**own, "outcome": outcome})
        out.add("vllm_fleet_last_failure_info", 1, {**own, "class": "gpu_memory_taken"})
        out.add("vllm_fleet_watchdog_state", 1, {**own, "state": "serving"})
        out.add("vllm_fleet_quarantined", 0, own)
        out.add("vllm_fleet_maintenance", 0, own)
        events = {"node": node, "server": server, "kind": "hung"}
        out.add("vllm_fleet_watchdog_events_total", math.floor(elapsed), events, kind="counter")
        if state == "serving":
            _engine(out, {**own, "engine": "0"}, elapsed * (1 + 0.3 * math.sin(number)), number)
    for gpu in range(8):
        one = {"node": node, "gpu_id": gpu}
        for name, value in {
            "gpu_total_vram": 196592,
            "gpu_used_vram": 170000 + 900 * gpu,
            "gpu_gfx_activity": 90 + gpu,
            "gpu_umc_activity": 40 + gpu,
            "gpu_package_power": 600 + 10 * gpu,
            "gpu_junction_temperature": 60 + gpu,
            "gpu_memory_temperature": 50 + gpu,
            "gpu_bad_pages": 0,
            "pcie_bandwidth_width": 16,
            "pcie_speed": 32,
            "gpu_thermal_limit": trouble and number == 1 and gpu == 5,
            "gpu_link_degraded": 0,
            "gpu_unheld_memory": 0,
        }.items():
            out.add(name, value, one)
        out.add("gpu_ecc_correct_total", 3, one, kind="counter")
        out.add("gpu_ecc_uncorrect_total", 0, one, kind="counter")
    for name, value in {"MemAvailable": 4e11, "MemTotal": 2e12}.items():
        out.add(f"node_memory_{name}_bytes", value, {"node": node})
    disk = {"node": node, "mountpoint": "/", "fstype": "ext4"}
    out.add("node_filesystem_avail_bytes", 4e11, disk)
    out.add("node_filesystem_size_bytes", 1e12, disk)
    out.add("node_time_seconds", time.time(), {"node": node})
    out.add("node_cpu_seconds_total", 0.7 * elapsed, {"node": node, "cpu": 0, "mode": "idle"}, kind="counter")
    out.add("vllm_fleet_metrics_written_timestamp_seconds", time.time(), {"node": node})
    out.add("vllm_fleet_docker_up", 1, {"node": node})
    out.add("vllm_fleet_run_since_timestamp_seconds", now - 600, {"node": node})
    out.add("vllm_fleet_run_renewed_timestamp_seconds", time.time(), {"node": node})


def _engine(out: Page, own: dict[str, Any], elapsed: float, number: int) -> None:
    for name, value in {"num_requests_running": 12, "num_requests_waiting": 2, "kv_cache_usage_perc": 0.4}.items():
        out.add(f"vllm:{name}", value if name != "kv_cache_usage_perc" else min(0.99, value + number / 100), own)
    for name, speed in {
        "generation_tokens": 2100,
        "prompt_tokens": 9000,
        "prefix_cache_queries": 9000,
        "prefix_cache_hits": 6000,
        "num_preemptions": 0.01,
    }.items():
        out.add(f"vllm:{name}_total", speed * elapsed, own, kind="counter")
    out.add("vllm:request_success_total", 4 * elapsed, {**own, "finished_reason": "stop"}, kind="counter")
    for name, bounds in HISTOGRAMS.items():
        for share, bound in zip((0.5, 0.9, 0.99, 1), (*bounds, math.inf), strict=True):
            labels = {**own, "le": "+Inf" if bound == math.inf else bound}
            out.add(f"vllm:{name}_bucket", share * 4 * elapsed, labels, kind="counter")
        out.add(f"vllm:{name}_sum", bounds[0] * 4 * elapsed, own, kind="counter")
        out.add(f"vllm:{name}_count", 4 * elapsed, own, kind="counter")


def promtool(*words: str) -> None:
    """Run promtool; what it complains of fails the test."""
    program = shutil.which("promtool")
    assert program, "promtool is missing: tests/prepare.yml installs Prometheus"
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Watched:
    """A Prometheus that runs, with the rules and the page of the role."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str) -> Any:
        host, _, port = self.url.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("GET", f"/api/v1/{path}")
        answer = json.loads(connection.getresponse().read())
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, text: str) -> list[Any]:
        return self.ask(f"query?query={quote(text)}")["result"]

    def until(self, text: str, seconds: float = 60) -> list[Any]:
        """Wait until a query has an answer."""
        end = time.monotonic() + seconds
        while not (found := self.query(text)):
            assert time.monotonic() < end, f"nothing for {text}"
            time.sleep(0.2)
        return found


@contextmanager
def watched(
    folder: Path, nodes: int, *, trouble: bool = False, says: Callable[[], str] | None = None
) -> Iterator[Watched]:
    """Have a Prometheus watch ``nodes`` nodes, each second; with ``says`` what that returns is their page."""
    begun, now = time.monotonic(), time.time()
    says = says or (lambda: page(nodes, 1000 + time.monotonic() - begun, now, trouble=trouble))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = says().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            with contextlib.suppress(OSError):  # Prometheus waits a second
                self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    machine = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=machine.serve_forever, daemon=True).start()
    consoles = folder / "consoles"
    consoles.mkdir(parents=True)
    shutil.copy(FILES / "fleet.html", consoles)
    slo = {"record": "vllm_fleet_slo_seconds", "expr": "vector(5)", "labels": {"model": "m", "slo": "ttft_p95"}}
    (folder / "slo.yml").write_text(json.dumps({"groups": [{"name": "slo", "rules": [slo]}]}))
    target = {"targets": [f"127.0.0.1:{machine.server_port}"], "labels": {"node": "all"}}
    config = {
        "global": {"scrape_interval": "1s" if nodes < 16 else "3s", "evaluation_interval": "1s"},
        "rule_files": [str(FILES / "rules/vllm-fleet.yml"), str(folder / "slo.yml")],
        "scrape_configs": [{"job_name": "vllm-fleet", "honor_labels": True, "static_configs": [target]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = shutil.which("prometheus")
    assert program, "prometheus is missing: tests/prepare.yml installs it"
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    words += [f"--web.listen-address=127.0.0.1:{port}", f"--web.console.templates={consoles}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([program, *words], stdout=log, stderr=log)
    try:
        made, end = Watched(f"http://127.0.0.1:{port}"), time.monotonic() + 30
        while True:
            try:
                made.ask("status/buildinfo")
                break
            except (OSError, ValueError):
                assert process.poll() is None and time.monotonic() < end, (folder / "prometheus.log").read_text()
                time.sleep(0.1)
        yield made
    finally:
        process.terminate()
        process.wait(20)
        machine.shutdown()
