# SPDX-License-Identifier: Apache-2.0
"""Ansible's own output, short where all is well: a wave fits on a screen, and what goes wrong stands out."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible import constants
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common import secrets, terminal
from ansible.module_utils.vllm_fleet.preflight import connection

if TYPE_CHECKING:
    from ansible.executor.task_result import CallbackTaskResult
    from ansible.inventory.host import Host
    from ansible.playbook.included_file import IncludedFile
    from ansible.playbook.play import Play
    from ansible.playbook.task import Task

DOCUMENTATION = r"""
name: vllm_fleet_stdout
type: stdout
short_description: Ansible's default output, short where all is well
description:
  - A task that finds all as wanted is one line, whatever the number of its hosts, and none where it only prepares
    others (checks of arguments, facts, includes). Changes, failures, messages and everything with C(-v) are shown as
    the default output shows them.
  - A play without hosts, or in which nothing was to be done, is not named.
  - The banner of a task that shows progress stands above its progress lines, and only where there are any.
  - A difference that several hosts of a task have in common is shown once.
  - A failure that has been diagnosed is its sentence, its evidence and its remedy; C(-v) shows the whole result.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - set as stdout in configuration
"""

# The project's action plugins write lines, each beginning with its host in brackets, while their tasks run.
ACTION_PLUGINS = Path(__file__).resolve().parent.parent / "action_plugins"
SHOW_PROGRESS = frozenset(file.stem for file in ACTION_PLUGINS.glob("*.py"))
#: How Ansible colours a word (ansible.utils.color.stringc).
OWN_COLOUR = r"(\x1b\[(?:[01];)?[\d;]{1,12}m)"
#: Tasks that say nothing by being fine.
SILENT = frozenset({"validate_argument_spec", "set_fact", "set_stats", "assert"})
#: Tasks of which nothing is to be read but what they say, well or badly.
MESSAGES = frozenset({"debug", "assert", "fail", "preflight_report", "vllm_chat"})
#: Hosts named in a line before they are only counted; messages of a task shown whole before only their first lines are.
NAMED = 4


def _named(hosts: list[str]) -> str:
    return ", ".join(hosts) if len(hosts) <= NAMED else f"{len(hosts)} hosts"


class CallbackModule(Default):
    """The default output, cut where nothing is to be read."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "vllm_fleet_stdout"

    def __init__(self) -> None:
        """Listen to what is displayed: only there is it known whether a task shows progress."""
        super().__init__()
        self._fine: tuple[Task | None, list[str]] = (None, [])
        #: Hosts that preflight refuses: why stands in the last lines of the run.
        self._refused: tuple[str, list[str]] = ("", [])
        self._awaited: Task | None = None
        self._unnamed = ""
        self._diffs: dict[str, set[str]] = {}
        self._differing = ""
        self._spoken: dict[str, int] = {}
        self._process = os.getpid()
        self._coloured = False
        self._plain = self._display.display
        self._display.display = self._shown

    def _shown(self, msg: str, *args: Any, **options: Any) -> None:
        """Display, the play's banner first, and that of the task where the line is its first progress.

        Every line goes through here, those of Ansible itself with -vvvv, too: nothing that a terminal obeys and no
        secret that shows by its shape gets past it.
        """
        msg = self._fit(msg)
        # Workers hand their lines to the process that shows them.
        if os.getpid() != self._process:
            self._plain(msg, *args, **options)
            return
        play, self._unnamed = self._unnamed, ""
        if play:
            self._display.banner(play)
        task = self._awaited
        if task is not None and msg.startswith("["):
            self._awaited = None
            if self._last_task_banner != task._uuid:
                self._print_task_banner(task)
        self._plain(msg, *args, **options)

    def _fit(self, msg: Any) -> str:
        text = msg if isinstance(msg, str) else str(msg)
        if not self._coloured:
            return secrets.scrub_words(terminal.shown(text))
        # Ansible's own colours, which it puts into a difference and into the last lines, around what was cleaned.
        parts = re.split(OWN_COLOUR, text)
        return "".join(
            part if number % 2 else secrets.scrub_words(terminal.shown(part)) for number, part in enumerate(parts)
        )

    @property
    def _brief(self) -> bool:
        return not self._display.verbosity

    def _tell_fine(self) -> None:
        """Write the line of a task that found all as wanted, or refused hosts."""
        name, refused = self._refused
        self._refused = ("", [])
        if refused:
            line = f"fatal: {name} [{_named(sorted(refused))}]: the reasons stand at the end"
            self._display.display(line, constants.COLOR_ERROR, stderr=self.get_option("display_failed_stderr"))
        task, hosts = self._fine
        self._fine = (None, [])
        if task is None:
            return
        who = _named(sorted(hosts))
        if self._last_task_banner == task._uuid:
            self._display.display(f"ok: [{who}]", color=constants.COLOR_OK)
        else:
            self._display.display(f"ok: {task.get_name().strip()} [{who}]", color=constants.COLOR_OK)

    # -- what begins -------------------------------------------------------------------------------------------

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Name the play when it has something to say: one without hosts is passed over."""
        self._tell_fine()
        self._awaited, self._play = None, play
        if not self._brief:
            super().v2_playbook_on_play_start(play)
            return
        # Where it goes over its hosts in batches, they tell one from the other.
        manager = play.get_variable_manager() if play.serial else None
        hosts = manager.get_vars(play=play).get("ansible_play_batch") if manager else None
        self._unnamed = f"PLAY [{play.get_name().strip()}{': ' + _named(hosts) if hosts else ''}]"

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Say that a play has no hosts, to those who want to know."""
        if self._brief:
            self._unnamed = ""
        else:
            super().v2_playbook_on_no_hosts_matched()

    def _task_start(self, task: Task, prefix: str | None = None) -> None:
        self._tell_fine()
        self._awaited = None
        super()._task_start(task, prefix)

    def v2_playbook_on_include(self, included_file: IncludedFile) -> None:
        """Name an included file to those who want to know."""
        if not self._brief:
            super().v2_playbook_on_include(included_file)

    def v2_runner_on_start(self, host: Host, task: Task) -> None:
        """Be ready for a task's progress."""
        if task.action in SHOW_PROGRESS and self._last_task_banner != task._uuid:
            self._awaited = task
        super().v2_runner_on_start(host, task)

    # -- what ends ---------------------------------------------------------------------------------------------

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Keep what is fine for one line, show the rest."""
        found, action = result.result, result.task.action.rpartition(".")[2]
        if not self._brief or found.get("changed") or "exception" in found:
            super().v2_runner_on_ok(result)
            return
        if self._run_is_verbose(result):
            if action in MESSAGES and isinstance(found.get("msg"), str):
                self._tell_message(result, found["msg"])
            else:
                super().v2_runner_on_ok(result)
            return
        self._handle_warnings_and_exception(result)
        if isinstance(result.task, TaskInclude) or action in SILENT:
            return
        if self._fine[0] is None or self._fine[0]._uuid != result.task._uuid:
            self._tell_fine()
            self._fine = (result.task, [])
        self._fine[1].append(result.host.get_name())

    def v2_runner_item_on_ok(self, result: CallbackTaskResult) -> None:
        """Show an item only if it is a change or a message."""
        if self._brief and not result.result.get("changed") and not self._run_is_verbose(result):
            self._handle_warnings_and_exception(result)
            return
        super().v2_runner_item_on_ok(result)

    def _tell_message(self, result: CallbackTaskResult, message: str) -> None:
        """Write what a task has to say as text."""
        if self._last_task_banner != result.task._uuid:
            self._print_task_banner(result.task)
        self._handle_warnings_and_exception(result)
        self._display.display(f"ok: [{self.host_label(result)}]", color=constants.COLOR_OK)
        lines = message.rstrip().splitlines()
        before = self._spoken.setdefault(result.task._uuid, 0)
        self._spoken[result.task._uuid] += 1
        if before >= NAMED and len(lines) > 1:
            lines = [f"{lines[0]} (-v shows {len(lines) - 1} more)"]
        for line in lines:
            self._display.display(f"    {line}".rstrip(), color=constants.COLOR_OK)

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """Show a failure; of one that says itself what is to be read, that."""
        found = result.result
        if self._told_later(result):
            return
        diagnosed = found["failure"] if isinstance(found.get("failure"), dict) else {}
        words = diagnosed or result.task.action.rpartition(".")[2] in MESSAGES
        if not (self._brief and words and isinstance(found.get("msg"), str)) or result.task.loop:
            super().v2_runner_on_failed(result, ignore_errors)
            return
        if self._last_task_banner != result.task._uuid:
            self._print_task_banner(result.task)
        self._handle_warnings(found)
        lines = [f"fatal: [{self.host_label(result)}]: FAILED!"]
        lines += [f"    {line}".rstrip() for line in found["msg"].rstrip().splitlines()]
        lines += [f"      | {line}" for line in diagnosed.get("evidence") or []]
        lines += [f"    Log: {path}" for path in [found.get("log_file")] if path]
        lines += ["...ignoring"] if ignore_errors else []
        for line in lines:
            self._display.display(line, constants.COLOR_ERROR, stderr=self.get_option("display_failed_stderr"))

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        """Show why a node is out of reach, and what to type."""
        found, host = result.result, self.host_label(result)
        if not self._brief or not isinstance(found.get("msg"), str):
            super().v2_runner_on_unreachable(result)
            return
        if self._told_later(result):
            return
        if self._last_task_banner != result.task._uuid:
            self._print_task_banner(result.task)
        self._handle_warnings(found)
        said = found["msg"].rstrip()
        # Preflight has put it into words already.
        told = connection.explain(said, name=host) if result.task.action != "preflight_report" else None
        words = f"{told.cause}; {told.remedy}" if told else said
        lines = [f"fatal: [{host}]: UNREACHABLE!", *(f"    {line}".rstrip() for line in words.splitlines())]
        lines += ["...ignoring"] if result.task.ignore_unreachable else []
        for line in lines:
            self._display.display(
                line, color=constants.COLOR_UNREACHABLE, stderr=self.get_option("display_failed_stderr")
            )

    def _told_later(self, result: CallbackTaskResult) -> bool:
        """Note a host that preflight refuses, where the report writes why in the last lines."""
        told = self._brief and "vllm_fleet_report" in constants.CALLBACKS_ENABLED and result.result.get("sentences")
        if told and result.task.action == "preflight_report":
            self._refused = (result.task.get_name().strip(), [*self._refused[1], self.host_label(result)])
        return bool(told)

    def v2_on_file_diff(self, result: CallbackTaskResult) -> None:
        """Show what differs."""
        self._differing = result.task._uuid
        self._coloured = True
        try:
            super().v2_on_file_diff(result)
        finally:
            self._coloured = False

    def _get_diff(self, difflist: Any) -> str:
        """Write a difference, once for all hosts of a task that have the same."""
        written: str = super()._get_diff(terminal.mapped(difflist, terminal.shown))
        seen = self._diffs.setdefault(self._differing, set())
        if self._brief and written in seen:
            return ""
        seen.add(written)
        return written

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Sum up."""
        self._tell_fine()
        self._unnamed = ""
        self._coloured = True
        try:
            super().v2_playbook_on_stats(stats)
        finally:
            self._coloured = False
