# SPDX-License-Identifier: Apache-2.0
"""What an engine compiled: whose it fits, when a folder is emptied, what another node may bring."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.container.spec import Image
from ansible.module_utils.vllm_fleet.server import engine_cache, release_store
from ansible.module_utils.vllm_fleet.server.options import ServerOptions
from ansible.module_utils.vllm_fleet.server.state import NodeState

IMAGE = Image("vllm:1", "sha256:" + "1" * 64, content="sha256:" + "c" * 64)
GIVEN = {"model": "acme/tiny", "args": {"max-model-len": 512}, "env": {"VLLM_USE_AOT_COMPILE": "1"}}
MACHINE = {"gpus": ["gfx942"], "cpu": "1" * 16}
KEY = "0123456789abcdef"
CPU = ServerOptions.from_params({**GIVEN, "accelerator": "cpu"})


def key(given=(), machine=MACHINE, image=IMAGE, secrets=()):
    return engine_cache.key(ServerOptions.from_params({**GIVEN, **dict(given)}), image, machine, secrets=secrets)


@pytest.mark.parametrize(
    "other",
    [
        {"given": {"model": "acme/other"}},
        {"given": {"args": {"max-model-len": 1024}}},
        {"given": {"env": {}}},
        {"image": Image("vllm:1", IMAGE.id, content="sha256:" + "d" * 64)},
        {"machine": {**MACHINE, "gpus": ["gfx950"]}},
        {"machine": {**MACHINE, "cpu": "2" * 16}},
    ],
)
def test_compiled_code_fits_what_it_was_made_for_and_nothing_else(other):
    assert key() == key()
    assert key(**other) != key()


@pytest.mark.parametrize(
    "same",
    [
        # The two kinds of image store give one image two ids.
        {"image": Image("vllm:1", "sha256:" + "2" * 64, content=IMAGE.content)},
        {"given": {"port": 9000, "name": "other", "api_key": "k", "gpus": [1], "args": {"max_model_len": "512"}}},
        {"given": {"env": {**GIVEN["env"], "MY_TOKEN": "canary-77"}}, "secrets": ("canary-77",)},
    ],
)
def test_what_compiled_code_does_not_depend_on(same):
    assert key(**same) == key()


def test_a_cpu_is_its_model_and_what_it_can_do(tmp_path):
    def seen(text):
        (tmp_path / "cpuinfo").write_text(text)
        return engine_cache.hardware(CPU, tmp_path / "cpuinfo")["cpu"]

    first = "processor\t: 0\nmodel name\t: EPYC 9654\ncpu MHz\t: 2400\nflags\t: fpu avx512f\n\n"
    assert seen(first) == seen(first.replace("2400", "3700") + first.replace("avx512f", ""))
    assert seen(first) != seen(first.replace("avx512f", "avx2"))


def fill(folder: Path, **files: bytes) -> dict[str, dict[str, object]]:
    """Write files (`__` for a slash) and return their list."""
    listed = {}
    for name, data in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        listed[name.replace("__", "/")] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return listed


def test_a_folder_of_other_hardware_or_one_that_is_to_be_fresh_is_emptied(tmp_path):
    folder = tmp_path / "engine-cache" / "1-m"
    assert engine_cache.prepare(folder, MACHINE, reset=False) == ""
    assert engine_cache.noted(folder) == {"keys": [], "hardware": MACHINE}
    fill(folder, triton__a=b"1")
    engine_cache.note(folder, KEY)
    assert engine_cache.prepare(folder, MACHINE, reset=False) == ""
    assert (folder / "triton/a").is_file()
    assert engine_cache.noted(folder)["keys"] == [KEY]
    other = {**MACHINE, "cpu": "2" * 16}
    assert engine_cache.prepare(folder, other, reset=False) == "it was filled on other hardware"
    assert engine_cache.noted(folder) == {"keys": [], "hardware": other}
    assert list(folder.iterdir()) == []
    fill(folder, triton__a=b"1")
    assert engine_cache.prepare(folder, other, reset=True) == "engine_cache_reset"
    assert sorted(one.name for one in folder.parent.iterdir()) == ["1-m", "1-m.json"]
    # Of an earlier version there is no note: what is there stays.
    fill(folder, triton__a=b"1")
    (folder.parent / "1-m.json").unlink()
    assert engine_cache.prepare(folder, MACHINE, reset=False) == ""
    assert (folder / "triton/a").is_file()


def test_what_travels_and_what_does_not(tmp_path):
    listed = fill(tmp_path, torch_compile_cache__ab__rank_0_0__x=b"1", triton__k__k__so=b"22")
    fill(tmp_path, modules__code=b"3", gpu_p2p=b"4")
    (tmp_path / "triton/link").symlink_to("/etc/passwd")
    (tmp_path / "inductor").symlink_to("/etc")
    assert engine_cache.listed(tmp_path) == listed


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("../triton/x", {}),
        ("triton/../../x", {}),
        ("/triton/x", {}),
        ("triton", {}),
        ("triton/", {}),
        ("triton//x", {}),
        ("modules/x.py", {}),
        ("triton/x\0", {}),
        ("triton/x", {"size": -1}),
        ("triton/x", {"size": True}),
        ("triton/x", {"size": 10**15}),
        ("triton/x", {"sha256": "0"}),
        ("triton/x", {"sha256": None}),
    ],
)
def test_what_a_node_says_of_its_files_has_a_form(name, one):
    good = {"size": 1, "sha256": "a" * 64}
    assert engine_cache.checked({"triton/x": good}) == {"triton/x": good}
    with pytest.raises(engine_cache.CacheError):
        engine_cache.checked({name: {**good, **one}})
    for odd in (None, [], {"triton/x": 1}):
        with pytest.raises(engine_cache.CacheError):
            engine_cache.checked(odd)


def test_what_arrives_right_becomes_part_of_the_folder(tmp_path):
    folder, arrived = tmp_path / "cache", tmp_path / "arrived"
    files = fill(arrived, triton__a=b"new", triton__b__so=b"so", inductor__c=b"c")
    (arrived / "triton/lib.so").write_bytes(b"lib")
    files["triton/lib.so"] = {"size": 3, "sha256": hashlib.sha256(b"lib").hexdigest()}
    fill(folder, inductor__c=b"own")
    assert engine_cache.lacking(folder, files) == {"files": 4, "bytes": 9}
    assert engine_cache.place(folder, arrived, engine_cache.checked(files), KEY) == {"placed": 3, "wrong": 0}
    # This node's engine may be using its own.
    assert (folder / "inductor/c").read_bytes() == b"own"
    assert oct((folder / "triton/lib.so").stat().st_mode & 0o777) == "0o755"
    assert engine_cache.noted(folder)["keys"] == [KEY]
    assert engine_cache.place(folder, arrived, files, KEY) == {"placed": 0, "wrong": 0}


@pytest.mark.parametrize("how", ["other bytes", "a link", "absent", "a link on the way"])
def test_what_arrives_wrong_stays_outside_and_the_key_is_not_noted(tmp_path, how):
    folder, arrived, outside = tmp_path / "cache", tmp_path / "arrived", tmp_path / "outside"
    outside.mkdir()
    files = fill(arrived, triton__good=b"1", inductor__bad=b"2")
    bad = arrived / "inductor/bad"
    if how == "other bytes":
        bad.write_bytes(b"3")
    elif how == "a link":
        (outside / "two").write_bytes(b"2")
        bad.unlink()
        bad.symlink_to(outside / "two")
    elif how == "absent":
        bad.unlink()
    else:
        folder.mkdir()
        (folder / "inductor").symlink_to(outside)
    assert engine_cache.place(folder, arrived, files, KEY) == {"placed": 1, "wrong": 1}
    assert not (folder / "inductor/bad").is_file()
    assert not (outside / "bad").exists()
    assert engine_cache.noted(folder) == {}


def test_a_key_has_a_form_and_a_note_that_is_damaged_is_none(tmp_path):
    with pytest.raises(engine_cache.CacheError):
        engine_cache.place(tmp_path, tmp_path, {}, "../x")
    (tmp_path / "f.json").write_text("{")
    assert engine_cache.noted(tmp_path / "f") == {}
    (tmp_path / "f.json").write_text(json.dumps({"keys": [1, KEY]}))
    assert engine_cache.noted(tmp_path / "f")["keys"] == [KEY]
    for number in range(30):
        engine_cache.note(tmp_path / "f", f"{number:016x}")
    assert len(engine_cache.noted(tmp_path / "f")["keys"]) == 20


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path):
    huge = {"triton/x": {"size": engine_cache.MOST_BYTES, "sha256": "a" * 64}}
    free = os.statvfs(tmp_path)
    if free.f_bavail * free.f_frsize < engine_cache.MOST_BYTES:
        with pytest.raises(engine_cache.CacheError, match="bytes free"):
            engine_cache.lacking(tmp_path / "not" / "there", huge)


def test_a_teardown_is_told_the_folder_and_its_note(tmp_path):
    node = NodeState(str(tmp_path), "vllm")
    folder = node.engine_cache("sha256:" + "a" * 64, "acme/tiny")
    folder.mkdir(parents=True)
    engine_cache.note(folder, "0123456789abcdef")
    record = {"image": {"id": "sha256:" + "a" * 64}, "model": {"id": "acme/tiny"}}
    assert release_store.engine_caches(node, [record]) == [str(folder), f"{folder}.json"]
