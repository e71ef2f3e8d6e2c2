# SPDX-License-Identifier: Apache-2.0
"""Callback: what a run did to the fleet, in a few lines on the terminal and as a page in reports/<run>/."""

from __future__ import annotations

import contextlib
import gc
import getpass
import json
import multiprocessing
import os
import platform
import re
import secrets
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible import constants, context
from ansible.errors import AnsibleError
from ansible.executor.module_common import modify_module
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import action_loader, filter_loader, lookup_loader, module_loader, test_loader

DOCUMENTATION = r"""
name: vllm_fleet_report
type: aggregate
short_description: Reports what a run did to the servers of the fleet
description:
  - Gathers the results of C(vllm_server), C(vllm_chat) and C(vllm_drained) and the times of all tasks.
  - At the end of a run prints a summary, and writes C(index.html) and C(report.json) into a folder of its own when a
    server was changed or measured, or a deployment failed. Runs that are about no server print nothing.
  - The C(index.html) beside these folders has all runs.
  - Gives every run an id, in the environment variable C(VLLM_FLEET_RUN) of the tasks' lookups.
  - A report that cannot be made is a warning, never a failed run.
requirements:
  - enable it in C(callbacks_enabled)
options:
  path:
    description: Folder of the reports; by default C(reports) beside the C(callback_plugins) folder.
    type: path
    env:
      - name: VLLM_FLEET_REPORTS
    ini:
      - section: callback_vllm_fleet_report
        key: path
  report_after:
    description:
      - A command that is run on the controller after a page was written, with the run's folder as its last argument,
        such as one that copies it to another place. It is no shell's; its failure is a warning.
    type: str
    default: ""
    env:
      - name: VLLM_FLEET_REPORT_AFTER
    ini:
      - section: callback_vllm_fleet_report
        key: report_after
"""

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import plugin_utils  # noqa: E402, F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common import probes  # noqa: E402
from fleet_report import build, index, telling  # noqa: E402  found only with the line above
from plugin_utils import module_archives, watchdog_program  # noqa: E402

#: Ansible's own code for an inventory or a playbook that cannot be read.
UNREAD = 4
#: Seconds for the user's command after a report.
AFTER = 300.0


