# SPDX-License-Identifier: Apache-2.0
"""What must hold before a start: real sockets, real files."""

from __future__ import annotations

import os
import re
import socket

import pytest

from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.container.fields import Ulimit
from ansible.module_utils.vllm_fleet.container.mounts import Volume
from ansible.module_utils.vllm_fleet.server import preconditions


def listening():
    server = socket.create_server(("127.0.0.1", 0))
    return server, server.getsockname()[1]


def test_a_port_held_by_a_process_is_named_with_its_pid():
    server, port = listening()
    with server, pytest.raises(Refused, match=rf"port {port} on 127\.0\.0\.1.*pid {os.getpid()}") as refused:
        preconditions.port_is_free("127.0.0.1", port, [], own=["vllm"])
    assert refused.value.failure_class == "port_taken"


def test_a_free_port_passes_also_while_old_connections_linger():
    server, port = listening()
    with server:
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # this side closes first, so it is the one that lingers in TIME_WAIT
        client.recv(1)
        client.close()
    preconditions.port_is_free("127.0.0.1", port, [], own=["vllm"])


@pytest.mark.parametrize(
    ("ip", "bind", "taken"),
    [("127.0.0.1", "127.0.0.1", True), ("0.0.0.0", "127.0.0.1", True), ("127.0.0.1", "0.0.0.0", True),
     ("10.0.0.1", "127.0.0.1", False)],
)  # fmt: skip
def test_a_port_held_by_a_container_is_named(ip, bind, taken):
    server, port = listening()
    server.close()
    other = {"Id": "1" * 64, "Names": ["/web"], "Ports": [{"IP": ip, "PublicPort": port}]}
    if taken:
        with pytest.raises(Refused, match="the container web"):
            preconditions.port_is_free(bind, port, [other], own=["vllm"])
    else:
        preconditions.port_is_free(bind, port, [other], own=["vllm"])


def test_a_port_that_docker_holds_for_nobody_is_told_apart(monkeypatch):
    server, port = listening()
    words = f"/usr/sbin/docker-proxy -proto tcp -host-ip 127.0.0.1 -host-port {port} -container-ip 172.17.0.2"
    monkeypatch.setattr(preconditions, "listeners", lambda *_: {77: words})
    with server, pytest.raises(preconditions.Leaked, match=r"held by Docker itself \(pid 77\)") as refused:
        preconditions.port_is_free("127.0.0.1", port, [], own=["vllm"])
    assert refused.value.failure_class == "port_taken"
    assert "systemctl restart docker" in refused.value.remedy


def test_a_predecessor_that_runs_may_hold_the_port():
    server, port = listening()
    with server:
        own = {"Id": "1", "Names": ["/vllm.previous"], "Ports": [{"IP": "127.0.0.1", "PublicPort": port}]}
        preconditions.port_is_free("127.0.0.1", port, [own], own=["vllm", "vllm.previous"])


def test_our_own_container_may_hold_the_port_it_is_replaced_on():
    server, port = listening()
    with server:
        own = {"Id": "1", "Names": ["/vllm"], "Ports": [{"IP": "127.0.0.1", "PublicPort": port}]}
        preconditions.port_is_free("127.0.0.1", port, [own], own=["vllm"])


def test_an_address_that_the_node_does_not_have():
    with pytest.raises(Refused, match="cannot be used on this node"):
        preconditions.port_is_free("192.0.2.1", 8000, [], own=["vllm"])


def test_a_mount_that_is_not_there_is_not_left_to_docker(tmp_path):
    preconditions.volumes_exist([Volume(str(tmp_path), "/x"), Volume("named", "/y")])
    with pytest.raises(Refused, match="does not exist on this node"):
        preconditions.volumes_exist([Volume(str(tmp_path / "none"), "/x", "ro")])


@pytest.mark.parametrize(
    ("make", "says", "failure_class"),
    [
        (lambda p: "relative/path", "absolute path", "bad_argument"),
        (lambda p: str(p / "none"), "does not exist", "cache_miss_offline"),
        (lambda p: str(((p / "f").write_text("") and p / "f") or p / "f"), "is a file", "cache_miss_offline"),
        (str, "is not in the cache", "cache_miss_offline"),
    ],
)
def test_a_cache_that_cannot_serve_is_refused(tmp_path, make, says, failure_class):
    with pytest.raises(Refused, match=says) as refused:
        preconditions.model_in_cache(make(tmp_path), "org/m", "a" * 40)
    assert refused.value.failure_class == failure_class


