# SPDX-License-Identifier: Apache-2.0
"""Callback: ends a run at its start where the command line or the controller is wrong, before any node is asked."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ansible import constants, context
from ansible.errors import AnsibleError
from ansible.inventory.manager import IGNORED
from ansible.plugins.callback import CallbackBase
from ansible.release import __version__ as ANSIBLE
from ansible.utils.vars import load_extra_vars

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plugin_utils import inventory_files

if TYPE_CHECKING:
    from ansible.playbook import Playbook
    from ansible.playbook.play import Play

DOCUMENTATION = r"""
name: vllm_fleet_start
type: notification
short_description: Ends a run at its start where the command line or the controller is wrong
description:
  - Refuses an C(ansible-core) older than the tested one and a missing collection, and for this project's own playbooks
    an inventory that does not exist or cannot be read, one without a host in group C(vllm), a tag that none of them
    has, and a name after C(--limit) that the inventory does not have.
  - Refuses what Ansible only warns of and leaves out. In the inventory's files of YAML these are a name that stands
    twice, a key of a group besides hosts, vars and children, variables of a host that are none, and a file that no
    plugin could read. The exit code is 4 then, as for any inventory that Ansible cannot read.
  - Warns where they run without this project's C(ansible.cfg).
  - Ansible itself warns of these, or says nothing, and ends with exit code 0.
  - With C(-e status_watch=5) C(playbooks/status.yml) becomes C(scripts/health --watch 5); a play writes headers.
  - Has each line of the output written at once, also into a pipe.
requirements:
  - none; it is loaded from C(callback_plugins) without being enabled
"""

#: Ansible's own code for an inventory that cannot be read.
UNREAD = 4
ROOT = Path(__file__).resolve().parent.parent
#: The oldest ansible-core that the tests run with. Older ones know other results: the output is lost, the exit code 0.
OLDEST = (2, 19)
#: What the roles take modules from; requirements.yml has the versions.
COLLECTIONS = ("ansible.posix", "community.docker", "community.general")
#: Tags of the playbooks, and Ansible's own words beside them.
TAGS = ("preflight", "prepare", "stage", "rollout", "verify", "watchdog")
#: No run may leave these out: what it does rests on what they find.
NEEDED = ("preflight", "always")
OF_ANSIBLE = ("all", "always", "never", "tagged", "untagged")
#: What status_watch hands on, by Ansible's own names, each as one word. Forks are as many as there are hosts.
WATCHED_WITH = {
    "inventory": "--inventory",
    "subset": "--limit",
    "extra_vars": "--extra-vars",
    "vault_ids": "--vault-id",
    "vault_password_files": "--vault-password-file",
    "connection": "--connection",
    "connection_password_file": "--connection-password-file",
    "private_key_file": "--private-key",
    "remote_user": "--user",
    "ssh_common_args": "--ssh-common-args",
    "ssh_extra_args": "--ssh-extra-args",
    "become_method": "--become-method",
    "become_password_file": "--become-password-file",
    "become_user": "--become-user",
}
ASK = {"ask_pass": "--ask-pass", "become_ask_pass": "--ask-become-pass", "ask_vault_pass": "--ask-vault-pass"}


def own_configuration() -> bool:
    """Whether Ansible has read this project's ansible.cfg, or another one that enables the report."""
    file = constants.CONFIG_FILE
    return "vllm_fleet_report" in constants.CALLBACKS_ENABLED or bool(file and Path(file).resolve().parent == ROOT)


def nearest(word: str, known: Iterable[str]) -> str:
    """Name the known word that ``word`` resembles most; "" if it resembles none."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), "")


def version_fault(found: str) -> str:
    """Say in a sentence why this ansible-core is refused; "" if it is not. A newer one than the tested passes."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if numbers >= OLDEST:
        return ""
    oldest = ".".join(map(str, OLDEST))
    return (
        f"ansible-core {found} is too old: {oldest} or newer is needed; run `make deploy`, it has its own, or install"
        f" it (pip install -r {ROOT / 'requirements.txt'})"
    )


def collections_fault(names: Iterable[str] = COLLECTIONS) -> str:
    """Say in a sentence which collections are missing; "" if none is."""
    missing = [name for name in names if not _found(name)]
    if not missing:
        return ""
    return (
        f"this Ansible lacks {', '.join(missing)}; install what is missing"
        f" (ansible-galaxy collection install -r {ROOT / 'requirements.yml'})"
    )


def _found(collection: str) -> bool:
    """Whether Ansible finds a collection. It is not imported: with that Ansible reads all of its redirections."""
    try:
        return importlib.util.find_spec(f"ansible_collections.{collection}") is not None
    except ImportError:  # no other collection of that namespace
        return False