class CallbackModule(CallbackBase):
    """Collects events while the run goes on, and reports them at its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "vllm_fleet_report"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Start the clock and name the run."""
        super().__init__()
        self._began, self._clock = time.time(), time.monotonic()
        self.run = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._began)) + "-" + secrets.token_hex(2)
        os.environ["VLLM_FLEET_RUN"] = self.run
        # What another run left in this shell is not ours.
        os.environ["VLLM_FLEET_RATES"] = "{}"
        self._events: list[dict[str, Any]] = []
        self._tasks: dict[str, Any] = {}
        #: What preflight's probe of each node found; of servers that need no task of their own it is the result.
        self._probed: dict[str, dict[str, Any]] = {}
        self._inventory: Any = None
        self._playbook = ""
        self._basedir = ""
        #: Names of what was given with -e.
        self._given: list[str] = []
        #: Whether the playbook probes nodes, and whether no variables of a host have been read yet.
        self._probes, self._unread = False, True
        #: What the archives of modules that are kept for the next run are made of.
        self._archives = ""

    def _now(self) -> float:
        return time.monotonic() - self._clock

    # -- events ------------------------------------------------------------------------------------------------

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Remember which playbook it is."""
        self._playbook, self._basedir = str(playbook._file_name), str(playbook._basedir)
        with contextlib.suppress(OSError):
            # For the plan's estimate, which a filter makes in a worker.
            os.environ["VLLM_FLEET_RATES"] = self._rates_file().read_text(encoding="utf-8")[:1000]
        self._archives = module_archives.restore(_archives())
        if module := _probing_module(playbook):
            self._probes = True
            _build_ahead(module)
        _load_for_workers()

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Remember the play's roles and every node it is meant for, also those of waves that never come."""
        hosts: list[str] = []
        manager = play.get_variable_manager()
        if manager is not None:
            self._inventory = manager._inventory
            self._given = sorted(manager.extra_vars)
            hosts = list(manager.get_vars(play=play).get("ansible_play_hosts_all") or [])
            try:
                self._read_first(manager)
            except AnsibleError as exc:  # Ansible itself would find it in a moment, and end with less to read
                self._display.banner("FLEET")
                self._display.display(telling.unread(str(exc), telling.source_of(exc)))
                raise SystemExit(UNREAD) from exc
        roles = [role.get_name().rpartition(".")[2] for role in play.get_roles()]
        self._events.append({"type": "play", "hosts": hosts, "roles": roles})

    def _read_first(self, manager: Any) -> None:
        """Read the variables of the first server, once. Raises AnsibleError where a file of them cannot be read.

        Where the servers have a watchdog, its program is made before the workers ask for it.
        """
        first, self._unread = self._unread, False
        group = manager._inventory.groups.get("vllm") if first else None
        for host in (group.get_hosts() if group else [])[:1]:
            if manager.get_vars(host=host).get("vllm_watchdog_enabled") and self._probes:
                watchdog_program.digest()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Note a task."""
        self._note_task(task)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Note a handler."""
        self._note_task(task)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Note when a node begins with a task."""
        self._note_task(task)
        self._events.append({"type": "start", "task": task._uuid, "host": host.get_name(), "at": self._now()})

    def v2_runner_on_ok(self, result: Any) -> None:
        """Note a result."""
        self._note(result, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Note a failure; a task may say that it does not count."""
        self._note(result, "failed", ignored=ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Note a node that does not answer."""
        self._note(result, "unreachable")

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Note what was skipped."""
        self._note(result, "skipped")

    def _note_task(self, task: Any) -> None:
        if task._uuid in self._tasks:
            return
        self._tasks[task._uuid] = task
        role = task._role.get_name().rpartition(".")[2] if getattr(task, "_role", None) else None
        self._events.append(
            {
                "type": "task",
                "task": task._uuid,
                "name": task.get_name().removeprefix(f"{role} : "),
                "role": role,
                "file": Path(str(task.get_path() or "").rpartition(":")[0]).stem,
                "action": task.action,
                "once": task.run_once is True,
                "at": self._now(),
            }
        )

    def _note(self, result: Any, status: str, *, ignored: bool = False) -> None:
        task, found = result._task, result._result
        self._note_task(task)
        self._events.append(
            self._event(task._uuid, task.action, result._host.get_name(), found, status, ignored=ignored)
        )
        if build.module_of(task.action) == "vllm_server":
            self._events[-1]["state"] = (task.args or {}).get("state")
            # In the loop over servers that are not described any more: which one.
            self._events[-1]["of"] = task.get_vars().get("rollout_remove")
        facts = found.get("ansible_facts")
        if isinstance(facts, Mapping):
            if probes.FACT in facts:
                self._probed[result._host.get_name()] = facts
            self._note_answered((facts.get("deploy_steps") or {}).get("answered") or ())

    def _note_answered(self, hosts: Iterable[str]) -> None:
        """Note what the probes of nodes found whose servers are visited by no task of their own."""
        for module in ("vllm_server", "vllm_chat") if hosts else ():
            name = f"Probe the server ({module})"
            task = {"task": name, "name": name, "role": "preflight", "file": "probe", "action": module}
            self._events.append({"type": "task", **task, "at": self._now()})
            for host in hosts:
                found = probes.probed(self._probed.get(host), module).get("result")
                if found:
                    self._events.append(self._event(name, module, host, found, "ok"))

    def _event(
        self, task: str, action: str, host: str, found: Mapping[str, Any], status: str, *, ignored: bool = False
    ) -> dict[str, Any]:
        return {
            "type": "result",
            "task": task,
            "host": host,
            "at": self._now(),
            "status": status,
            "changed": bool(found.get("changed")),
            "ignored": ignored,
            "state": None,
            # Only answers in check mode say how the server is: a question of a rollout, before it acts.
            "asked": "serving" in found and not context.CLIARGS.get("check"),
            "only_status": found.get("mode") == "status",
            "data": build.picked(action, found, failed=status in ("failed", "unreachable")),
        }

    # -- the end -----------------------------------------------------------------------------------------------

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Tell what happened."""
        if self._archives:
            module_archives.keep(_archives(), self._archives)
        try:
            self._tell(stats)
        except Exception as exc:  # noqa: BLE001  a run is not judged by its report
            self._display.warning(f"The report of this run could not be made: {type(exc).__name__}: {exc}")
            self._display.vvv(traceback.format_exc())
            self._tell_refusals({event["host"] for event in self._events if "host" in event})

    def _tell_refusals(self, hosts: Iterable[str]) -> None:
        """Say what preflight refuses of hosts that the report says nothing of: nothing else does."""
        for event in self._events:
            if event["type"] == "result" and event["host"] in hosts and event["data"].get("sentences"):
                self._display.display(str(event["data"].get("msg")))

    def _rates_file(self) -> Path:
        return Path(self.get_option("path") or ROOT / "reports") / "rates.json"

    def _tell(self, stats: Any) -> None:
        folder = Path(self.get_option("path") or ROOT / "reports") / self.run
        told = telling.tell(self._describe(stats), self._events, _short(folder / "index.html"))
        if told.left_out:
            self._display.warning(
                f"The report leaves out what {', '.join(told.left_out)} said: it has not the form of this project's "
                "results. Look at what runs there."
            )
            self._tell_refusals(told.left_out)
        if told.page is not None:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(told.report, indent=1, ensure_ascii=False)
            (folder / "report.json").write_text(f"{text}\n", encoding="utf-8")
            (folder / "index.html").write_text(told.page, encoding="utf-8")
            try:
                index.add(folder.parent, told.report)
            except Exception as exc:  # noqa: BLE001  files of another user, say: this run has its own page and lines
                self._display.warning(f"The page of all runs is not up to date: {type(exc).__name__}: {exc}")
            self._hand_on(folder)
        self._keep_rates(told.report.get("rates") or {})
        if told.lines:
            self._display.banner("FLEET")
        for line in told.lines:
            self._display.display(line)

    def _hand_on(self, folder: Path) -> None:
        """Run the user's command for a report that is written."""
        command = shlex.split(str(self.get_option("report_after") or ""))
        if not command:
            return
        try:
            done = subprocess.run(
                [*command, str(folder.absolute())],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=AFTER,
                check=False,
            )
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            why = f"it ended with code {done.returncode}: {' '.join(last)}" if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as exc:
            why = str(exc)
        if why:
            self._display.warning(f"report_after, {command[0]}: {why}. The report is in {folder}.")

    def _keep_rates(self, rates: Mapping[str, float]) -> None:
        """Keep how fast things came, for the estimates of later runs."""
        if not rates:
            return
        file = self._rates_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        before: Any = {}
        with contextlib.suppress(OSError, ValueError):
            before = json.loads(file.read_text(encoding="utf-8"))
        text = json.dumps({**(before if isinstance(before, dict) else {}), **rates})
        file.write_text(f"{text}\n", encoding="utf-8")

    def _describe(self, stats: Any) -> dict[str, Any]:
        hosts = sorted(stats.processed)
        options = context.CLIARGS
        tags = [tag for tag in options.get("tags") or () if tag != "all"]
        custom = stats.custom
        return {
            "id": self.run,
            "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self._began)),
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "elapsed": round(self._now(), 3),
            "playbook": self._playbook,
            "inventory": [_short(Path(str(source))) for source in options.get("inventory") or ()],
            "limit": options.get("subset"),
            "tags": tags,
            "extra_vars": self._given,
            "check_mode": bool(options.get("check")),
            "by": f"{getpass.getuser()}@{platform.node()}",
            "configuration": self._configuration(),
            **self._verdict(stats),
            "failed": [host for host in hosts if stats.failures.get(host)],
            "unreachable": [host for host in hosts if stats.dark.get(host)],
            "machines": self._machines(),
            "gateway_hosts": self._gateway_hosts(),
            "benchmarks": {h: custom[h]["vllm_benchmark"] for h in custom if "vllm_benchmark" in (custom[h] or {})},
        }

    def _verdict(self, stats: Any) -> dict[str, Any]:
        """Return that the run judges a deployment, and what to type where nothing speaks against one."""
        if Path(self._playbook).stem != "preflight":
            return {}
        judged = any(event["type"] == "result" and event["data"].get("findings") for event in self._events)
        fine = judged and not stats.failures and not stats.dark
        return {"judges": True, **({"next": _deployment(sys.argv, self._playbook)} if fine else {})}

    def _machines(self) -> dict[str, str]:
        """Return the node of each host that shares one, where the host itself has vllm_node."""
        group = self._inventory.groups.get("vllm") if self._inventory is not None else None
        hosts = group.get_hosts() if group else []
        return {host.name: str(host.vars["vllm_node"]) for host in hosts if host.vars.get("vllm_node")}

    def _gateway_hosts(self) -> list[str]:
        group = self._inventory.groups.get("gateway") if self._inventory is not None else None
        return [host.name for host in group.get_hosts()] if group else []

    def _configuration(self) -> dict[str, Any] | None:
        """Read it where the records of this run have it from, so that both always agree."""
        sources = [Path(str(source)) for source in context.CLIARGS.get("inventory") or ()]
        folders = [source if source.is_dir() else source.parent for source in sources if source.exists()]
        ask = filter_loader.get("vllm_configuration").j2_function
        found: dict[str, Any] = ask(str(folders[0]) if folders else "", self._basedir)
        return found


def _deployment(argv: Sequence[str], playbook: str) -> str:
    """Return the command of a deployment as the words ``argv`` of a preflight were meant for it.

    VLLM_FLEET_BEGUN is set by what took the user's words: `make` or `vllm-fleet`. A secret among the words is left out
    where the line is shown.
    """
    words = [word for word in argv[1:] if word != playbook and not re.fullmatch(r"-v+|--verbose", word)]
    words = [word for word in words if Path(word).name != Path(playbook).name]
    begun = os.environ.get("VLLM_FLEET_BEGUN")
    if begun == "make" and words[:1] == ["-i"] and len(words) > 1:
        more = f" ARGS={shlex.quote(shlex.join(words[2:]))}" if words[2:] else ""
        return f"make deploy INVENTORY={shlex.quote(words[1])}{more}"
    if begun == "vllm-fleet":
        return shlex.join(["vllm-fleet", "deploy", *words])
    return shlex.join(["ansible-playbook", *words, _short(ROOT / "deploy.yml")])


def _load_for_workers() -> None:
    """Load what the workers would load.

    A worker is a fork of this process for one task on one host. Ansible leaves the loading of filters and tests to the
    first that needs one, which is always a worker: each would read all files again, at some 70 ms of a processor.
    """
    for loader, needed in ((filter_loader, "vllm_preset"), (test_loader, "ansible.builtin.file")):
        loader.get(needed)
    # Keeps the presets of models/ in this process, too.
    presets = filter_loader.get("vllm_preset")
    if presets is not None:
        presets.j2_function("")
    check = action_loader.get("preflight_host", class_only=True)
    if check is not None:
        sys.modules[check.__module__].preload(ROOT / "roles")
    for name in ("env", "file", "template", "vars"):
        lookup_loader.get(f"ansible.builtin.{name}", class_only=True)
    lookup_loader.get("vllm_fleet_options", class_only=True)
    gc.freeze()


def _probing_module(playbook: Any) -> str | None:
    """Return the module by which a playbook probes the nodes (see the action preflight_host); None where none does."""

    def tasks(blocks: Iterable[Any]) -> Iterable[Any]:
        for one in blocks:
            yield from tasks(one.block) if hasattr(one, "block") else (one,)

    for play in playbook.get_plays():
        for task in tasks(play.tasks):
            if build.module_of(task.action) == "preflight_host":
                return "node_probe" if "preflight_ask" in task.get_vars() else "preflight_host"
    return None


def _build_ahead(module: str) -> None:
    """Have Ansible build a module's archive in a process of its own while this one goes on.

    The first worker would build it, at half a second of a processor, and all others would wait for it. It is put where
    the workers look, by Ansible's own function and under its own lock. Where that fails, the first worker builds it.
    Where an earlier run has built it of the same files, there is nothing to do.
    """
    if any(_archives().glob(f"ansible.legacy.{module}-*")):
        return
    multiprocessing.get_context("fork").Process(target=_build_archive, args=(module,), daemon=True).start()


def _archives() -> Path:
    """Return where Ansible looks in this run for the archive of a module."""
    return Path(constants.DEFAULT_LOCAL_TMP) / "ansiballz_cache"


def _build_archive(module: str) -> None:
    # What it would say is said by the worker that needs the archive.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    # Ansible comes to the node's interpreter when the archive is there.
    with contextlib.suppress(Exception):
        modify_module(
            module_name=module,
            module_path=module_loader.find_plugin(module),
            module_args={},
            templar=None,
            module_compression=constants.config.get_config_value("DEFAULT_MODULE_COMPRESSION"),
        )


def _short(path: Path) -> str:
    """Write a path from here where it is below, else whole."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
