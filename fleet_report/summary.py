# SPDX-License-Identifier: Apache-2.0
"""A report as the few lines that stand at the end of a run on the terminal. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.vllm_fleet.rollout import messages
from fleet_report import estimate, failure
from fleet_report.replicas import number
from fleet_report.words import DASH, clip, count, duration, latency, rate, spread

#: How each outcome reads in a sentence, in the order of the sentence.
OUTCOMES = {
    "failed": "failed",
    "unreachable": "unreachable",
    "refused": "refused",
    "restored": "failed and restored",
    "taken_back": "failed and taken back",
    "deployed": "deployed",
    "replaced": "replaced",
    "rolled_back": "rolled back",
    "removed": "removed",
    "restarted": "restarted",
    "started": "started",
    "updated": "updated",
    "stopped": "stopped",
    "measured": "measured",
    "unchanged": "unchanged",
    "answered": "answered as expected",
    "tried": "burned in",
    "absent": "had no server",
    "left_out": "left out",
    "untouched": "not attempted",
}
BAD = ("failed", "refused", "unreachable", "restored", "taken_back")
#: Rows of a table on the terminal; the page has them all.
_ROWS = 20
#: Where the plan points to what was said of single nodes.
_SEE = "(see above)"
#: Outcomes without figures: the first line counts them, and what is wrong stands below.
_UNTOLD = ("unchanged", "answered", "untouched", "unreachable", "refused", "removed", "absent", "left_out")
#: What stands for the address of each of several nodes.
_ADDRESS = "ADDRESS"
#: Nodes whose differences are named in the line of a check run.
_NAMED = 8


def told(outcome: Mapping[str, int]) -> str:
    """Write the counts of outcomes: ``3 replaced, 1 failed``, the good ones first."""
    order = [*(name for name in OUTCOMES if name not in BAD), *BAD]
    return ", ".join(f"{outcome[name]} {OUTCOMES[name]}" for name in order if outcome.get(name))


def lines(report: Mapping[str, Any], page: str | None = None) -> list[str]:
    """Give the lines for the terminal; none where the run was about no node of the fleet."""
    nodes = report["nodes"]
    if report.get("next"):
        return [_accepted(report), f"Next: {report['next']}"]
    if not nodes:
        return [*_of_gateways_alone(report), *([f"Report: {page}"] if page else [])]
    taking_part = [node for node in nodes if node["outcome"] != "left_out"]
    own = failures([*nodes, *report.get("failures_elsewhere", ())])
    told_failures = _told_failures([*nodes, *report.get("failures_elsewhere", ())])
    # What ended it for all may be no more than that.
    stopped = _why_all(report.get("stopped"))
    told_failures += stopped if not (own and any(_SEE in line for line in stopped)) else []
    others = [*_left_out(report), *_gateways(report), *_undescribed(report), *report.get("says", ()), *_ask(report)]
    if report["check_mode"]:
        judged = _refused(report) if told_failures else []
        return [*(judged or _checked(taking_part, failed=bool(told_failures))), *others, *told_failures]
    elsewhere = report.get("failed_elsewhere")
    if elsewhere and page is None and any(node["started"] for node in nodes):
        seen = "" if told_failures else " (see above)"
        return [f"{number(nodes)}, none replaced: {', '.join(elsewhere)} failed{seen}.", *told_failures]
    calm = not any(n["changed"] or n["benchmark"] or n["burn_in"] for n in nodes) and not report.get("removed")
    if not told_failures and (page is None or calm):
        return [*_calm(taking_part), *others, *([f"Report: {page}"] if page else [])]
    head = f"{number(nodes)} in {duration(report['elapsed'])}: {told(report['outcome'])}"
    out = [
        *(_refused(report) or [head]),
        *_table(nodes),
        *_benchmarks(nodes),
        *estimate.line(report),
        *others,
        *told_failures,
    ]
    return [*out, f"Report: {page}"] if page else out


def _of_gateways_alone(report: Mapping[str, Any]) -> list[str]:
    """Say what a run did that was about gateways and no node (--limit gateway1); none where it was about neither."""
    why = _told_failures(report.get("failures_elsewhere", ()))
    if not report.get("gateways"):
        return [*_refused(report), *why] if any(_sentences(one) for one in report.get("failures_elsewhere", ())) else []
    return [*(_gateways(report) or ["No gateway to change."]), *(why or _ask(report))]


def _ask(report: Mapping[str, Any]) -> list[str]:
    """Say where the fleet is asked; none in a check run, after which nothing has to be tried."""
    found = report.get("endpoints")
    if not found or report["check_mode"]:
        return []
    key = ', with the key (-H "Authorization: Bearer $KEY")' if report.get("endpoints_want_key") else ""
    return [f"To ask: {', '.join(found)}{key}"]


def _gateways(report: Mapping[str, Any]) -> list[str]:
    """Say what changed at gateways, in one line for those that changed alike; none where nothing did."""
    groups: dict[tuple[str, str], list[str]] = {}
    would = {"changed": "would change"} if report["check_mode"] else {}
    for row in report.get("gateways") or ():
        if row["outcome"] != "unchanged":
            groups.setdefault((row["outcome"], ", ".join(row["changed"])), []).append(row["name"])
    told = [
        f"{clip(', '.join(names), 60)}: {would.get(outcome, outcome)}{f' ({what})' if what else ''}"
        for (outcome, what), names in groups.items()
    ]
    return told + [clip(text, 300) for row in report.get("gateways") or () for text in row["forgets"]]


def undescribed(report: Mapping[str, Any]) -> list[str]:
    """Name the servers that no host of the inventory describes, with their nodes."""
    return _on_nodes(report.get("undescribed") or {})


def _on_nodes(servers: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{', '.join(names)} on {node}" for node, names in servers.items()]


def _left_out(report: Mapping[str, Any]) -> list[str]:
    """Name the servers that the run went on without, and why."""
    return [text] if (text := messages.left_out(report.get("left_out") or {}).strip()) else []


def _undescribed(report: Mapping[str, Any]) -> list[str]:
    found, removed = undescribed(report), report.get("removed") or {}
    if removed:
        return [f"Removed, not described any more: {clip('; '.join(_on_nodes(removed)), 200)}"]
    remedy = "deploy.yml with -e rollout_remove_undescribed=true removes "
    them = "it" if sum(map(len, report.get("undescribed", {}).values())) == 1 else "them"
    return [f"Not described any more: {clip('; '.join(found), 200)}; {remedy}{them}"] if found else []


def _calm(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for a run that changed nothing."""
    if nodes and all(node["outcome"] == "absent" for node in nodes):
        return [f"{number(nodes)}, no server to remove."]
    asked = [node for node in nodes if node["answered"]]
    answered = [node for node in asked if node["ttft"] is not None]
    if not asked:
        return [f"{number(nodes)}, nothing to change."] if any(n["started"] for n in nodes) else []
    line = f"{number(nodes)}, nothing to change" if any(n["started"] for n in nodes) else ""
    line = f"{line + '; ' if line else ''}{number(asked)} answered as expected"
    if answered:
        line += f", first token after {spread([n['ttft'] for n in answered], latency)}"
    rates = [n["tokens_per_second"] for n in answered if n["tokens_per_second"] is not None]
    return [line + (f", {spread(rates, rate)} tokens/s." if rates else ".")]