def inventory_fault(sources: Iterable[str], here: Path) -> str:
    """Say in a sentence which inventory does not exist; "" if all do. One with commas is a list of hosts."""
    for source in sources:
        path = here / source
        if "," in source or path.exists():
            continue
        beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, beside)
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        advice = f"the nearest is {shown.with_name(near)}" if near else "give the path of a file or a folder that does"
        return f"the inventory {shown} does not exist; {advice}"
    return ""


def tags_fault(option: str, given: Iterable[str]) -> str:
    """Say in a sentence which tag no task has; "" if all are known. ``option`` is the word of the command line."""
    known = {*TAGS, *OF_ANSIBLE}
    for tag in given:
        if option == "--skip-tags" and tag in NEEDED:
            return (
                f"{tag} cannot be left out (--skip-tags), because a run rests on what it finds; preflight_accept makes"
                " a warning of a refusal that you know"
            )
        if tag in known:
            continue
        near = nearest(tag, TAGS)
        advice = f"the nearest is {near}" if near else f"there are {', '.join(TAGS)}"
        return f"no task has the tag {tag} ({option}); {advice}"
    return ""


def limit_fault(given: str, known: Iterable[str]) -> str:
    """Say in a sentence which name of --limit is none of the inventory's; "" if all are. Patterns are not looked at."""
    known = {*known, "localhost"}  # which Ansible has besides
    for word in given.split(","):
        name = word.strip().lstrip("!&")
        if name in known or not re.fullmatch(r"[\w.-]+", name):
            continue
        near = nearest(name, known - {"all", "ungrouped"})
        advice = f"the nearest is {near}" if near else "`ansible-inventory --graph` shows what there is"
        return f"the inventory has no host and no group {name} (--limit); {advice}"
    return ""


