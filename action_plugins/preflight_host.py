# SPDX-License-Identifier: Apache-2.0
"""Controller side of preflight_host: the inventory, the way to the node, the node; what fails becomes a finding."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common import finding, probes
from ansible.module_utils.vllm_fleet.common.finding import Finding
from ansible.module_utils.vllm_fleet.common.finding import told as told_finding
from ansible.module_utils.vllm_fleet.container import archive
from ansible.module_utils.vllm_fleet.gateway import pools, watching
from ansible.module_utils.vllm_fleet.host import gpu
from ansible.module_utils.vllm_fleet.preflight import connection, controller, flags, inventory, role_specs
from ansible.module_utils.vllm_fleet.preflight import values as of_values
from ansible.module_utils.vllm_fleet.vllm import host_variables
from plugin_utils import driver_releases, planned, role_options
from plugin_utils.variables import Variables

#: Asked of the connecting user's shell in one go. Root's rights are tried only where they would be needed.
_QUESTION = """printf 'uid=%s\\nuser=%s\\nhome=%s\\n' "$(id -u)" "$(id -un)" "$HOME"
printf 'python=%s\\n' "$({python} -c 'import platform; print(platform.python_version())' 2>/dev/null)"
for one in {sysfs}/bus/pci/devices/*; do
  [ "$(cat "$one/vendor" 2>/dev/null)" != 0x1002 ] || printf 'pci=%s\\n' "$(cat "$one/device" 2>/dev/null)"
done
[ "$(id -u)" = 0 ] || [ {password} = 1 ] || sudo -n true 2>/dev/null || echo root=no"""

#: Bytes of a file of variables that somebody has written.
_LARGEST = 1 << 20

_ROOT = "root's rights, to install Docker and to run the server"


class ActionModule(ActionBase):
    """Never fails because of what it finds; preflight_report does, when all nodes have been seen."""

    TRANSFERS_FILES = False

    #: Whether the options are the role's, and whether those that lean on the kind of GPU have been taken.
    _of_role = False
    _later = False

    #: Variables of another kind than the roles take: nothing can be worked out of them.
    _odd: frozenset[str] = frozenset()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Look at everything, judge it together."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = dict(self._task.args)
        self._of_role = boolean(args.pop("of_role", False))
        mine = self._inventory(variables) if boolean(args.get("inventory", True)) else []
        refused = {one.what for one in mine if one.level == "refused"}
        answer: dict[str, Any] = {}
        more: list[Finding] = []
        try:
            args = self._options(args, variables, refused)
            answer = self._node(args, variables, more)
        except (AnsibleConnectionFailure, _Unreachable) as exc:
            more.append(_failed(str(exc), self._way(), "connection"))
        except AnsibleError as exc:
            # What leans on variables of a wrong kind cannot be worked out: their own finding says it.
            if not self._odd and not refused & {"vllm_server_args", "vllm_server_env", "vllm_server_adapters"}:
                more.append(_failed(str(exc), self._way(), "look"))
        resting = str(answer.get("maintenance") or "")
        if resting:
            more = [inventory.resting(resting)]
        else:
            more += self._controller(variables, answer, reached=bool(answer))
            if "vllm_server" in (args.get("ask") or []) and not probes.probed(
                answer.get("ansible_facts"), "vllm_server"
            ):
                more += self._flags(variables, reached=bool(answer))
        if not self._later:
            with contextlib.suppress(AnsibleError):  # what was to be known of the node before it was lost
                self._late(args, Variables(self._templar, variables), more)
        # What is judged again beside the model's preset.
        more = [one for one in more if one.what not in refused]
        mine, more = _one_of_the_model(mine, more)
        found = finding.accept([*mine, *more], args.get("accept") or [])
        result.update(
            answer,
            changed=False,
            findings=[asdict(one) for one in found],
            worst=finding.worst(found),
            refusals=[one.sentence for one in found if one.level in finding.ENDING],
        )
        return result

    def _options(self, args: dict[str, Any], variables: dict[str, Any], refused: set[str]) -> dict[str, Any]:
        """Return the options of the look at the node: those of the task over the role's."""
        if self._of_role:
            args = {**role_options.made(role_options.preflight, Variables(self._templar, variables)), **args}
        # A fault of the inventory is reported once, and not probed on the node as well.
        if "vllm_server_port" in refused:
            args["port"] = 0
        if "hf_cache_path" in refused:
            args.pop("cache", None)
        for name in self._odd:
            args.pop(name.removeprefix("preflight_"), None)
        if args.get("archive"):
            args["archive"] = _archive(dict(args["archive"]))
        return args

    # -- the inventory

    def _inventory(self, variables: Mapping[str, Any]) -> list[Finding]:
        values = self._values(variables)
        found = of_values.judge({one: value for one, value in values.items() if not isinstance(value, inventory.Unset)})
        odd = {one.what for one in found}
        found += [one for one in inventory.judge(values) if one.what not in odd]
        known = {one.what for one in found if one.level == "refused"}
        open_to_all = inventory.published(values, self._gateways(variables))
        if open_to_all and "vllm_server_bind" not in known:
            found.append(open_to_all)
        if host_variables.unread_servers(variables):
            got = "a host that has vllm_servers and is one server"
            found.append(Finding("refused", "vllm_servers", "a host for each server", got, host_variables.READ_SERVERS))
        specified = self._specified(variables)
        self._odd = frozenset(one.what for one in specified)
        # What is refused is not good as well: of an empty value inventory.judge sees the role's own.
        found = [one for one in found if one.what in known or one.what not in self._odd]
        found += [one for one in specified if one.what not in known]
        hosts = list(variables.get("ansible_play_hosts_all") or [])
        found += self._misspelt(variables, hosts)
        found += self._doors(variables)
        # Gateways are in no play of preflight: reported once, for the first node.
        if hosts and variables.get("inventory_hostname") == hosts[0]:
            found += of_values.in_plain_text(_texts(variables))
            for name in (variables.get("groups") or {}).get("gateway") or []:
                found += self._gateway(variables, name)
        replica = values.get("vllm_server_replica")
        if isinstance(replica, str) and replica:
            members = self._members(variables, replica, hosts)
            found.append(inventory.replica(replica, members))
        # A list of waves belongs to the fleet: reported once, for the first node.
        if hosts and variables.get("inventory_hostname") == hosts[0] and "rollout_waves" in values:
            given = values["rollout_waves"]
            if not isinstance(given, inventory.Unset) and "rollout_waves" not in self._odd:
                found.append(inventory.waves(given))
        return found

    def _doors(self, variables: Mapping[str, Any]) -> list[Finding]:
        """Judge the ports of gateways that are on this host's machine."""
        names, host = (variables.get("groups") or {}).get("gateway") or [], str(variables["inventory_hostname"])

        def address(name: str) -> tuple[str, str]:
            given = self._of(variables, name, "ansible_host")
            return str(given or name), str(self._of(variables, name, "ansible_port") or 22)

        gateways = {}
        for name in names:
            own = self._of(variables, name, "gateway_ports")
            ports = [("gateway_ports", port) for port in own.values()] if isinstance(own, Mapping) else []
            # Where models have ports of their own, the one for all may not be opened.
            ports = ports or [("gateway_port", self._of(variables, name, "gateway_port") or 8080)]
            bind = self._of(variables, name, "gateway_bind") or inventory.EVERYWHERE
            gateways[name] = {"address": address(name), "bind": bind, "ports": ports}
        if not gateways or self._of(variables, host, "vllm_server_replica"):
            return []
        mine = {
            "address": address(host),
            "bind": self._of(variables, host, "vllm_server_bind") or "127.0.0.1",
            "port": self._of(variables, host, "vllm_server_port") or host_variables.PORT,
        }
        return of_values.doors(gateways, {host: mine}).get(host, [])

    def _values(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in dict.fromkeys((*inventory.VARIABLES, *of_values.VARIABLES)):
            if name in variables:
                try:
                    values[name] = self._templar.template(variables[name])
                except AnsibleError as exc:
                    values[name] = inventory.Unset(_line(str(exc)))
        return values

    def _specified(self, variables: Mapping[str, Any]) -> list[Finding]:
        """Hold what the user has set against the specifications of the roles beside this one."""
        folder = Path(str(variables.get("role_path") or "")).resolve().parent
        found = []
        for role in role_specs.ROLES:
            page = folder / role / "meta/argument_specs.yml"
            if not page.is_file():
                continue
            defaults = _read(folder / role / "defaults/main.yml") or {}
            options = _read(page)["argument_specs"]["main"].get("options", {})
            options = {name: {**one, "default": defaults.get(name)} for name, one in options.items()}
            names = role_specs.given(options, defaults, variables)
            values = {}
            for name in names:
                with contextlib.suppress(AnsibleError):  # reported where it is needed
                    values[name] = self._templar.template(variables[name])
            found += role_specs.judge(options, values)
        return found

    def _misspelt(self, variables: Mapping[str, Any], hosts: list[str]) -> list[Finding]:
        """Hold the names that the inventory and the command line set against those that the roles know."""
        folder = Path(str(variables.get("role_path") or "")).resolve().parent
        pages = [
            page for page in (folder / role / "meta/argument_specs.yml" for role in role_specs.OWN) if page.is_file()
        ]
        if len(pages) < len(role_specs.OWN):
            return []  # some roles alone: what the others know is unknown
        known = role_specs.ALSO_KNOWN.union(
            *(entry.get("options") or {} for page in pages for entry in _read(page)["argument_specs"].values())
        )
        # Without the play's context: no role's own defaults and variables are among them.
        mine = set(variables["hostvars"].raw_get(variables["inventory_hostname"]))
        found = role_specs.misspelt(mine, known)
        # Gateways are in no play of preflight: reported once, for the first node.
        if hosts and variables.get("inventory_hostname") == hosts[0]:
            groups = variables.get("groups") or {}
            found += role_specs.misnamed(groups)
            for place in dict.fromkeys(str(variables.get(one) or "") for one in ("inventory_dir", "playbook_dir")):
                for kind in ("group_vars", "host_vars") if place else ():
                    with contextlib.suppress(OSError):  # most have none
                        names = [one.name for one in (Path(place) / kind).iterdir()]
                        found += inventory.shadowed(kind, names)
                        found += inventory.orphans(
                            kind, names, groups if kind == "group_vars" else variables["hostvars"]
                        )
            gateways = groups.get("gateway") or []
            theirs = {host: set(variables["hostvars"].raw_get(host)) - mine for host in gateways}
            for name in sorted(set().union(*theirs.values())):
                where = ", ".join(host for host, names in theirs.items() if name in names)
                found += role_specs.misspelt([name], known, where=where)
            if gateways:
                page = folder / "gateway/meta/argument_specs.yml"
                options = _read(page)["argument_specs"]["main"]["options"]
                found += role_specs.misplaced(
                    mine, options, [set(variables["hostvars"].raw_get(host)) for host in gateways]
                )
        return found

    def _gateway(self, variables: Mapping[str, Any], name: str) -> list[Finding]:
        """Judge the variables of a gateway that takes part, which its role reads when weights are there already."""
        folder = Path(str(variables.get("role_path") or "")).resolve().parent / "gateway"
        page, raw = folder / "meta/argument_specs.yml", variables["hostvars"].raw_get(name)
        if not raw.get("gateway_takes_part") or not page.is_file():
            return []
        options, defaults = _read(page)["argument_specs"]["main"]["options"], _read(folder / "defaults/main.yml")
        try:
            values = {one: variables["hostvars"][name].get(one) for one in options if one in raw}
        except AnsibleError as exc:
            remedy = "define it where the gateway sees it: group_vars/gateway, or group_vars/all"
            return [Finding("refused", name, "variables with values", _line(str(exc)), remedy)]
        options = {one: {**option, "default": defaults.get(one)} for one, option in options.items()}
        found, given = role_specs.judge(options, values, words=True), {**defaults, **values}
        # Words for a list or a dictionary (-e) are the role's to read.
        if not found and not any(
            isinstance(defaults[one], (list, dict)) and isinstance(given[one], str) for one in defaults
        ):
            # Of a node, where it is reported: it has no value, or one of another kind.
            with contextlib.suppress(AnsibleError, AttributeError, TypeError, ValueError):
                serving = variables["groups"].get("vllm") or []
                problems = pools.client_problems(variables["hostvars"], serving, name, given)
                watched = variables["groups"].get("monitoring") or []
                opened = watching.behind(variables["hostvars"], watched, name, given)["problems"]
                found = [
                    Finding("refused", name, wanted, text, "correct it")
                    for wanted, texts in (("clients and models that fit", problems), ("a guarded Prometheus", opened))
                    for text in texts
                ]
        return found

    @staticmethod
    def _of(variables: Mapping[str, Any], host: str, name: str) -> Any:
        try:
            return variables["hostvars"][host].get(name)
        except AnsibleError:
            return None

    def _gateways(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the gateways listen on that ask clients for no key of their own."""
        names = (variables.get("groups") or {}).get("gateway") or []
        return {
            name: self._of(variables, name, "gateway_bind") or inventory.EVERYWHERE
            for name in names
            # As they stand there: their vault may be out of reach, and the role gateway judges them.
            if not variables["hostvars"].raw_get(name).get("gateway_keys")
        }

    def _members(self, variables: Mapping[str, Any], replica: str, hosts: list[str]) -> dict[str, dict[str, Any]]:
        members = [host for host in hosts if self._of(variables, host, "vllm_server_replica") == replica]
        return {host: {name: self._of(variables, host, name) for name in inventory.OF_A_REPLICA} for host in members}

    def _flags(self, variables: Mapping[str, Any], *, reached: bool) -> list[Finding]:
        """Judge flags for an image that was not asked itself, because it or what comes before it is missing."""
        values = self._values(variables)
        args, tag = values.get("vllm_server_args"), values.get("vllm_image_tag")
        found = flags.judge(args, str(tag or "")) if isinstance(args, Mapping) else []
        return [one for one in found if reached or one.level == "refused"]

    # -- the controller

    def _controller(self, variables: dict[str, Any], answer: Mapping[str, Any], *, reached: bool) -> list[Finding]:
        """Judge the controller: what this node needs of it, and with the first node what the whole run needs."""
        found: list[Finding] = []
        hosts = list(variables.get("ansible_play_hosts_all") or [])
        if hosts and variables.get("inventory_hostname") == hosts[0]:
            found += self._of_the_run(min(int(variables.get("ansible_forks") or 1), len(hosts)))
        if not reached:
            with contextlib.suppress(AnsibleError, KeyError):  # only the connection ssh has such an option
                program = str(self._connection.get_option("ssh_executable"))
                found += controller.ssh(program, there=shutil.which(program) is not None)
            return found
        if shutil.which("rsync") is None or shutil.which("git") is None:
            known = Variables(self._templar, variables)
            found += controller.rsync(_sends(known, answer), there=shutil.which("rsync") is not None)
            builds = known.get("vllm_image_source") == "build" and known.get("vllm_image_build_host") == "localhost"
            checkout = known.get("vllm_image_build_kind") != "cpu" and not known.get("vllm_image_build_revision")
            found += controller.git(needed=builds and checkout, there=shutil.which("git") is not None)
        return found

    @staticmethod
    def _of_the_run(forks: int) -> list[Finding]:
        reports = Path(os.environ.get("VLLM_FLEET_REPORTS") or "reports").absolute()
        found = controller.files(resource.getrlimit(resource.RLIMIT_NOFILE)[0], forks)
        for folder in (reports, Path(str(C.DEFAULT_LOCAL_TMP))):
            there = next(one for one in (folder, *folder.parents) if one.is_dir())
            with contextlib.suppress(OSError):
                found += controller.room(str(folder), shutil.disk_usage(there).free)
        return found

    # -- the node

    def _node(self, args: dict[str, Any], variables: dict[str, Any], found: list[Finding]) -> dict[str, Any]:
        """Ask the connecting user's shell, then the module; as that user where root cannot be had."""
        python = str(variables.get("ansible_python_interpreter") or "python3")
        named = python if re.fullmatch(r"[\w./+-]+", python) and not python.startswith("auto") else "python3"
        given = any(variables.get(name) for name in ("ansible_become_password", "ansible_become_pass"))
        given = given or bool(self._connection.become and self._connection.become.get_option("become_pass"))
        told = self._low_level_execute_command(
            _QUESTION.format(
                python=named, password=int(given), sysfs=shlex.quote(str(args.get("sysfs_root") or "/sys"))
            ),
            sudoable=False,
            executable="/bin/sh",
        )
        facts = dict(line.partition("=")[::2] for line in told["stdout"].splitlines() if "=" in line)
        if not facts.get("uid"):
            raise AnsibleError(f"the shell answered {told['stdout'][-80:]!r} {told['stderr'][-200:]!r}")
        kinds = [
            gpu.INSTINCT[kind]
            for kind in re.findall(r"^pci=(\S+)", told["stdout"], re.MULTILINE)
            if kind in gpu.INSTINCT
        ]
        # What later tasks take from the result of this one; an image's name is found out on the node.
        known = Variables(self._templar, variables)
        known.note("preflight_gpu_found", kinds[0] if kinds else "")
        known.note("preflight_result", {"node": {"gpus": [{"name": kind} for kind in kinds]}})
        known.note("vllm_image_ref", probes.result_of("vllm_image", "image_ref"))
        known.note("ansible_facts", {**(variables.get("ansible_facts") or {}), "user_dir": facts["home"]})
        self._late(args, known, found)
        oldest = str(args.get("min_python") or "3.10")
        if facts.get("python") and _version(facts["python"]) < _version(oldest):
            remedy = "set ansible_python_interpreter to a newer one"
            found.append(Finding("refused", "Python", f"{oldest} or newer", facts["python"], remedy))
        become = self._connection.become
        if facts.get("root") == "no":
            remedy = "connect as root, allow sudo, or give the password with --ask-become-pass"
            got = f"user {facts['user']}, who is not root and may not use sudo without a password"
            found.append(Finding("refused", "root", _ROOT, got, remedy))
            self._connection.set_become_plugin(None)
        elif facts["uid"] != "0" and (one := of_values.root(variables, facts["user"])):
            found.append(one)
        answer: dict[str, Any] = {}
        if not any(one.what == "Python" for one in found):
            try:
                answer = self._module(args, facts, known, variables)
            finally:
                self._connection.set_become_plugin(become)
            try:
                found += [told_finding(one) for one in answer.pop("findings", None) or []]
            except (TypeError, ValueError):
                got, remedy = "an answer of another form", "look at what that node runs"
                found.append(Finding("refused", "findings", "those of preflight_host", got, remedy))
        user = {
            "ansible_user_id": facts["user"],
            "ansible_user_uid": int(facts["uid"]),
            "ansible_user_dir": facts["home"],
        }
        answer["ansible_facts"] = {**(answer.get("ansible_facts") or {}), **user}
        return answer

    def _way(self) -> connection.Way:
        """Return how this node is reached, for what the user is to type."""
        words: dict[str, Any] = {}
        told = (("address", "host"), ("port", "port"), ("user", "remote_user"), ("key", "private_key_file"))
        arguments = [""] * 3
        for name, option in told:
            with contextlib.suppress(AnsibleError, KeyError):  # a local connection has none of them
                words[name] = self._connection.get_option(option)
        given = {name: value for name, value in words.items() if value}
        for number, option in enumerate(("ssh_extra_args", "ssh_common_args", "ssh_args")):
            with contextlib.suppress(AnsibleError, KeyError):
                arguments[number] = str(self._connection.get_option(option) or "")
        given["known"] = connection.known_hosts(*arguments)
        if given.get("key"):
            given["key"] = str(given["key"])
            given["locked"] = connection.locked(_beginning(Path(given["key"])))
        return connection.Way(**{**given, "port": int(given.get("port") or 22)})

    def _late(self, args: dict[str, Any], known: Variables, found: list[Finding]) -> None:
        """Take options from variables that lean on the kind of GPU, which is known only now (preflight_gpu_found).

        They are the role's, or those that `late` names. Findings that were made elsewhere, which are one of these
        options, are added to ``found``.
        """
        self._later = True
        for option, name in (args.pop("late", None) or {}).items():
            args[option] = known[name]
        if self._of_role:
            args.update(role_options.made(role_options.preflight_late, known))
        try:
            found += [told_finding(one) for one in args.pop("findings", None) or []]
        except ValueError as error:
            raise AnsibleError(f"preflight_findings: {error}; correct it") from None

    def _module(
        self, args: dict[str, Any], facts: dict[str, str], known: Variables, variables: dict[str, Any]
    ) -> dict[str, Any]:
        args = {key: value for key, value in args.items() if key != "accept"}  # over all findings, at the end
        if args.get("cache"):
            args["cache"] = re.sub(r"^~(?=/|$)", facts["home"].replace("\\", r"\\"), str(args["cache"]))
        answer = self._probe(args, facts, known, variables)
        if answer.get("unreachable"):
            raise _Unreachable(str(answer.get("msg")))
        if answer.get("failed"):
            spoken = str(answer.get("module_stderr") or answer.get("msg") or "the module said nothing")
            raise AnsibleError(spoken.strip().splitlines()[-1] if spoken.strip() else "the module said nothing")
        for key in ("changed", "worst", "refusals", "invocation"):
            answer.pop(key, None)
        return answer

    def _probe(
        self, args: dict[str, Any], facts: dict[str, str], known: Variables, variables: dict[str, Any]
    ) -> dict[str, Any]:
        """Call the module, and in the same process what later tasks want to know (`ask`, names of modules)."""
        more = self._requests(args.pop("ask", None) or [], facts, known)
        conclusions = args.pop("conclude", None) or {}

        def call(module: str, options: dict[str, Any]) -> dict[str, Any]:
            answer: dict[str, Any] = self._execute_module(module_name=module, module_args=options, task_vars=variables)
            return answer

        if not more:
            return call("preflight_host", args)
        answer = probes.together({"module": "preflight_host", "args": args}, more, call, planned.digest)
        if answer.get("node"):
            known.note("preflight_result", answer)
            rows = answer.setdefault("ansible_facts", {}).setdefault(probes.FACT, [])
            rows += self._conclusions(conclusions, known)
        return answer

    def _requests(self, names: list[str], facts: dict[str, str], known: Variables) -> list[Mapping[str, Any]]:
        """Return the requests that can be made now: some lean on what a task before finds out."""
        if facts.get("root") == "no":
            return []
        found = []
        for name in names:
            with contextlib.suppress(AnsibleError):
                found.append(role_options.made(role_options.PROBES[name], known))
        return probes.answerable([one for one in found if one], ["preflight_host"])

    def _conclusions(self, names: Mapping[str, str], known: Variables) -> list[dict[str, Any]]:
        """Return as rows of results what roles conclude from the findings, by role: whether they have work to do."""
        rows = []
        for role, name in names.items():
            with contextlib.suppress(AnsibleError, KeyError):
                needed = boolean(known[name])
                rows.append({"module": role, "args": {}, "result": {"changed": needed}})
        return rows


def _sends(known: Variables, answer: Mapping[str, Any]) -> dict[str, bool | None]:
    """Return what the controller would send to a node, and whether the node lacks it; None where that is not known."""
    facts = answer.get("ansible_facts") or {}

    def lacks(module: str) -> bool | None:
        row = probes.probed(facts, module)
        return not probes.nothing_to_do(module, row["result"]) if row else None

    # A node without an engine has no image. One without its image was not asked for the weights.
    image = True if lacks("docker_engine") else lacks("vllm_image")
    weights = True if image else lacks("hf_snapshot")
    archive = known.get("vllm_image_source") == "archive" and known.get("vllm_image_archive_location") == "controller"
    sends = {"the image's archive": image} if archive else {}
    # To itself the controller copies weights by other means (roles/hf_cache/tasks/copy_local.yml).
    pushed = known.get("hf_cache_source") == "controller" and known.get("ansible_connection") != "local"
    return {**sends, **({"the weights": weights} if pushed else {})}


def _beginning(file: Path) -> str:
    """Return the first letters of a file on this machine; nothing where it cannot be read, or is no text."""
    try:
        with file.expanduser().open(encoding="utf-8") as opened:
            return opened.read(200)
    except (OSError, UnicodeDecodeError, RuntimeError):
        return ""


def _texts(variables: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the inventory's own files of variables, by the names that a command of the user's may take."""
    places = dict.fromkeys(str(variables.get(one) or "") for one in ("inventory_dir", "playbook_dir"))
    files = [Path(str(one)) for one in variables.get("ansible_inventory_sources") or ()]
    for place in filter(None, places):
        files += [path for kind in ("group_vars", "host_vars") for path in sorted(Path(place, kind).glob("**/*"))]
    for path in dict.fromkeys(files):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.suffix in ("", ".yml", ".yaml", ".json") and path.is_file() and path.stat().st_size < _LARGEST:
                near = os.path.relpath(path)
                yield (str(path) if near.startswith("..") else near), path.read_text("utf-8")