def test_a_mount_inside_of_a_read_only_one_needs_its_place_there(tmp_path):
    outer, writable = Volume(str(tmp_path), "/hf", "ro,z"), Volume(str(tmp_path), "/hf", "rw")
    inner = Volume("/tmp", "/hf/more/deep")
    with pytest.raises(Refused, match="volumes: /hf/more/deep lies in /hf, which is mounted read-only") as refused:
        preconditions.mounts_have_a_place([inner, outer])
    assert f"create {tmp_path}/more/deep" in refused.value.remedy
    for volumes in (
        [writable, inner],
        [outer, Volume("/tmp", "/hfx/more")],
        [outer, Volume("v", "/hf/more"), inner][:1],
    ):
        preconditions.mounts_have_a_place(volumes)
    (tmp_path / "more" / "deep").mkdir(parents=True)
    preconditions.mounts_have_a_place([outer, inner])


@pytest.mark.parametrize(
    ("volumes", "says"),
    [
        (["{d}:/etc/hosts"], "expected a file to mount at /etc/hosts, for /etc/hosts is one, got the folder {d}"),
        (["models:/etc/resolv.conf"], "expected a file to mount at /etc/resolv.conf, .* got the folder models"),
        (["{d}:/data", "{d}/sub:/data/one"], "expected a file to mount at /data/one, for {d}/one on the node is one"),
        (["{d}:/data", "{d}/one:/data/sub"], "expected a folder to mount at /data/sub, .* got the file {d}/one"),
        (["{d}/one:/data", "{d}/sub:/data/x"], "/data/x lies in /data, where a file is mounted"),
        (["{d}/one:/etc/hosts"], None),
        (["{d}:/data", "{d}/one:/data/one", "{d}/sub:/data/sub", "v:/data/new"], None),
        (["{d}:/data", "{d}/later:/data/sub"], None),
        (["v:/data", "{d}/one:/data/one"], None),
    ],
)
def test_a_file_lies_on_a_file_and_a_folder_on_a_folder(volumes, says, tmp_path):
    (tmp_path / "one").write_text("")
    (tmp_path / "sub").mkdir()
    mounts = [Volume(*text.format(d=tmp_path).split(":")) for text in volumes]
    if says is None:
        preconditions.mounts_have_a_place(mounts)
        return
    with pytest.raises(Refused, match="volumes: .*" + says.format(d=tmp_path)):
        preconditions.mounts_have_a_place(mounts)


@pytest.mark.parametrize(("limit", "refused"), [(1024, False), (1025, True), (-1, True)])
def test_more_open_files_than_the_kernel_allows(limit, refused, tmp_path):
    allowed = tmp_path / "nr_open"
    preconditions.limits_can_be_set([Ulimit("nofile", limit, limit)], allowed)  # not known, so not judged
    allowed.write_text("1024\n")
    preconditions.limits_can_be_set([Ulimit("memlock", -1, -1)], allowed)
    if not refused:
        preconditions.limits_can_be_set([Ulimit("nofile", limit, limit)], allowed)
        return
    with pytest.raises(Refused, match="ulimits: expected at most 1024 for nofile on this node"):
        preconditions.limits_can_be_set([Ulimit("nofile", limit, limit)], allowed)


@pytest.mark.parametrize(
    ("device", "kind", "says"),
    [
        ("/dev/null:/dev/zero2:r", None, ""),
        ("/dev", None, ""),
        ("/dev/dri/renderD9999:/dev/dri/renderD128:rw", "bad_argument", "this node has no /dev/dri/renderD9999$"),
        ("/etc/hostname", "bad_argument", "no device is /etc/hostname"),
        ("/etc/apt", "bad_argument", "no device is /etc/apt"),
        ("/dev/kfd", "driver_missing", "the amdgpu driver is not loaded"),
    ],
)
def test_a_device_that_is_not_there_is_not_always_a_driver_that_is_missing(device, kind, says):
    if kind is None:
        preconditions.devices_exist([device])
        return
    with pytest.raises(Refused) as caught:
        preconditions.devices_exist([device])
    assert caught.value.failure_class == kind
    assert re.search(says, caught.value.cause)


@pytest.mark.parametrize(
    ("bounding", "wanted", "says"),
    [
        ("000001ffffffffff", ["ALL"], None),
        ("0000003fffffffff", ["ALL"], None),  # an older kernel: what it does not have is not part of all
        ("0000003fffffffff", ["PERFMON"], "PERFMON asks for PERFMON"),
        ("000001fffeffffff", ["SYS_PTRACE", "IPC_LOCK"], None),
        ("000001fffeffffff", ["ALL"], "ALL asks for SYS_RESOURCE, which no process of this node may have"),
        (None, ["ALL"], None),
    ],
)
def test_capabilities_that_the_node_itself_lacks_are_refused(bounding, wanted, says, tmp_path):
    """In a node that is a container itself, Docker would say `unable to apply caps`, after the stop."""
    status = tmp_path / "status"
    if bounding:
        status.write_text(f"Name:\tsystemd\nCapBnd:\t{bounding}\nCapAmb:\t0000000000000000\n")
    if says is None:
        preconditions.capabilities_can_be_given(wanted, status)
        return
    with pytest.raises(Refused, match=says):
        preconditions.capabilities_can_be_given(wanted, status)
