# SPDX-License-Identifier: Apache-2.0
"""Everything that is told of a run, whatever a node has said in it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible.module_utils.vllm_fleet.common import terminal
from ansible.module_utils.vllm_fleet.common.secrets import unmistakable
from fleet_report import build, page, summary

#: Hosts of which the odd ones are looked for: each costs a report.
MOST = 64


@dataclass(frozen=True)
class Told:
    """The report, its page (None where nobody will want to look), and the lines for the terminal.

    ``left_out`` are hosts whose results have another form than those of this project.
    """

    report: dict[str, Any]
    page: str | None
    lines: list[str]
    left_out: list[str] = field(default_factory=list)


def unread(said: str, source: str | None) -> str:
    """Return why the variables of the inventory cannot be read, as a line of the terminal.

    ``said`` is Ansible's message, ``source`` the piece of a file that it is about; its first line says where that is.
    """
    if "vault secrets" in said or "ecryption failed" in said:
        lack = "none was given" if "no vault secrets found" in said else "the one that was given does not fit"
        return (
            f"The inventory has values that ansible-vault has encrypted. It needs their password, and {lack}: add "
            "--ask-vault-pass, or name a file with --vault-password-file or ANSIBLE_VAULT_PASSWORD_FILE. "
            "Nothing was touched."
        )
    where = (source or "").strip().partition("\n")[0].removeprefix("Origin: ")
    told = " ".join(said.split()).rstrip(".")
    line: str = terminal.plain(
        f"The inventory cannot be read: {f'{where}: ' if where else ''}{told}. Nothing was touched."
    )
    return line


def source_of(error: BaseException | None) -> str | None:
    """Return the piece of a file that an error of Ansible's, or a cause of it, is about."""
    while error is not None:
        found = getattr(error, "_formatted_source_context", None)
        if found:
            return str(found)
        error = error.__cause__ or error.__context__
    return None


def tell(run: Mapping[str, Any], events: Sequence[Mapping[str, Any]], page_at: str) -> Told:
    """Tell of a run; see build.build for ``run`` and ``events``. ``page_at``: where the page will be.

    A host in other hands may say anything. What cannot be told is left out, and nothing else.
    """
    try:
        return _told(run, events, page_at)
    except Exception:
        hosts = sorted({str(event["host"]) for event in events if "host" in event})
        if len(hosts) > MOST:
            raise
        # One alone is known by the report that can be made without it; of two nodes it may be either.
        odd = {host for host in hosts if _can(run, events, {host})} or _odd(run, events, hosts)
        if not odd:
            raise
        return _without(run, events, page_at, odd)


def _without(run: Mapping[str, Any], events: Sequence[Mapping[str, Any]], page_at: str, hosts: Collection[str]) -> Told:
    kept = [event for event in events if event.get("host") not in hosts]
    return replace(_told(run, kept, page_at), left_out=sorted(hosts))


def _odd(run: Mapping[str, Any], events: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> set[str]:
    """The hosts with which a report of those before them cannot be made any more."""
    odd: set[str] = set()
    for number, host in enumerate(hosts, 1):
        if not _can(run, events, {*odd, *hosts[number:]}):
            odd.add(host)
    return odd


def _can(run: Mapping[str, Any], events: Sequence[Mapping[str, Any]], without: Collection[str]) -> bool:
    try:
        _without(run, events, "", without)
    except Exception:  # noqa: BLE001  what a host says may make anything of it
        return False
    return True


def _told(run: Mapping[str, Any], events: Sequence[Mapping[str, Any]], page_at: str) -> Told:
    report = build.build(run, events)
    html = None
    if build.worth_a_page(report):
        shown = unmistakable(terminal.mapped(report, terminal.shown))
        html = page.render(shown)
        return Told(shown, html, summary.lines(report, page_at))
    return Told(report, None, summary.lines(report, None))
