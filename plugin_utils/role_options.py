# SPDX-License-Identifier: Apache-2.0
"""The options that roles give to their modules, made of the roles' variables.

One place for a role's own task (through the lookup vllm_fleet_options) and for the probe of everything at once (the
action preflight_host), so that both ask the same. Python and not Jinja, because Jinja compiles each expression again
for each host and works out what both branches of a condition name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleError, AnsibleFilterError
from ansible.module_utils.parsing.convert_bool import boolean

import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.container import daemon_json
from ansible.module_utils.vllm_fleet.container.mounts import HF_HOME
from ansible.module_utils.vllm_fleet.host import driver_table
from ansible.module_utils.vllm_fleet.models import presets
from ansible.module_utils.vllm_fleet.replica import place
from ansible.module_utils.vllm_fleet.rollout import comparison, steps
from ansible.module_utils.vllm_fleet.server import options as server_options
from ansible.module_utils.vllm_fleet.vllm import adapters, cli, host_variables, pooling, questions
from ansible.module_utils.vllm_fleet.vllm.ranks import ReplicaError
from plugin_utils import driver_releases, model_presets, watchdog_program
from plugin_utils.variables import Variables

Options = dict[str, Any]

#: Seconds that a probe waits for a server's answer; one that takes longer is left to its own task, which waits longer.
ANSWER = 30.0


def _named(variables: Variables, role: str, *options: str) -> Options:
    """Return options that have the names of the role's variables, without the role's own name in front."""
    return {option: variables[f"{role}_{option}"] for option in options}


# -- docker_engine


def docker_engine(variables: Variables) -> Options:
    """Return the options of docker_engine."""
    own = _named(
        variables, "docker_engine", "manage_config", "config_path", "allow_restart", "service_manager", "socket"
    )
    more = _named(variables, "docker_engine", "pid_file", "log_path", "daemon_args", "start_timeout")
    described = _named(variables, "docker_engine", "log_driver", "log_max_size", "log_max_file", "live_restore")
    described |= _named(variables, "docker_engine", "registry_mirrors", "insecure_registries")
    config = daemon_json.described(variables["docker_engine_settings"], **described)
    return {"config": config, **own, **more}


def docker_engine_probe(variables: Variables) -> Options:
    """Return what a probe asks for the engine."""
    return {"module": "docker_engine", "args": {**docker_engine(variables), "state": "probed"}}


# -- vllm_image


def vllm_image(variables: Variables) -> Options:
    """Return the options of vllm_image that say which image is meant."""
    source = variables["vllm_image_source"]
    built = source == "build"
    resolved = variables.get("__vllm_image_resolved", "") if source == "pull" else ""
    return {
        **_named(variables, "vllm_image", "source", "name", "tag", "allow_latest", "archive", "expected_id"),
        "tags": variables["__vllm_image_tags"] if built else list(dict.fromkeys(variables["vllm_image_tags"])),
        "digest": variables["vllm_image_digest"] or resolved,
        # The group of hosts that want the same image has a leader, once that was worked out.
        "archived": variables["__vllm_image_archived"] if "__vllm_image_leader" in variables else [],
        "build_inputs": variables["__vllm_image_build_inputs"] if built else "",
    }


def image_asks_first(variables: Variables) -> bool:
    """Return whether something else must be known before: who builds, what a tag stands for, what an archive holds."""
    source = variables["vllm_image_source"]
    if source == "archive":
        return variables["vllm_image_archive_location"] == "controller" and not variables["vllm_image_expected_id"]
    return bool(source == "build" or (source == "pull" and not variables["vllm_image_digest"]))


def vllm_image_probe(variables: Variables) -> Options:
    """Return what a probe asks for the image; empty where the options are not known yet.

    What is in an archive of the controller and the commit of a checkout are found out by tasks. What a tag stands for
    in the registry, the first node asks for all.
    """
    source, first = variables["vllm_image_source"], image_asks_first(variables)
    of_checkout = source == "build" and variables["vllm_image_build_kind"] != "cpu"
    if (source == "archive" and first) or (of_checkout and not variables["vllm_image_build_revision"]):
        return {}
    host, hosts = variables.raw("inventory_hostname"), variables.raw("ansible_play_hosts_all")
    asks = first and source == "pull" and (host == hosts[0] or _first_of_entry(variables, host, hosts))
    return {"module": "vllm_image", "args": {**vllm_image(variables), "state": "found", "resolve": asks}}


def _first_of_entry(variables: Variables, host: str, hosts: list[str]) -> bool:
    """Return whether a host is the first of an entry of vllm_servers, which may have an image of its own."""
    names = variables.raw("group_names") if "vllm_node" in variables else []
    groups = variables.raw("groups")
    return any(
        name.startswith("entry_") and host == next((one for one in groups[name] if one in hosts), "") for name in names
    )


# -- hf_cache


def hf_snapshot(variables: Variables) -> Options:
    """Return the request whether the snapshot is there, {module, args}."""
    create = boolean(variables["hf_cache_create"], strict=False) and variables["hf_cache_source"] != "shared"
    args = {
        **_named(variables, "hf_cache", "repo_id", "revision", "verify", "list_digest"),
        "cache": variables["__hf_cache_folder"],
        "create": create,
        "state": "verified",
    }
    return {"module": "hf_snapshot", "args": args}


def hf_snapshot_probe(variables: Variables) -> Options:
    """Return what a probe asks for weights and adapters. Hashing takes its time and is followed by its task."""
    if variables["hf_cache_verify"] != "quick":
        return {}
    asked = hf_snapshot(variables)
    # They are looked for in the same call, and fetched one by one where one is missing.
    if more := [{key: one[key] for key in ("repo_id", "revision", "list_digest")} for one in hf_adapters(variables)]:
        asked["args"]["also"] = more
    return asked


# -- vllm_server


def server_preset(variables: Variables) -> Options:
    """Return what models/*.yml says about the model, by its exact id; of a model without a file all is empty."""
    chosen = _named(variables, "vllm_server", "model", "accelerator", "gpu", "variant", "features")
    return model_presets.preset(**chosen, path=variables["vllm_server_presets_path"])


def _weights(variables: Variables) -> str:
    """Return whose weights the server loads: those of a variant may be another repository's."""
    return str(variables["__vllm_server_preset"]["model"] or variables["vllm_server_model"])


def _server_args(variables: Variables) -> Options:
    """Return the server's flags: its preset's, under the inventory's, with the adapters."""
    args = presets.lay_over(variables["__vllm_server_preset"]["args"], variables["vllm_server_args"] or {})
    try:
        return adapters.lay_over(args, adapters.parse(variables.get("vllm_server_adapters")), HF_HOME)
    except adapters.AdapterError as exc:
        raise AnsibleFilterError(str(exc)) from None


def verification(variables: Variables) -> list[Options]:
    """Return all requests that verify the server: its own, and one to each adapter."""
    asked = list(variables["vllm_server_verify"])
    try:
        return [*asked, *adapters.requests(adapters.parse(variables.get("vllm_server_adapters")), asked)]
    except adapters.AdapterError as exc:
        raise AnsibleFilterError(str(exc)) from None


def hf_adapters(variables: Variables) -> list[Options]:
    """Return the adapters' snapshots as the role hf_cache brings them: name, repo_id, revision, list_digest."""
    try:
        wanted = adapters.parse(variables.get("vllm_server_adapters"))
    except adapters.AdapterError as exc:
        raise AnsibleFilterError(str(exc)) from None
    return [
        {"name": one.name, "repo_id": one.repo, "revision": one.revision, "list_digest": one.list_digest}
        for one in wanted
    ]


def _server_place(variables: Variables) -> Options:
    """Return arguments, environment, devices and more, as they follow from the host's place in its replica."""
    own = ("entrypoint", "devices", "capabilities", "volumes", "network_mode", "bind", "accelerator", "image")
    settings = {
        "args": _server_args(variables),
        "env": {**variables["__vllm_server_preset"]["env"], **variables["vllm_server_env"]},
        **_named(variables, "vllm_server", *own, "state_dir", "master_addr", "master_port"),
        "model": _weights(variables),
        "backend": variables["vllm_server_distributed_backend"],
    }
    groups, host = variables.raw("groups"), variables.raw("inventory_hostname")
    try:
        return place.options(variables.raw("hostvars"), host, groups.get("vllm", groups["all"]), settings)
    except ReplicaError as exc:
        raise AnsibleFilterError(str(exc)) from None


def shared_node(variables: Variables) -> Options:
    """Return what the server asks of a node that it shares, and the servers of that node in the inventory's order."""
    wishes = {name: variables.get(f"vllm_server_{name}") for name in ("gpus", "cpus")}
    return {**wishes, "neighbours": _neighbours(variables)}


def _neighbours(variables: Variables) -> list[dict[str, Any]]:
    """Return all servers of the node, by the names of their containers; none where the server is alone."""
    node = variables.get("vllm_node")
    if node in (None, ""):
        return []
    groups, hostvars = variables.raw("groups"), variables.raw("hostvars")
    host, serving = variables.raw("inventory_hostname"), _serving(variables)
    # The node's own group, where it has one: to look at all hosts of a large fleet for each of them takes minutes.
    group = groups.get(str(node)) or []
    hosts = [one for one in group if one in serving] if host in group else serving
    found = host_variables.neighbours(hostvars, hosts, host)
    return [_neighbour(hostvars[one]) for one in found] if len(found) > 1 else []


def _neighbour(of: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": host_variables.container_name(of),
        "gpus": of.get("vllm_server_gpus"),
        "cpus": of.get("vllm_server_cpus"),
        "accelerator": str(of.get("vllm_server_accelerator") or presets.ROCM),
    }


def vllm_chat(variables: Variables) -> Options:
    """Return the options of vllm_chat for a server that was verified before: the first of its requests, once more."""
    return {
        "url": host_variables.url(variables["vllm_server_bind"], variables["vllm_server_port"]),
        "model": cli.served_names(_server_args(variables), variables["vllm_server_model"])[0],
        "api_key": variables["vllm_server_api_key"] or None,
        "timeout": variables["vllm_server_verify_timeout"],
        "endpoints": variables["vllm_server_verify_endpoints"],
        "requests": variables["vllm_server_verify"][:1],
        **_listed(variables),
    }


def _listed(variables: Variables) -> Options:
    """Return the names that the server has to list besides its own: those of its adapters."""
    found = adapters.names(variables.get("vllm_server_adapters"))
    return {"listed": found} if found else {}


def vllm_chat_probe(variables: Variables) -> Options:
    """Return what a probe asks the server; one that does not answer soon is left to its own task."""
    args = vllm_chat(variables)
    return {"module": "vllm_chat", "args": {**args, "timeout": min(float(args["timeout"]), ANSWER)}}


def vllm_server(variables: Variables) -> Options:
    """Return the options of vllm_server, with what follows from the host's place in its replica under `place`."""
    mode, cache = variables["__vllm_server_mode"], variables["vllm_server_engine_cache"]
    own = ("name", "image", "allow_latest", "port", "allow_unauthenticated", "accelerator", "groups")
    more = ("security_opts", "ulimits", "labels", "restart_policy", "stop_timeout", "ready_timeout", "stall_timeout")
    texts = ("hf_cache", "ipc_mode", "shm_size", "api_key", "hf_token")
    return {
        "state": "started",
        "mode": mode,
        "model": _weights(variables),
        **_named(variables, "vllm_server", *own, *more, "gpu_memory_policy", "state_dir"),
        # An empty one is none.
        **{option: value or None for option, value in _named(variables, "vllm_server", *texts).items()},
        "revision": variables["vllm_server_revision"] or variables["__vllm_server_preset"]["revision"] or None,
        **_shared(variables),
        "place": _server_place(variables),
        # YAML reads a plain `off` as false.
        "engine_cache": cache not in ("off", False, "False", "false"),
        "engine_cache_reset": cache == "reset",
        "sysfs_root": variables.get("vllm_fleet_sysfs_root", "/sys"),
        "verification": vllm_chat(variables) if mode == "plan" else None,
        "use_cached_result": mode == "plan" and steps.nothing_done(variables.raw("hostvars")),
    }


def _shared(variables: Variables) -> Options:
    """Return what a server asks of a node that it shares. Raises AnsibleFilterError for a part of a replica."""
    found = shared_node(variables)
    if variables.get("vllm_server_replica") and (wrong := _of_a_replica(found)):
        raise AnsibleFilterError(f"{wrong} is set, and {_WHOLE}")
    return found


_WHOLE = "a node of a server over several nodes (vllm_server_replica) gives it all that it has; take one of them away"


def _of_a_replica(found: Options) -> str:
    """Return the name of a wish that a node of a replica cannot have; empty where there is none."""
    return next((f"vllm_server_{name}" for name in ("gpus", "cpus") if found[name] not in (None, "")), "")


def vllm_server_probe(variables: Variables) -> Options:
    """Return what a probe asks for the server; a rank of a replica is planned together with its partners."""
    if variables.get("vllm_server_replica"):
        return {}
    args = {**vllm_server(variables), "mode": "plan", "verification": None, "use_cached_result": False}
    return {"module": "vllm_server", "args": server_options.call(args, variables.raw("inventory_hostname"))}


# -- rollout


def rollout_measure(variables: Variables) -> Options:
    """Return what vllm_measure asks of a server: the questions and the load that the limits of rollout_gate need."""
    limits, load = variables["rollout_gate"] or {}, variables["rollout_gate_load"] or {}
    asked = variables["rollout_gate_questions"] or model_presets.questions(
        variables.get("vllm_server_model"),
        variables.get("vllm_server_verify", []),
        variables.get("vllm_server_presets_path", ""),
    )
    if wrong := next(filter(None, map(questions.question_fault, asked)), ""):
        raise AnsibleFilterError(f"rollout_gate_questions: {wrong}")
    writes = any(str(one.get("api") or "chat") not in pooling.PATHS for one in asked)
    return {
        "name": variables.get("vllm_server_name", "vllm"),
        "state_dir": variables.get("vllm_server_state_dir", server_options.DEFAULT_STATE_DIR),
        "timeout": float(variables.get("vllm_server_verify_timeout", ANSWER)),
        "questions": asked if limits.get("answers") is not None else [],
        "load": load if comparison.measured_speeds(limits) and writes else None,
    }


# -- vllm_watchdog


def vllm_watchdog(variables: Variables) -> Options:
    """Return the options of vllm_watchdog. A server over several nodes has one watchdog, on its first node."""
    name, host, hosts = variables["vllm_server_name"], variables.raw("inventory_hostname"), _serving(variables)
    several = replica_size(variables) > 1
    worker = several and host_variables.replica_head(variables.raw("hostvars"), hosts, host) != host
    if worker or not boolean(variables["vllm_watchdog_enabled"]):
        return {"name": name, "state": "absent"}
    action, port = variables["vllm_watchdog_action"], host_variables.agent_port(variables)
    bind = variables["vllm_server_bind"]
    asked = port and variables.raw("groups").get("gateway")
    settings = {
        "name": name,
        "state_dir": variables["vllm_server_state_dir"],
        "silence": int(variables["vllm_watchdog_silence"]),
        # Ranks start together only, which a run does and no node can.
        "action": "drain" if several and action == "restart" else action,
        "restarts": int(variables["vllm_watchdog_restarts"]),
        "agent": {"address": "127.0.0.1" if bind == "localhost" else bind, "port": port} if asked else None,
        "docker_socket": variables.get("docker_engine_socket", "/var/run/docker.sock"),
        "ready_timeout": float(variables["vllm_server_ready_timeout"]),
        "stall_timeout": float(variables["vllm_server_stall_timeout"]),
        "model": cli.served_names(_server_args(variables), variables["vllm_server_model"])[0],
        "verify": {
            "requests": verification(variables),
            "timeout": float(variables["vllm_server_verify_timeout"]),
        },
    }
    return {"name": name, "state": "present", "settings": settings}


def vllm_watchdog_probe(variables: Variables) -> Options:
    """Return what a probe asks for the watchdog."""
    args = vllm_watchdog(variables)
    program = {"program": watchdog_program.digest()} if args["state"] == "present" else {}
    return {"module": "vllm_watchdog", "args": {**args, **program}}


# -- preflight


def preflight(variables: Variables) -> Options:
    """Return the options of preflight_host that are known before the node is asked for its kind of GPU."""
    source, path = variables["preflight_image_source"], variables.get("hf_cache_path", "~/.cache/huggingface")
    archive = {
        "path": variables.get("vllm_image_archive", ""),
        "location": variables.get("vllm_image_archive_location", "node"),
        "expected_id": variables.get("vllm_image_expected_id", ""),
        "cache": variables.get("vllm_image_cache_path", "~/.cache/vllm-fleet"),
    }
    # The role rocm's own list, so that it can go on with what was seen here.
    versions = variables.get("rocm_allowed_driver_versions", [driver_table.KNOWN, driver_table.NEWER])
    wanted = str(variables.get("rocm_driver_version", "30.30.4"))
    variables.note("__preflight_image_bytes", image_bytes(variables))
    return {
        **_named(variables, "preflight", "ask", "conclude", "accept", "min_python", "host", "accelerator"),
        **_named(variables, "preflight", "sysfs_root", "proc_root", "gpus", "gpu_name", "idle_vram", "image"),
        **_named(variables, "preflight", "image_source", "disk_image", "clock", "sysctls"),
        "allowed_driver_versions": driver_table.allowed([*versions, wanted], driver_releases.table()),
        "wanted_driver": wanted,
        "drivers": driver_releases.option() if variables["preflight_accelerator"] == presets.ROCM else None,
        "foreign_level": "refused"
        if variables.get("vllm_server_gpu_memory_policy", "strict") == "strict"
        else "warning",
        "name": variables.get("vllm_server_name", "vllm"),
        "state_dir": variables.get("vllm_server_state_dir", server_options.DEFAULT_STATE_DIR),
        "leaves_out": not variables.get("maintenance_ends", False),
        **_preflight_shared(variables),
        "installs_driver": variables.get("rocm_install_driver", True),
        "allows_reboot": variables.get("rocm_allow_reboot", False),
        "sets_numa_balancing": variables.get("rocm_disable_numa_balancing", True),
        "min_ram": variables["preflight_min_ram"] or None,
        "archive": archive if source == "archive" else None,
        "cache": path,
        "cache_create": variables.get("hf_cache_create", str(path).startswith("~")),
        "model": _preflight_weights(variables),
        "port": variables.get("vllm_server_port", 8000),
        "bind": variables.get("vllm_server_bind", "127.0.0.1"),
    }


def _preflight_shared(variables: Variables) -> Options:
    if variables.get("vllm_server_replica"):
        return {}
    found = shared_node(variables)
    return {"wanted_gpus": found["gpus"], "wanted_cpus": found["cpus"], "neighbours": found["neighbours"]}


def image_bytes(variables: Variables) -> int:
    """Return the bytes that the role vllm_image wants free, where it does not know better; of an archive it does."""
    given, source = float(variables.get("vllm_image_min_free_gib", 0)), variables["preflight_image_source"]
    small = variables["preflight_accelerator"] == "cpu"
    small |= source == "build" and variables.get("vllm_image_build_kind", "rocm") == "cpu"
    return int((given or (0 if source == "archive" else 8 if small else 60)) * 2**30)


def _preflight_weights(variables: Variables) -> str:
    """Return whose weights the server will load; the model itself while its variant is none that there is."""
    model, path = str(variables.get("vllm_server_model") or ""), variables.get("vllm_server_presets_path", "")
    variant = variables.get("vllm_server_variant", "")
    if model_presets.choice(model, path, variant, ()):
        return model
    return str(variables.get("hf_cache_repo_id", "") or model_presets.weights(model, variant, path))


def _preflight_gpu(variables: Variables) -> str:
    found = variables.get("vllm_server_gpu") or variables.get("preflight_gpu_found") or variables["preflight_gpu_name"]
    return str(found or "")


def preflight_preset(variables: Variables) -> Options:
    """Return the preset of the model on the kind of GPU that was given or found.

    A variant or feature that there is not is a finding (preflight_late), and left out here.
    """
    gpu = _preflight_gpu(variables)
    model, path = variables.get("vllm_server_model", ""), variables.get("vllm_server_presets_path", "")
    variant, features = variables.get("vllm_server_variant", ""), variables.get("vllm_server_features", [])
    if model_presets.choice(model, path, variant, features):
        variant, features = "", []
    accelerator = variables["preflight_accelerator"]
    return model_presets.preset(model, accelerator, gpu, path, variant=variant, features=features)


def preflight_place(variables: Variables) -> Options:
    """Return `replica`, this host's place in it, and `findings`, what is wrong with that; a host alone has no place."""
    if not variables.get("vllm_server_replica"):
        return {"replica": {}, "findings": []}
    meeting = {
        "backend": variables.get("vllm_server_distributed_backend", "mp"),
        "master_addr": variables.get("vllm_server_master_addr", ""),
        "master_port": variables.get("vllm_server_master_port", 0),
    }
    args = presets.lay_over(variables["__preflight_preset"]["args"], variables.get("vllm_server_args") or {})
    hostvars, host = variables.raw("hostvars"), variables.raw("inventory_hostname")
    found = place.checked(hostvars, host, _serving(variables), args, meeting)
    if wrong := _of_a_replica(shared_node(variables)):
        finding = {"level": "refused", "what": wrong, "expected": "null", "got": "a wish", "remedy": _WHOLE}
        found["findings"] = [*found["findings"], finding]
    return found


def _serving(variables: Variables) -> list[str]:
    """Return all hosts that serve, also those outside of this run."""
    groups = variables.raw("groups")
    hosts: list[str] = groups["vllm"] if "vllm" in groups else variables.raw("ansible_play_hosts_all")
    return hosts


def replica_size(variables: Variables) -> int:
    """Return how many hosts share the ranks that the arguments ask for: those of one replica; 1 for a host alone."""
    if not variables.get("vllm_server_replica"):
        return 1
    host = variables.raw("inventory_hostname")
    return len(place.partners(host, variables.raw("hostvars"), _serving(variables)))


def preflight_late(variables: Variables) -> Options:
    """Return the options of preflight_host that lean on the kind of GPU, which is known now."""
    variables.note("__preflight_preset", preflight_preset(variables))
    preset, own = variables["__preflight_preset"], preflight_place(variables)
    variables.note("__preflight_place", own)
    model, path = variables.get("vllm_server_model", ""), variables.get("vllm_server_presets_path", "")
    exact = boolean(variables.get("vllm_server_model_exact", False), strict=False)
    # Known are the presets and what the caches on this machine hold. Nothing is ever picked for the user: a similar
    # name is another model.
    caches = [variables["hf_cache_controller_path"]] if "hf_cache_controller_path" in variables else []
    unknown = model_presets.findings(model, exact, caches, path)
    variant, features = variables.get("vllm_server_variant", ""), variables.get("vllm_server_features", [])
    about = model_presets.choice(model, path, variant, features)
    if variables["preflight_accelerator"] == presets.ROCM and (
        said := presets.of_gpu(preset, _preflight_gpu(variables))
    ):
        about.append(dataclasses.asdict(said))
    flags = presets.lay_over(preset["args"], variables.get("vllm_server_args") or {})
    revision = str(variables.get("vllm_server_revision") or preset["revision"])
    if said := presets.remote_code(str(preset["model"] or model), flags, revision):
        about.append(dataclasses.asdict(said))
    from_hub = variables.get("hf_cache_source", "hub") == "hub"
    sizing = presets.sizing_options(
        preset,
        args=variables.get("vllm_server_args", {}),
        env=variables.get("vllm_server_env", {}),
        replica=replica_size(variables),
        revision=variables.get("vllm_server_revision", ""),
        image_version=variables.get("vllm_image_tag", ""),
        devices=variables.get("vllm_server_devices"),
        exact=exact or bool(unknown),
        token_missing=from_hub and not variables.get("hf_token", ""),
    )
    others = [*own["findings"], *_network(variables, own["replica"])]
    findings = [*variables["preflight_findings"], *unknown, *about, *others]
    late = {"findings": findings, "sizing": sizing, "disk_weights": variables["preflight_disk_weights"]}
    return {**late, **_preflight_adapters(variables, preset, from_hub=from_hub)}


def _preflight_adapters(variables: Variables, preset: Mapping[str, Any], *, from_hub: bool) -> Options:
    """Return what preflight is to look at where the server has adapters."""
    given, model = variables.get("vllm_server_adapters"), variables.get("vllm_server_model", "")
    if not given:
        return {}
    args = presets.lay_over(preset["args"], variables.get("vllm_server_args") or {})
    return {
        "adapters": {
            "adapters": given,
            "args": args,
            "served": cli.served_names(args, model),
            "cached": variables.get("vllm_server_hf_cache", True) not in (None, ""),
            "hub": from_hub,
            "endpoint": variables.get("hf_cache_hub_endpoint", ""),
            "token": variables.get("hf_token", "") if from_hub else "",
        }
    }


def _network(variables: Variables, replica: Mapping[str, Any]) -> list[dict[str, Any]]:
    listening = variables.get("__preflight_listening")
    if listening is None or listening.get("skipped") or not replica:
        return []
    return place.findings(replica, listening, variables.get("__preflight_connected") or {})


#: What the lookup vllm_fleet_options gives, by the name that it is asked for.
NAMED: dict[str, Callable[[Variables], Any]] = {
    "docker_engine": docker_engine,
    "hf_adapters": hf_adapters,
    "hf_snapshot": hf_snapshot,
    "image_asks_first": image_asks_first,
    "image_bytes": image_bytes,
    "preflight_place": preflight_place,
    "preflight_preset": preflight_preset,
    "rollout_measure": rollout_measure,
    "server_preset": server_preset,
    "server_verification": verification,
    "vllm_chat": vllm_chat,
    "vllm_image": vllm_image,
    "vllm_image_probe": vllm_image_probe,
    "vllm_server": vllm_server,
    "vllm_watchdog": vllm_watchdog,
}

#: What a probe asks, {module, args}, by the name of the module; empty where its options are not known yet.
PROBES: dict[str, Callable[[Variables], Options]] = {
    "docker_engine": docker_engine_probe,
    "vllm_image": vllm_image_probe,
    "hf_snapshot": hf_snapshot_probe,
    "vllm_server": vllm_server_probe,
    "vllm_chat": vllm_chat_probe,
    "vllm_watchdog": vllm_watchdog_probe,
}


def made(make: Callable[[Variables], Any], variables: Variables) -> Any:
    """Return what ``make`` makes of the variables. Values of a kind that it cannot take raise AnsibleError."""
    try:
        return make(variables)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        if isinstance(exc, AnsibleError):
            raise
        raise AnsibleError(f"{make.__name__}: {type(exc).__name__}: {exc}") from exc