def watch_fault(options: Mapping[str, Any], seconds: object) -> str:
    """Say in a sentence why status_watch is refused; "" if it is not."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", str(seconds)):
        return f"status_watch wants whole seconds above 0, as in -e status_watch=5; got {str(seconds)!r}"
    asks = [word for name, word in ASK.items() if options.get(name)]
    asks += [
        f"--vault-id {one}" for one in options.get("vault_ids") or () if str(one).split("@")[-1].startswith("prompt")
    ]
    if not asks:
        return ""
    return (
        f"{asks[0]} would ask at every look of status_watch; name a file with the password"
        " (--vault-password-file, --become-password-file, --connection-password-file)"
    )


def watch_command(options: Mapping[str, Any], seconds: object) -> list[str]:
    """Return the command that shows the fleet live, with what the command line said of inventory, users and secrets."""
    words = [str(ROOT / "scripts/health"), "--watch", str(int(str(seconds)))]
    for name, word in WATCHED_WITH.items():
        given = options.get(name) or ()
        words += [f"{word}={one}" for one in ([given] if isinstance(given, str) else given)]
    return words


def unread_fault(sources: Iterable[str], load: Callable[[str], object]) -> str:
    """Say in a sentence which file of the inventory cannot be read, and where; "" if all can.

    ``load`` reads a file of YAML as Ansible does. Other files are a matter of the plugin that they are for.
    """
    for source in (Path(one) for one in sources):
        files = sorted(source.iterdir()) if source.is_dir() else [source]
        for file in files:
            if file.suffix not in (".yml", ".yaml") or not file.is_file():
                continue
            try:
                load(str(file))
            except AnsibleError as exc:
                where = str(getattr(exc, "_formatted_source_context", None) or file).strip().partition("\n")[0]
                said = " ".join(str(exc).split()).rstrip(".")
                return f"the inventory cannot be read: {where.removeprefix('Origin: ')}: {said}"
    return ""


def ignored(name: str) -> bool:
    """Return whether Ansible leaves a file out of the sources in a folder because of its name."""
    return bool(IGNORED.search(os.fsencode(name)))


def lost_fault(said: list[str]) -> str:
    """Make a sentence, or a list, of what Ansible leaves out of the inventory; "" if that is nothing."""
    if len(said) < 2:
        return f"Ansible leaves out a part of this inventory: {said[0]}" if said else ""
    return "Ansible leaves out parts of this inventory:\n  " + "\n  ".join(said) + "\nCorrect them"


def unparsed_fault(sources: Iterable[str], parsed: Iterable[object]) -> str:
    """Say in a sentence which file of hosts no plugin of Ansible could read; "" if all were read.

    A folder's files that are no such list by their name (a README, a password) are none of this.
    """
    known = {str(one) for one in parsed}
    for source in sources:
        path = Path(source)
        if "," in source or source in known or not path.exists():
            continue
        files = [path] if path.is_file() else sorted(path.iterdir())
        for file in files:
            named = file == path or file.suffix in (".yml", ".yaml", ".json", ".toml") or file.name == "hosts"
            if not named or not file.is_file() or (file != path and ignored(file.name)):
                continue
            if str(file) not in known and not inventory_files.empty(file):
                return (
                    f"the inventory is read only in part: Ansible could not read {file} as a list of hosts; the"
                    " warnings above say why"
                )
    return ""


class CallbackModule(CallbackBase):
    """Judges the command line when the playbook is read, and the inventory when a play asks for its servers."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "vllm_fleet_start"

    def __init__(self) -> None:
        """Know no playbook yet."""
        super().__init__()
        self._ours = False
        #: Whether the inventory's files were judged; once is enough.
        self._judged = False

    def v2_playbook_on_start(self, playbook: Playbook) -> None:
        """End the run where it cannot become what was meant."""
        # Ansible leaves it to Python, which keeps 8 kB back from a pipe: stages and followed lines came much later.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)
        options = context.CLIARGS
        file = Path(str(playbook._basedir), str(playbook._file_name).rpartition("/")[2]).resolve()
        # A playbook that somebody else wrote has tags and groups of its own, and may make its inventory.
        self._ours = file.parent == ROOT / "playbooks" or file == ROOT / "deploy.yml"
        fault = version_fault(ANSIBLE) or collections_fault()
        if not fault and self._ours:
            fault = inventory_fault([str(one) for one in options.get("inventory") or ()], Path.cwd())
            fault = fault or tags_fault("--tags", options.get("tags") or ())
            fault = fault or tags_fault("--skip-tags", options.get("skip_tags") or ())
        if not fault and self._ours and file.name == "status.yml":
            seconds = load_extra_vars(playbook._loader).get("status_watch")
            fault = "" if seconds is None else watch_fault(options, seconds)
            if seconds is not None and not fault:
                self._watch(watch_command(options, seconds))
        if fault:
            self._end(fault)
        if self._ours:
            self._judge_files(playbook)
        if self._ours and not own_configuration():
            self._display.warning(
                "This run lacks the settings of this project: its output is long, and no report stands at its end."
                f" Set ANSIBLE_CONFIG={ROOT / 'ansible.cfg'}, or use {ROOT / 'bin/vllm-fleet'}."
            )

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """End the run where its servers are looked for in an inventory that has none."""
        manager = play.get_variable_manager()
        if not self._ours or manager is None:
            return
        inventory = manager._inventory
        if not self._judged:
            self._judged = True
            fault = unparsed_fault(inventory._sources, inventory._inventory.processed_sources)
            if fault:
                self._end(fault, UNREAD)
        if play.hosts != ["vllm"]:
            return
        if not manager.get_vars(play=play)["groups"].get("vllm"):
            self._end(
                unread_fault(inventory._sources, inventory._loader.load_from_file)
                or "the inventory has no host in group vllm; put the serving nodes into it, as inventory/tensorwave "
                "does"
            )
        fault = limit_fault(str(context.CLIARGS.get("subset") or ""), [*inventory.hosts, *inventory.groups])
        if fault:
            self._end(fault)

    def _judge_files(self, playbook: Playbook) -> None:
        """End the run where Ansible leaves out what the inventory's files say."""
        sources = [str(one) for one in context.CLIARGS.get("inventory") or ()]
        folders = [Path(one) if Path(one).is_dir() else Path(one).parent for one in sources if "," not in one]
        said, broken = inventory_files.judge(
            inventory_files.yaml_sources(sources, ignored),
            inventory_files.variables_files([*folders, Path(str(playbook._basedir))]),
            Path.cwd(),
        )
        fault = unread_fault([str(one) for one in broken], playbook._loader.load_from_file) or lost_fault(said)
        if fault:
            if os.environ.get("VLLM_FLEET_VERDICT") and not broken:  # scripts/preflight makes its exit code of it
                Path(os.environ["VLLM_FLEET_VERDICT"]).write_text("refused\n", encoding="utf-8")
            self._end(fault, UNREAD)

    def _watch(self, command: list[str]) -> NoReturn:
        """Become the program that shows the fleet live: Ctrl-C is its own then, and nothing else writes there."""
        environ = {**os.environ, "PATH": f"{Path(sys.argv[0]).absolute().parent}:{os.environ.get('PATH', os.defpath)}"}
        if constants.CONFIG_FILE:
            environ["ANSIBLE_CONFIG"] = str(constants.CONFIG_FILE)
        # Ansible removes it at its end, which does not come.
        shutil.rmtree(constants.DEFAULT_LOCAL_TMP, ignore_errors=True)
        # Ansible keeps its terminal from all that it starts.
        for handle in (0, 1, 2):
            with contextlib.suppress(OSError):
                os.set_inheritable(handle, True)
        sys.stdout.flush()
        os.execve(command[0], command, environ)  # noqa: S606

    def _end(self, fault: str, code: int = 1) -> NoReturn:
        """End the process: Ansible makes a warning of a callback's exception, but not of this one."""
        self._display.error(f"{fault[0].upper()}{fault[1:]}. Nothing was touched.", wrap_text=False)
        raise SystemExit(code)