def _checked(nodes: Sequence[Mapping[str, Any]], *, failed: bool) -> list[str]:
    changing = [node for node in nodes if node["changed"]]
    if failed:
        would = f" {len(changing)} of {number(nodes)} would have to change." if changing else ""
        return [f"Check: a run would fail.{would}"]
    if not any(node["started"] or node["changed"] for node in nodes):
        return []
    if not changing:
        return [f"Check: {number(nodes)}, nothing would change."]
    out = [f"Check: {len(changing)} of {number(nodes)} would change."]
    groups: dict[str, list[str]] = {}
    for node in changing:
        groups.setdefault(differences(node), []).append(node["name"])
    for what, names in list(groups.items())[:_NAMED]:
        out.append(f"  {clip(', '.join(names), 60)}: {what}")
    return out


def differences(node: Mapping[str, Any]) -> str:
    """Name what differs on a node, in one line; ``deployed anew`` where there was no server."""
    found = node["differences"]
    if node["unstaged"]:
        return "its image or weights, which come first, and then the server"  # nothing can be compared with them yet
    if not found:
        return "started again"
    if any(d["name"] == "state" and d["current"] is None for d in found):
        return "a server where there is none"
    if any(d["name"] == "state" and d["desired"] == "absent" for d in found):
        return "its server would be removed"
    if any(d["name"] == "state" and d["desired"] == "exited" for d in found):
        return "its server would be stopped"
    return clip(", ".join(d["name"] for d in found), 100)


