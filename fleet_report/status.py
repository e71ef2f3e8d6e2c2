"""What the nodes said of their servers to one table. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fleet_report.summary import table
from fleet_report.words import DASH, clip, natural

HEAD = ["NODE", "RELEASE", "MODEL", "IMAGE", "STATE", "HEALTH", "RUNNING", "WAITING", "DRIFT"]
#: Characters of a drift's text in the table.
WIDTH = 90


def row(host: str, looked: Mapping[str, Any] | None) -> dict[str, Any]:
    """Describe a node from the result of vllm_server in check mode; ``drift`` is empty where all is as it should be."""
    out: dict[str, Any] = dict.fromkeys(("release", "model", "image", "state", "health", "running", "waiting"))
    out |= {"node": host, "drift": ""}
    if looked is None:
        return {**out, "state": "unknown", "drift": "it was not asked"}
    if looked.get("not_reached"):
        return {**out, "state": "unreachable", "drift": clip(_reason(str(looked.get("msg"))), WIDTH)}
    container, spec = looked.get("container"), looked.get("spec") or {}
    serving, release = looked.get("serving") or {}, looked.get("release")
    out["state"] = (container or {}).get("status") or ("absent" if "container" in looked else "unknown")
    out |= {"model": spec.get("model"), "image": spec.get("image")}
    out |= {"health": serving.get("health"), "running": serving.get("running"), "waiting": serving.get("waiting")}
    out["release"] = release["release"] if release else None
    out["drift"] = clip(_drift(looked), WIDTH)
    return out


def _drift(looked: Mapping[str, Any]) -> str:
    failure = looked.get("failure")
    if looked.get("failed") or failure:
        cause = str((failure or {}).get("cause") or looked.get("msg") or "it could not be asked")
        return f"{failure['class']}: {cause}" if failure else cause
    if not looked.get("container"):
        return "no server"
    found = [str(d["name"]) for d in looked.get("differences") or []]
    serving = looked.get("serving") or {}
    if serving.get("health") not in (None, "ready"):
        found.append(f"{serving['health']} ({serving.get('detail')})")
    if found:
        return ", ".join(found)
    if not looked.get("confirmed"):
        return "never verified"
    return "" if looked.get("release") else "no record of it"


def _reason(msg: str) -> str:
    """Of what Ansible and ssh say, ssh's last line is the reason."""
    said = msg.rpartition("over ssh:")[2].replace("\\r\\n", "\n")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("ssh: ") if lines else "no answer"


def rows(results: Mapping[str, Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Describe all nodes, node10 after node9."""
    return [row(host, results[host]) for host in sorted(results, key=natural)]


def lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the table."""
    out = [HEAD]
    for one in found:
        cells = [
            one["node"],
            *(one[name] for name in ("release", "model", "image", "state", "health", "running", "waiting")),
        ]
        drift = "" if one["state"] == "unreachable" and not one["drift"] else one["drift"] or "none"
        out.append([DASH if cell is None else str(cell) for cell in cells] + [drift])
    return table(out)
