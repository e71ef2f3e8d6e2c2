# SPDX-License-Identifier: Apache-2.0
"""Options are parsed once, and have the module's own defaults."""

from __future__ import annotations

import dataclasses

from ansible.module_utils.vllm_fleet.server import options as module
from ansible.module_utils.vllm_fleet.server.options import ServerOptions

#: Options of the module that say how to run, not what server is wanted.
OF_THE_RUN = {
    "mode",
    "verification",
    "use_cached_result",
    "docker_host",
    "reported_host",
    "watch_slice",
    "watch_token",
    "replica",
    "replica_step",
    "place",
}
#: Options that have another name or shape once parsed.
PARSED = {"args": "flags", "accelerator": "rocm"}


def test_every_option_of_the_module_is_there_with_its_default():
    names = {PARSED.get(name, name) for name in module.ARGUMENTS.keys() - OF_THE_RUN}
    assert names == {field.name for field in dataclasses.fields(ServerOptions)} - {
        "args_problem",
        "given_gpus",
        "cpuset",
    }
    defaults = {name: argument.get("default") for name, argument in module.ARGUMENTS.items()}
    assert ServerOptions.from_params(defaults) == ServerOptions.from_params({}) == ServerOptions()


def test_flags_have_one_spelling():
    options = ServerOptions.from_params({"args": {"max_model_len": 512, "-tp": 2, "headless": True, "seed": None}})
    assert options.flags == {"max-model-len": "512", "tensor-parallel-size": "2", "headless": True, "seed": None}
    assert options.headless
    assert not options.args_problem


def test_arguments_that_cannot_be_read_are_kept_as_a_sentence():
    """The run refuses them when it starts a server: a stop needs none of them."""
    options = ServerOptions.from_params({"args": {"port": 9000}})
    assert "this flag is set by the option 'port'" in options.args_problem
    assert options.flags == {}


def test_what_is_empty_is_not_what_is_left_out():
    assert ServerOptions.from_params({"devices": [], "capabilities": None}).devices == ()
    assert ServerOptions.from_params({"devices": None}).devices is None
    assert ServerOptions.from_params({"entrypoint": []}).entrypoint is None
    assert ServerOptions.from_params({"network_mode": "", "ipc_mode": ""}).network_mode == "bridge"


def test_secrets_are_not_printed():
    secret = {"api_key": "canary", "hf_token": "canary", "env": {"A_KEY": "canary"}, "args": {"x-key": "canary"}}
    assert "canary" not in repr(ServerOptions.from_params(secret))
