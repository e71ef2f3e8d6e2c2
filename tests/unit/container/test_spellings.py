# SPDX-License-Identifier: Apache-2.0
"""However options are written, what Docker's SDK makes of them compares as the same; what is another wish does not.

The SDK makes the request, and Docker's own changes to it are made as 20.10 and 29 were seen to make them. The same
spellings meet real engines in tests/integration.
"""

from __future__ import annotations

import random

import pytest
import spellings
from docker.api import APIClient

from ansible.module_utils.vllm_fleet.container import compare, fields, spec
from ansible.module_utils.vllm_fleet.container.engine import Engine
from ansible.module_utils.vllm_fleet.container.options import ContainerOptions
from ansible.module_utils.vllm_fleet.server.options import ARGUMENTS

SEED = 20261129
#: Options of a container that have one spelling: taken word for word, or compared by what they name (the image's bytes).
WORD_FOR_WORD = {"name", "image", "model", "revision", "api_key", "hf_token", "accelerator"}
#: Options of a run: the container does not have them.
OF_A_RUN = {
    *(
        "state",
        "started_at",
        "mode",
        "use_cached_result",
        "verification",
        "allow_latest",
        "allow_unauthenticated",
        "ready_timeout",
        "stall_timeout",
    ),
    *("gpu_memory_policy", "sysfs_root", "state_dir", "record", "docker_host", "reported_host", "watch_slice"),
    *("watch_token", "replica", "place", "replica_step", "because", "engine_cache_reset"),
    # What the node gives for these, the container has.
    *("gpus", "cpus", "neighbours"),
}
BASE = {"name": "vllm", "image": "vllm:1", "model": "acme/tiny", "allow_unauthenticated": True}
IMAGE = spec.Image("vllm:1", "sha256:" + "1" * 64, env={"PATH": "/bin"}, labels={"vendor": "x"})
NODE = fields.NodeFacts(gids=(44, 109), groups={"daemon": 1})
REDACT = compare.fingerprint(b"k" * 32)


class Recorder(APIClient):
    """Docker's client without a Docker: it keeps what it would send."""

    def __init__(self):
        super().__init__(base_url="http://127.0.0.1:1", version="1.41")

    def create_container_from_config(self, config, name=None, platform=None):
        self.sent = config
        return {"Id": "c"}


@pytest.fixture(scope="module")
def engine():
    made = Engine.__new__(Engine)
    made._sdk_client = Recorder()
    return made


def wanted(options):
    accelerator = options.get("accelerator", "cpu")
    made = ContainerOptions.from_params({**BASE, **options, "accelerator": accelerator})
    return spec.build(made, IMAGE, NODE, shutdown_timeout=True, engine_cache=options["engine_cache"])


def inspected(engine, options):
    """What Docker shows of the container that it was asked for."""
    engine.create(wanted(options), IMAGE)
    sent = engine._api.sent
    host = dict(sent["HostConfig"])
    added = [cap if cap == "ALL" else f"CAP_{cap}" for cap in host.get("CapAdd") or []]
    host |= {"CapAdd": added, "IpcMode": host.get("IpcMode") or "private", "ShmSize": host.get("ShmSize") or 64 << 20}
    if host["IpcMode"] == "host" and not any("label" in one for one in host.get("SecurityOpt") or []):
        host["SecurityOpt"] = [*(host.get("SecurityOpt") or []), "label=disable"]
    env = [*(sent["Env"] or []), "PATH=/bin"]
    labels = {**(sent["Labels"] or {}), "vendor": "x"}
    config = {key: sent.get(key) for key in ("Image", "Cmd", "Entrypoint", "StopTimeout")}
    return {"Image": IMAGE.id, "Config": {**config, "Env": env, "Labels": labels}, "HostConfig": host}


def found(engine, current, other):
    return compare.differences(wanted(other), IMAGE, inspected(engine, current), IMAGE, REDACT)


def test_every_option_of_the_module_has_its_spellings():
    assert set(spellings.SPELLINGS) | WORD_FOR_WORD | OF_A_RUN == set(ARGUMENTS)
    assert not set(spellings.SPELLINGS) & (WORD_FOR_WORD | OF_A_RUN)


@pytest.mark.parametrize("option", spellings.SPELLINGS)
def test_each_spelling_of_an_option_is_the_same_wish(engine, option):
    plain = {"engine_cache": "/cache/image-one"}
    for group in spellings.SPELLINGS[option]:
        for one in group:
            for other in group:
                current, other_ = ({**plain, option: spellings.filled(value, "/c")} for value in (one, other))
                assert found(engine, current, other_) == [], f"{one!r} and {other!r}"


def test_random_combinations(engine):
    """Another wish for one option is found, and nothing else."""
    for number in range(250):
        dice = random.Random(SEED + number)  # noqa: S311  nothing secret
        wish = spellings.wish(dice)
        current, other = (spellings.spelt(wish, dice) for _ in range(2))
        seen = f"seed {SEED + number}:\n{current}\n{other}"
        assert found(engine, current, other) == [], seen
        option = dice.choice([name for name, groups in spellings.SPELLINGS.items() if len(groups) > 1])
        groups = [group for group in spellings.SPELLINGS[option] if group is not wish[option]]
        changed = {**other, option: spellings.filled(dice.choice(dice.choice(groups)), "/c")}
        names = {one.name.partition(".")[0] for one in found(engine, current, changed)}
        if option == "shm_size" and "host" in (changed["ipc_mode"], current["ipc_mode"]):
            continue  # the node's own is used
        assert names, f"{option} of {changed}\n{seen}"
