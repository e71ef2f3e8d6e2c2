#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes roles/monitoring/files/dashboards/*.json out of the description below. `--check`: are they current?

    .venv/bin/python scripts/gen_dashboards.py

Grafana's format is made by grafana-foundation-sdk; nothing but this script needs that. Every expression is run against
a real Prometheus in tests/integration/test_fleet_page.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models

FOLDER = Path(__file__).resolve().parents[1] / "roles/monitoring/files/dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
#: Labels of a server, and how a legend names it.
BY, SERVER = "node, server, model, release", "{{node}} {{server}}"


@dataclass(frozen=True)
class Panel:
    """One panel: queries with their legends; `kind` is graph, number or list; `width` of 24."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "graph"
    width: int = 8
    says: str = ""
    stacked: bool = False
    most: float | None = None


@dataclass(frozen=True)
class Board:
    """One dashboard: variables are names of labels, each with the series that has its values."""

    name: str
    title: str
    variables: tuple[tuple[str, str], ...]
    rows: dict[str, tuple[Panel, ...]] = field(default_factory=dict)


def one(title: str, expr: str, legend: str = SERVER, **more: Any) -> Panel:
    """Return a panel with one query."""
    return Panel(title, ((expr, legend),), **more)


def quantiles(title: str, name: str, where: str, **more: Any) -> Panel:
    """Return a panel of a histogram: half of all, nineteen of twenty, ninety-nine of a hundred."""
    return Panel(
        title,
        tuple(
            (f"histogram_quantile({q}, sum by (le) (rate(vllm:{name}_bucket{{{where}}}[$__rate_interval])))", legend)
            for q, legend in ((0.5, "half"), (0.95, "95 %"), (0.99, "99 %"))
        ),
        **{"unit": "s", **more},
    )


def rate(name: str, where: str = "", by: str = BY) -> str:
    """Return the rate of a counter."""
    return f"sum by ({by}) (rate({name}{{{where}}}[$__rate_interval]))"


def traffic(where: str, by: str, legend: str) -> tuple[Panel, ...]:
    """Return what a model and a server have in common."""
    return (
        one("Requests that are computed", f"sum by ({by}) (vllm:num_requests_running{{{where}}})", legend),
        one("Requests that wait", f"sum by ({by}) (vllm:num_requests_waiting{{{where}}})", legend),
        one(
            "Answers a second",
            rate("vllm:request_success_total", where, "finished_reason"),
            "{{finished_reason}}",
            unit="reqps",
        ),
        one("Tokens made a second", rate("vllm:generation_tokens_total", where, by), legend),
        one("Tokens of prompts a second", rate("vllm:prompt_tokens_total", where, by), legend),
        one("KV cache", f"max by ({by}) (vllm:kv_cache_usage_perc{{{where}}})", legend, unit="percentunit", most=1),
        one(
            "Prompts found in the prefix cache",
            f"{rate('vllm:prefix_cache_hits_total', where, by)}"
            f" / ({rate('vllm:prefix_cache_queries_total', where, by)} > 0)",
            legend,
            unit="percentunit",
            most=1,
        ),
        one("Requests thrown out of the KV cache a second", rate("vllm:num_preemptions_total", where, by), legend),
        quantiles("Time in the server's queue", "request_queue_time_seconds", where),
    )


def times(where: str) -> tuple[Panel, ...]:
    """Return how long things take."""
    return (
        quantiles("Time to the first token", "time_to_first_token_seconds", where),
        quantiles("Time between two tokens", "inter_token_latency_seconds", where),
        quantiles("Time of a whole answer", "e2e_request_latency_seconds", where),
        quantiles("Tokens of a prompt", "request_prompt_tokens", where, unit="short"),
        quantiles("Tokens of an answer", "request_generation_tokens", where, unit="short"),
    )


ALERTS = one(
    "Alerts that fire",
    'ALERTS{alertstate="firing"}',
    "{{alertname}} {{node}} {{server}} {{model}}",
    kind="list",
    width=24,
)
MODEL, ONE = 'model=~"$model"', 'node=~"$node", server=~"$server"'
POOL = 'node=~"$gateway", proxy!~"vllm-fleet-.*"'
DISKS = 'fstype!~"tmpfs|overlay|squashfs|ramfs"'
GPU, GPUS = "{{node}} {{gpu_id}}", 'node=~"$node"'

BOARDS = (
    Board(
        "fleet",
        "vLLM fleet",
        (),
        {
            "Now": (
                one("Servers that answer", "sum(vllm_fleet_server_up)", "", kind="number", width=4),
                one("Servers that do not", "sum(1 - vllm_fleet_server_up)", "", kind="number", width=4),
                one("Requests that are computed", "sum(vllm:num_requests_running)", "", kind="number", width=4),
                one("Requests that wait", "sum(vllm:num_requests_waiting)", "", kind="number", width=4),
                one(
                    "Tokens made a second",
                    "sum(rate(vllm:generation_tokens_total[$__rate_interval]))",
                    "",
                    kind="number",
                    width=4,
                ),
                one("Power of all GPUs", "sum(gpu_package_power)", "", kind="number", unit="watt", width=4),
                ALERTS,
            ),
            "Models": (
                one("Tokens made a second", rate("vllm:generation_tokens_total", by="model"), "{{model}}"),
                one("Requests that wait", "sum by (model) (vllm:num_requests_waiting)", "{{model}}"),
                one("Time to the first token, 95 %", "vllm_fleet:ttft_seconds:p95", "{{model}}", unit="s"),
            ),
            "Servers": (
                one(
                    "State",
                    "vllm_fleet_server_state == 1",
                    "{{node}} {{server}} {{model}} {{release}} {{state}}",
                    kind="list",
                    width=12,
                ),
                one("Release", "vllm_fleet_release_info", "", kind="list", width=12),
                one(
                    "Starts that failed",
                    'vllm_fleet_server_changed_timestamp_seconds{outcome="failed"} > 0',
                    "",
                    kind="list",
                    unit="dateTimeAsIso",
                    width=12,
                ),
                one("Not as recorded or described", "vllm_fleet_server_drift == 1", "", kind="list", width=12),
                one(
                    "Events of watchdogs in an hour",
                    "sum by (node, server, kind) (increase(vllm_fleet_watchdog_events_total[1h])) > 0",
                    "{{node}} {{server}} {{kind}}",
                    width=12,
                ),
                one(
                    "A run holds the fleet since",
                    "max(vllm_fleet_run_since_timestamp_seconds) > 0",
                    "",
                    kind="number",
                    unit="dateTimeFromNow",
                    width=12,
                ),
            ),
            "Machines": (
                one(
                    "Processors in use",
                    '1 - avg by (node) (rate(node_cpu_seconds_total{mode="idle"}[$__rate_interval]))',
                    "{{node}}",
                    unit="percentunit",
                    most=1,
                ),
                one(
                    "Memory in use",
                    "1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes",
                    "{{node}}",
                    unit="percentunit",
                    most=1,
                ),
                one(
                    "Fullest disk",
                    f"1 - min by (node)"
                    f" (node_filesystem_avail_bytes{{{DISKS}}} / node_filesystem_size_bytes{{{DISKS}}})",
                    "{{node}}",
                    unit="percentunit",
                    most=1,
                ),
            ),
        },
    ),
    Board(
        "model",
        "vLLM model",
        (("model", "vllm_fleet_server_up"),),
        {
            "Traffic": traffic(MODEL, "node, server", SERVER),
            "Times": (
                *times(MODEL),
                Panel(
                    "Targets, and what is reached (95 %)",
                    (
                        ('vllm_fleet:ttft_seconds:p95{model=~"$model"}', "first token"),
                        ('vllm_fleet:itl_seconds:p95{model=~"$model"}', "between two tokens"),
                        ('vllm_fleet_slo_seconds{model=~"$model"}', "target {{slo}}"),
                    ),
                    unit="s",
                ),
            ),
            "Replicas": (
                one(
                    "Mean time between two tokens",
                    f"vllm_fleet:itl_seconds:mean{{{MODEL}}}",
                    SERVER,
                    unit="s",
                    width=12,
                ),
                one("Release", f"vllm_fleet_release_info{{{MODEL}}}", "", kind="list", width=12),
            ),
        },
    ),
    Board(
        "server",
        "vLLM server",
        (("node", "vllm_fleet_server_up"), ("server", "vllm_fleet_server_up")),
        {
            "Now": (
                one("State", f"vllm_fleet_server_state{{{ONE}}} == 1", "{{state}}", kind="list", width=12),
                one("Release", f"vllm_fleet_release_info{{{ONE}}}", "", kind="list", width=12),
            ),
            "Traffic": traffic(ONE, BY, SERVER + " {{release}}"),
            "Times": times(ONE),
            "Life": (
                one(
                    "Started",
                    f"vllm_fleet_server_start_timestamp_seconds{{{ONE}}} * 1000",
                    SERVER,
                    kind="number",
                    unit="dateTimeFromNow",
                ),
                one("Restarts by Docker", f"vllm_fleet_server_restarts_total{{{ONE}}}", SERVER),
                one("Watchdog", f"vllm_fleet_watchdog_state{{{ONE}}} == 1", "{{state}}", kind="list"),
                one(
                    "Events of its watchdog",
                    f"sum by (kind) (increase(vllm_fleet_watchdog_events_total{{{ONE}}}[1h])) > 0",
                    "{{kind}}",
                ),
            ),
        },
    ),
    Board(
        "gateway",
        "vLLM gateway",
        (("gateway", "vllm_fleet_gateway_up"),),
        {
            "Pools": (
                one(
                    "Requests a second",
                    rate("haproxy_backend_http_requests_total", POOL, "proxy"),
                    "{{proxy}}",
                    unit="reqps",
                ),
                one("Open requests", f"sum by (proxy) (haproxy_backend_current_sessions{{{POOL}}})", "{{proxy}}"),
                one(
                    "Requests in the gateway's queue",
                    f"sum by (proxy) (haproxy_backend_current_queue{{{POOL}}})",
                    "{{proxy}}",
                ),
                one("Servers that are up", f"min by (proxy) (haproxy_backend_active_servers{{{POOL}}})", "{{proxy}}"),
                one(
                    "Answers by their class",
                    rate("haproxy_backend_http_responses_total", POOL, "proxy, code"),
                    "{{proxy}} {{code}}",
                    unit="reqps",
                ),
                one(
                    "Share of errors of servers (5xx)",
                    'vllm_fleet:gateway_errors:ratio{proxy!~"vllm-fleet-.*"}',
                    "{{proxy}}",
                    unit="percentunit",
                    most=1,
                ),
            ),
            "Servers": (
                one(
                    "Open requests",
                    f"sum by (replica) (haproxy_server_current_sessions{{{POOL}}})",
                    "{{replica}}",
                    width=12,
                ),
                one(
                    "Requests that go to another server a second",
                    rate("haproxy_server_retry_warnings_total", POOL, "replica"),
                    "{{replica}}",
                    width=12,
                ),
                one(
                    "State",
                    f"max by (proxy, replica, state) (haproxy_server_status{{{POOL}}} == 1)",
                    "{{proxy}} {{replica}} {{state}}",
                    kind="list",
                    width=12,
                ),
                one(
                    "Refused by the front",
                    rate("haproxy_frontend_http_responses_total", 'node=~"$gateway", code="4xx"', "proxy"),
                    "{{proxy}}",
                    unit="reqps",
                    width=12,
                ),
                one(
                    "Certificates end",
                    "vllm_fleet_certificate_expiry_timestamp_seconds * 1000",
                    "{{node}} {{certificate}}",
                    kind="list",
                    unit="dateTimeFromNow",
                    width=24,
                ),
            ),
        },
    ),
    Board(
        "gpu",
        "vLLM GPUs",
        (("node", "gpu_used_vram"),),
        {
            "Load": (
                one("Activity", f"gpu_gfx_activity{{{GPUS}}}", GPU, unit="percent", most=100),
                one("Activity of memory", f"gpu_umc_activity{{{GPUS}}}", GPU, unit="percent", most=100),
                one(
                    "Memory in use",
                    f"gpu_used_vram{{{GPUS}}} / gpu_total_vram{{{GPUS}}}",
                    GPU,
                    unit="percentunit",
                    most=1,
                ),
                one("Power", f"gpu_package_power{{{GPUS}}}", GPU, unit="watt"),
                one("Junction", f"gpu_junction_temperature{{{GPUS}}}", GPU, unit="celsius"),
                one("Memory's temperature", f"gpu_memory_temperature{{{GPUS}}}", GPU, unit="celsius"),
            ),
            "Health": (
                one("Uncorrectable errors", f"gpu_ecc_uncorrect_total{{{GPUS}}}", GPU),
                one("Corrected errors an hour", f"increase(gpu_ecc_correct_total{{{GPUS}}}[1h])", GPU),
                one("Bad pages", f"gpu_bad_pages{{{GPUS}}}", GPU),
                one("Lanes of the link", f"pcie_bandwidth_width{{{GPUS}}}", GPU),
                one("Speed of the link, GT/s", f"pcie_speed{{{GPUS}}}", GPU),
                one(
                    "Hot, slow or held by nobody",
                    " or ".join(
                        f"{name}{{{GPUS}}} == 1"
                        for name in ("gpu_thermal_limit", "gpu_link_degraded", "gpu_unheld_memory")
                    ),
                    "",
                    kind="list",
                ),
            ),
        },
    ),
)

#: When a release of a server was verified, on every dashboard.
RELEASES = {
    "datasource": {"type": "prometheus", "uid": "${datasource}"},
    "enable": True,
    "expr": 'vllm_fleet_server_changed_timestamp_seconds{outcome="verified"} * 1000 > 0',
    "iconColor": "blue",
    "name": "Releases",
    "step": "60s",
    "textFormat": "{{model}}: {{server}} on {{node}}",
    "titleFormat": "Release {{release}}",
    "useValueForTime": True,
}
_HEIGHT = {"graph": 8, "number": 4, "list": 8}


def _panel(given: Panel) -> Any:
    kinds: dict[str, Any] = {"graph": timeseries.Panel, "number": stat.Panel, "list": table.Panel}
    made = kinds[given.kind]().title(given.title).datasource(SOURCE).unit(given.unit)
    made.span(given.width).height(_HEIGHT[given.kind])
    if given.says:
        made.description(given.says)
    if given.kind == "graph":
        made.min(0).fill_opacity(5).show_points(common.VisibilityMode.NEVER)
        if given.most is not None:
            made.max(given.most)
    for number, (expr, legend) in enumerate(given.queries):
        query = prometheus.Dataquery().expr(expr).legend_format(legend or "__auto").ref_id(chr(ord("A") + number))
        if given.kind == "list":
            query.instant().format("table")
        made.with_target(query)
    return made


def _variables(board: Board) -> list[Any]:
    out: list[Any] = [dashboard.DatasourceVariable("datasource").type("prometheus").label("Prometheus")]
    for at, (name, series) in enumerate(board.variables):
        label = "node" if name == "gateway" else name
        # A later variable has the values that go with those before it.
        known = ", ".join(f'{before}=~"${before}"' for before, _ in board.variables[:at])
        query = f"label_values({series}{f'{{{known}}}' if known else ''}, {label})"
        made = dashboard.QueryVariable(name).datasource(SOURCE).query(query).multi(True).include_all(True)
        made.all_value(".*").refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        out.append(made)
    return out


def built(board: Board) -> str:
    """Return a dashboard as Grafana reads it."""
    made = dashboard.Dashboard(board.title).uid(f"vllm-fleet-{board.name}").tags(["vllm-fleet"]).editable()
    made.refresh("30s").time("now-3h", "now").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    made.link(
        dashboard.DashboardLink("vLLM fleet")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags(["vllm-fleet"])
        .as_dropdown(True)
    )
    for variable in _variables(board):
        made.with_variable(variable)
    for title, panels in board.rows.items():
        made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(_panel(panel))
    text = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    text["annotations"] = {"list": [RELEASES]}
    return json.dumps(text, indent=1, sort_keys=True) + "\n"


def main(words: list[str]) -> int:
    """Write the files, or say which are not current."""
    wanted = {FOLDER / f"{board.name}.json": built(board) for board in BOARDS}
    there = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    differing = sorted(path.name for path in {*wanted, *there} if wanted.get(path) != there.get(path))
    if words == ["--check"]:
        if differing:
            print(
                f"{', '.join(differing)}: not what the description says; run scripts/gen_dashboards.py", file=sys.stderr
            )
        return bool(differing)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in there.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