def _table(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = [node for node in nodes if node["outcome"] not in _UNTOLD]
    if not any(node["started"] for node in shown):
        return []
    left = shown[_ROWS:] if len(shown) > _ROWS else []
    if left:  # what failed is not what may be left out
        shown = sorted(shown, key=lambda node: node["outcome"] not in BAD)
        shown, left = shown[:_ROWS], shown[_ROWS:]
    of = "server" if any(node.get("on") for node in nodes) else "node"
    rows = [["NODE", "OUTCOME", "RELEASE", "DOWN", "READY AFTER", "FIRST TOKEN", "TOKENS/S"]]
    for node in shown:
        before = node["previous"] or {}
        rows.append(
            [
                node["name"],
                OUTCOMES[node["outcome"]],
                _release(node["release"] or {}),
                duration(node["downtime"]),
                duration(node["ready"]),
                _beside(node["ttft"], before.get("ttft"), latency),
                _beside(node["tokens_per_second"], before.get("tokens_per_second"), rate),
            ]
        )
    return [*table(rows), *([f"and {count(len(left), 'more ' + of)}, in the report"] if left else [])]


def _benchmarks(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    measured = [node for node in nodes if node["benchmark"]]
    if not measured:
        return []
    rows = [["NODE", "REQUESTS", "REQUESTS/S", "OUTPUT TOKENS/S", "FIRST TOKEN (P99)", "PER TOKEN (P99)"]]
    for node in measured:
        found = node["benchmark"]
        rows.append(
            [
                node["name"],
                f"{found.get('completed')}" + (f", {found['failed']} failed" if found.get("failed") else ""),
                rate(found.get("request_throughput")),
                rate(found.get("output_throughput")),
                *(
                    f"{latency(_ms(found, 'mean', what))} ({latency(_ms(found, 'p99', what))})"
                    for what in ("ttft", "tpot")
                ),
            ]
        )
    return table(rows)


def _ms(found: Mapping[str, Any], which: str, what: str) -> float | None:
    value = found.get(f"{which}_{what}_ms")
    return value / 1000 if value is not None else None


def _beside(now: float | None, before: float | None, write: Any) -> str:
    return f"{write(now)} (was {write(before)})" if before is not None and now is not None else str(write(now))


def _accepted(report: Mapping[str, Any]) -> str:
    """Say that preflight found nothing against a deployment."""
    found = report["findings"]
    hosts, warnings = int(found.get("hosts") or 0), int(found.get("warning") or 0)
    more = f", {count(warnings, 'warning')} (see above)" if warnings else ""
    left = list(report.get("not_checked") or ())
    few = [*left[:3], f"{len(left) - 3} more"] if len(left) > 4 else left
    unknown = f" Not checked: {', '.join(few)} (see above)." if few else ""
    return f"A deployment would be accepted: {count(hosts, 'host')}, no refusal{more}.{unknown}"


def _refused(report: Mapping[str, Any]) -> list[str]:
    """Say how a preflight ended that found something against a deployment; none of other playbooks."""
    found = report.get("findings") or {}
    if not report.get("judges") or not found:
        return []
    counted = {level: int(found.get(level) or 0) for level in ("refused", "unseen", "warning")}
    why = [count(counted["refused"], "refusal")] if counted["refused"] else []
    why += [f"{counted['unseen']} out of reach"] if counted["unseen"] else []
    why += [f"{count(counted['warning'], 'warning')} (see above)"] if counted["warning"] else []
    unknown = bool(counted["unseen"]) and not counted["refused"]
    how = "Whether a deployment would be accepted is not known" if unknown else "A deployment would be refused"
    return [f"{how}: {', '.join([count(int(found.get('hosts') or 0), 'host'), *why])}."]


def _sentences(node: Mapping[str, Any]) -> list[str]:
    return list((node["failure"] or {}).get("sentences") or ())


def _told_failures(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say why nodes failed: what preflight refused finding by finding, as nothing else says it, the rest in short."""
    of_preflight = [one for node in nodes for one in node.get("members") or [node] if _sentences(one)]
    others = failures([node for node in nodes if not _sentences(node)])
    return [*_findings(of_preflight), *(line for group in others for line in _why(group))]


def _findings(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write each finding once, with the hosts that have it, and then what all of them end with."""
    groups: dict[str, list[tuple[Mapping[str, Any], str]]] = {}
    times = Counter(sentence for node in nodes for sentence in _sentences(node))
    for node in nodes:
        for sentence in _sentences(node):
            # What several say word for word may name them all.
            same = sentence if times[sentence] > 1 else _alike(node, sentence)
            groups.setdefault(same, []).append((node, sentence))
    told = []
    for same, members in groups.items():
        of = messages.names(dict.fromkeys(node["name"] for node, _ in members))
        text = members[0][1]
        if len({sentence for _, sentence in members}) > 1:
            addresses = [str(node["failure"].get("address") or node["name"]) for node, _ in members]
            text = same + (f" (ADDRESS: {', '.join(addresses)})" if _ADDRESS in same else "")
        told.append(f"{of}: {clip(text, 2000)}")
    ends = [str(node["failure"].get(part) or "") for part in ("further", "ending") for node in nodes]
    return [*told, *(one for one in dict.fromkeys(ends) if one)]


def _alike(node: Mapping[str, Any], text: str) -> str:
    """Return a text without what tells a node from others: its address and its name."""
    for own, word in ((node["failure"].get("address"), _ADDRESS), (node["name"], "the node")):
        if own:
            text = re.sub(rf"(?<![\w.-]){re.escape(str(own))}(?![\w-]|\.\w)", word, text)
    return text


def failures(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put nodes that failed alike together: sixty nodes with one cause are one story."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for node in nodes:
        why = node["failure"]
        if not why:
            continue
        cause = _alike(node, str(why["cause"]))
        group = groups.setdefault((why["class"], cause), {**why, "nodes": [], "logs": []})
        group["nodes"].append(node)
        if why.get("log_file"):
            group["logs"].append(f"{why.get('host') or node['name']}:{why['log_file']}")
    for (_, cause), group in groups.items():
        if _ADDRESS in cause and len(group["nodes"]) > 1:
            listed = ", ".join(str(node["failure"]["address"]) for node in group["nodes"])
            group |= {"cause": f"{cause} (ADDRESS: {listed})", "remedy": _alike(group["nodes"][0], group["remedy"])}
    return sorted(groups.values(), key=lambda group: -len(group["nodes"]))


def _why(group: Mapping[str, Any]) -> list[str]:
    names = clip(", ".join(node["name"] for node in group["nodes"]), 60)
    kind = "" if group["class"] == failure.PLAIN else f"{group['class']}: "
    return [f"{names}: {kind}{clip(group['cause'], 300)}", *_remedy(group)]


def _why_all(found: Mapping[str, Any] | None) -> list[str]:
    """Say what ended the run for all hosts."""
    return (
        [clip(line, 300) for line in str(found["cause"]).splitlines()[:_NAMED] if line] + _remedy(found)
        if found
        else []
    )


def _remedy(found: Mapping[str, Any]) -> list[str]:
    return [f"  {clip(found['remedy'], 300)}"] if found.get("remedy") else []


def _release(found: Mapping[str, Any]) -> str:
    """Number of a release, and of the one that it brings back."""
    number = str(found.get("release") or DASH)
    return f"{number} (as {found['restores']})" if found.get("restores") else number


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out in columns, the first row being their heads."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
