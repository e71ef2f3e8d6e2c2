# SPDX-License-Identifier: Apache-2.0
"""The process of a machine: looks at everything, writes one page, and sleeps."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..container.inspected import Inspected, ident, running
from ..server.release_store import commit_of
from .page import Page
from .records import Known, Records, moment
from .settings import Settings
from .sources import Answer, Containers, Gpus, ask, expiry, gateway, version

#: A server that runs and answers; runs, and has not answered since its start; does not answer any more; has ended; is
#: described, and there is no container.
STATES = ("serving", "starting", "silent", "stopped", "absent")
#: What is read of HAProxy: there are seventy series for each server, and alerts and dashboards ask for these.
HAPROXY = frozenset(
    (
        "haproxy_backend_active_servers",
        "haproxy_backend_current_queue",
        "haproxy_backend_current_sessions",
        "haproxy_backend_http_requests_total",
        "haproxy_backend_http_responses_total",
        "haproxy_backend_response_time_average_seconds",
        "haproxy_frontend_current_sessions",
        "haproxy_frontend_denied_connections_total",
        "haproxy_frontend_http_requests_total",
        "haproxy_frontend_http_responses_total",
        "haproxy_process_uptime_seconds",
        "haproxy_server_current_queue",
        "haproxy_server_current_sessions",
        "haproxy_server_http_responses_total",
        "haproxy_server_status",
        "haproxy_server_retry_warnings_total",
    )
)
#: Seconds between two looks at certificates.
HOUR = 3600.0


class Resident:
    """Everything that one machine says. ``look`` makes a page, ``run`` writes one after the other."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is asked yet."""
        self._settings = settings
        self._containers = Containers(settings.docker_socket)
        self._records = Records(Path(settings.state_dir), Path(settings.run_dir))
        self._gpus = Gpus(Path(settings.sysfs))
        self._end = threading.Event()
        #: Containers that have answered since their start, by id and start; versions by the same.
        self._answered: dict[str, str | None] = {}
        self._certificates: tuple[float, Mapping[str, float | None]] = (-HOUR, {})

    def run(self) -> int:
        """Write pages until SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._end.set())
        out = Path(self._settings.out)
        while not self._end.is_set():
            begun = time.monotonic()
            page = self.look()
            page.add("vllm_fleet_metrics_written_timestamp_seconds", time.time())
            page.add("vllm_fleet_metrics_look_seconds", time.monotonic() - begun)
            page.add("vllm_fleet_metrics_cpu_seconds_total", time.process_time(), kind="counter")
            try:
                _write(out, page.text())
            except OSError as exc:
                # Its age is what an alert sees; the next page may have room.
                print(f"{out}: {exc}", flush=True)
            self._end.wait(max(0.1, self._settings.interval - (time.monotonic() - begun)))
        out.unlink(missing_ok=True)
        return 0

    def look(self) -> Page:
        """Return what there is now."""
        page, settings = Page(), self._settings
        if settings.servers or not settings.gateway:
            found = self._containers.find()
            page.add("vllm_fleet_docker_up", found is not None)
            self._servers(page, found or {}, known=found is not None)
            looked = self._gpus.look()
            for name, value, labels in looked or ():
                kind = "counter" if name.endswith(("_total", "_count")) else "gauge"
                page.add(name, value, labels, kind=kind)
            page.add("vllm_fleet_gpus_readable", looked is not None)
        self._records.lock(page, settings.lock)
        if settings.gateway:
            text = gateway(settings.gateway)
            page.add("vllm_fleet_gateway_up", text is not None)
            page.take(text or "", {}, begins="haproxy_", only=HAPROXY, rename="server=replica")
        self._ends(page)
        return page

    def _servers(self, page: Page, containers: Mapping[str, Inspected], *, known: bool) -> None:
        answers = ask(containers)
        for name in [*containers, *(one for one in self._settings.servers if one not in containers and known)]:
            self._server(page, name, containers.get(name), answers.get(name))
        alive = {_start(one) for one in containers.values()}
        self._answered = {key: value for key, value in self._answered.items() if key in alive}

    def _server(self, page: Page, name: str, container: Inspected | None, answer: Answer | None) -> None:
        noted = self._records.known(name)
        record = noted.record
        mine = bool(record and container and record["container"]["id"] == ident(container))
        model = (record or {}).get("model", {}).get("id") if mine or container is None else None
        endpoint = answer.endpoint if answer else None
        model = model or (endpoint.root if endpoint else None) or "unknown"
        labels: dict[str, object] = {
            "server": name,
            "replica": self._settings.servers.get(name, {}).get("replica"),
            "model": model,
            "release": record["release"] if record and (mine or container is None) else "none",
        }
        state = self._state(container, answer)
        for one in STATES:
            page.add("vllm_fleet_server_state", one == state, {**labels, "state": one})
        page.add("vllm_fleet_server_up", state == "serving", labels)
        self._changes(page, labels, noted)
        self._records.watchdog(page, name, labels)
        self._records.maintenance(page, name, labels)
        if container is None:
            return
        page.add("vllm_fleet_server_verified", mine, labels)
        drift = not mine and record is not None
        page.add("vllm_fleet_server_drift", drift, {**labels, "reason": "container"})
        page.add("vllm_fleet_server_drift", name not in self._settings.servers, {**labels, "reason": "undescribed"})
        page.add("vllm_fleet_server_start_timestamp_seconds", moment(container["State"].get("StartedAt")), labels)
        page.add("vllm_fleet_server_restarts_total", container.get("RestartCount"), labels, kind="counter")
        spec: Mapping[str, Any] = (record or {}).get("spec") or {}
        of_release = {
            "revision": (record["model"].get("commit") if record and mine else None) or commit_of(spec),
            "image": (container.get("Config") or {}).get("Image"),
            "vllm_version": self._answered.get(_start(container)),
        }
        page.add("vllm_fleet_release_info", 1, {**labels, **of_release})
        if answer and answer.page is not None:
            page.take(answer.page, labels, begins="vllm:")

    def _state(self, container: Inspected | None, answer: Answer | None) -> str:
        if container is None:
            return "absent"
        if not running(container):
            return "stopped"
        key = _start(container)
        if answer and answer.page is not None and answer.endpoint is not None:
            if self._answered.get(key) is None:
                self._answered[key] = version(answer.endpoint)
            return "serving"
        if answer and answer.endpoint is None:
            return "serving"  # a rank without a port: its head answers for all
        return "silent" if key in self._answered else "starting"

    def _changes(self, page: Page, labels: Mapping[str, object], noted: Known) -> None:
        """Add when a release was verified last, and when a start failed last."""
        name = "vllm_fleet_server_changed_timestamp_seconds"
        page.add(name, moment((noted.record or {}).get("when")) or 0, {**labels, "outcome": "verified"})
        page.add(name, noted.failed_at or 0, {**labels, "outcome": "failed"})
        if noted.failed:
            page.add("vllm_fleet_last_failure_info", 1, {**labels, "class": noted.failed})

    def _ends(self, page: Page) -> None:
        if time.monotonic() - self._certificates[0] >= HOUR:
            now = {name: expiry(path) for name, path in self._settings.certificates.items()}
            self._certificates = (time.monotonic(), now)
        for name, when in self._certificates[1].items():
            page.add("vllm_fleet_certificate_expiry_timestamp_seconds", when or 0, {"certificate": name})


def _start(container: Inspected) -> str:
    return f"{ident(container)} {container['State'].get('StartedAt')}"


def _write(path: Path, text: str) -> None:
    """Replace the page, which node_exporter reads as another user. The disk is not waited for: the next comes soon."""
    part = path.with_name(f".{path.name}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(handle, "w", encoding="utf-8") as file:  # noqa: PTH123  a handle, not a path
        file.write(text)
    part.replace(path)