def preload(roles: Path) -> None:
    """Read the roles' pages and drivers before the workers are forked: otherwise each of them reads all."""
    for page in (*roles.glob("*/meta/argument_specs.yml"), *roles.glob("*/defaults/main.yml")):
        with contextlib.suppress(OSError, yaml.YAMLError):
            _read(page)
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        driver_releases.table()


@functools.cache
def _read(page: Path) -> Any:
    """Read YAML quickly, and once; Ansible's own loader notes of each word where it stood."""
    return yaml.load(page.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  both are safe


def _archive(asked: dict[str, Any]) -> dict[str, Any]:
    """Add what the controller knows of the image's archive: what its own file holds, or that it has one."""
    path = Path(str(asked.get("path") or "")).expanduser()
    if not asked.get("path"):
        return asked
    if asked.get("location") != "controller":
        return {**asked, "here": path.is_file()}
    try:
        held = archive.read(path)
    except FileNotFoundError:
        return {**asked, "trouble": f"{path} is not on the controller"}
    except archive.NOT_READABLE as exc:
        return {**asked, "trouble": _line(f"{path} of the controller cannot be read: {exc}")}
    return {**asked, "held": {**held.facts(), "compressed": held.compressed}}


class _Unreachable(Exception):
    """The module's own word for a connection that failed."""


def _line(text: str) -> str:
    """Bring an error to one line that fits into a table."""
    return " ".join(text.split())[:240]


def _one_of_the_model(mine: list[Finding], more: list[Finding]) -> tuple[list[Finding], list[Finding]]:
    """Return both lists with one finding about the model's name: the one that knows which id was meant, if any does."""
    form = [one for one in mine if one.what == "vllm_server_model" and one.level == "refused"]
    meant = [one for one in more if one.what == "model's id"]
    if form and any(not one.expected.startswith("an exact id") for one in meant):
        return [one for one in mine if one not in form], more
    return (mine, [one for one in more if one not in meant]) if form else (mine, more)


def _failed(said: str, way: connection.Way, what: str) -> Finding:
    """Give the finding of a look that failed: a known message as its cause and what to do, another as it is."""
    told = connection.explain(said, way)
    # What failed on a node that was reached has another cause than the connection, whatever its words are.
    if told is None or (what != "connection" and told.what == "connection"):
        remedy = "check that `ssh` to it works with this inventory's address, user and key"
        remedy = remedy if what == "connection" else "run again with -vvv"
        return Finding("unseen", what, "an answer", _line(said), remedy)
    if told.what == "root":
        return Finding("refused", told.what, _ROOT, told.cause, told.remedy)
    return Finding("unseen", told.what, "", told.cause, told.remedy)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
