"""Ansible's own output, with the banner of a long task above its progress lines instead of below them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ansible.plugins.callback.default import CallbackModule as Default

if TYPE_CHECKING:
    from ansible.inventory.host import Host
    from ansible.playbook.task import Task

DOCUMENTATION = r"""
name: vllm_fleet_stdout
type: stdout
short_description: Ansible's default output for tasks that show progress
description:
  - Where skipped hosts are not shown, the default output waits with a task's banner for the first result. The progress
    lines of a task that runs for minutes would come before its name. This one writes the banner of those tasks when
    they start; everything else is the default's.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - set as stdout in configuration
"""

# The project's action plugins write lines while their tasks run.
ACTION_PLUGINS = Path(__file__).resolve().parent.parent / "action_plugins"
SHOW_PROGRESS = frozenset(file.stem for file in ACTION_PLUGINS.glob("*.py"))


class CallbackModule(Default):
    """The default output, banners of long tasks first."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "vllm_fleet_stdout"

    def v2_runner_on_start(self, host: Host, task: Task) -> None:
        """Write the banner when the first host begins."""
        if task.action in SHOW_PROGRESS and self._last_task_banner != task._uuid:
            self._print_task_banner(task)
        super().v2_runner_on_start(host, task)
