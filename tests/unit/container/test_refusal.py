# SPDX-License-Identifier: Apache-2.0
"""Docker's words to the option that they are about."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.container import refusal


@pytest.mark.parametrize(
    ("words", "option"),
    [
        # As Docker 20.10.24 and 29.0 say them.
        ('invalid --security-opt 2: "nonsense=1"', "security_opts"),
        ('invalid CapAdd: unknown capability: "CAP_PERFMON"', "capabilities"),
        ("maximum retry count cannot be used with restart policy 'always'", "restart_policy"),
        ("SHM size can not be less than 0", "shm_size"),
        ("Invalid IPC mode: bogus", "ipc_mode"),
        ("invalid environment variable: =x", "env"),
        ('invalid port specification: "99999"', "port"),
        ("Duplicate mount point: /data", "volumes"),
        ("invalid mode: shared,private", "volumes"),
        ("create x: volume name is too short, names should be at least two alphanumeric characters", "volumes"),
        ('invalid volume specification: \'vol_a:/data:shared\': invalid mount config for type "volume": field', "volumes"),
        ("No such image: vllm:1", ""),
        ('Conflict. The container name "/vllm.next" is already in use by container "0123"', ""),
        ("the Docker engine did not answer: timed out", ""),
    ],
)  # fmt: skip
def test_option(words, option):
    assert refusal.option(f"create container vllm.next: {words}") == option


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("No such image: registry/neural-network/vllm:1", ""),
        ("mkdir /var/lib/docker/volumes/0123: no space left on device", ""),
        ("error creating overlay mount to /mnt/network/volume/overlay2/0123/merged: input/output error", ""),
        ('Conflict. The container name "/vllm-network.next" is already in use by container "0123"', ""),
        ("the Docker engine did not answer: timed out", ""),
        ('invalid mount config for type "bind": bind source path does not exist: /mnt/network/x', "volumes"),
        ("cannot share the host's network namespace when user namespaces are enabled", "network_mode"),
    ],
)
def test_a_name_or_a_path_names_no_option(words, option):
    assert refusal.option(f"create container vllm-network-volume.next: {words}") == option
