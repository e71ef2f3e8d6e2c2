# SPDX-License-Identifier: Apache-2.0
"""Archives of modules are used again only where nothing that they were made of has changed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plugin_utils import module_archives, planned

OWN = "ansible.modules.command-ZIP_DEFLATED-none"
NAME = "ansible.legacy.node_probe-ZIP_DEFLATED-none"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one module, and an empty cache."""
    root = tmp_path / "project"
    for name in ("library/node_probe.py", "module_utils/vllm_fleet/x.py"):
        file = root / name
        file.parent.mkdir(parents=True)
        file.write_text("1")
    monkeypatch.setattr(module_archives, "ROOT", root)
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / "cache"))
    return root


def run(tmp_path, number, made=b"archive", name=NAME):
    """Of a run of Ansible: what was there at its start, then ``made`` is there at its end."""
    folder = tmp_path / f"run{number}" / "ansiballz_cache"
    state = module_archives.restore(folder)
    found = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    if made:
        (folder / name).write_bytes(made)
        (folder / "ansible.legacy.setup-ZIP_DEFLATED-none").write_bytes(b"of another project")
    module_archives.keep(folder, state)
    return found


def test_a_run_takes_what_the_run_before_it_made(project, tmp_path):
    assert run(tmp_path, 1) == {}
    assert run(tmp_path, 2, made=b"") == {NAME: b"archive"}


def test_those_of_ansibles_own_modules_are_kept_too_while_nobody_puts_files_in_the_place_of_its_own(
    project, tmp_path, monkeypatch
):
    assert run(tmp_path, 1, name=OWN) == {}
    assert run(tmp_path, 2, made=b"") == {OWN: b"archive"}
    # As beside a playbook or in a role: `module_utils/basic.py` goes before Ansible's.
    folder = tmp_path / "playbook/module_utils"
    folder.mkdir(parents=True)
    (folder / "basic.py").write_text("1")
    found = SimpleNamespace(_get_paths=lambda subdirs: [str(project / "module_utils"), str(folder)])
    monkeypatch.setattr(module_archives, "module_utils_loader", found)
    assert run(tmp_path, 3, made=b"") == {}


@pytest.mark.parametrize("edited", ["library/node_probe.py", "module_utils/vllm_fleet/x.py", "module_utils/new.py"])
def test_an_edit_makes_it_new_and_its_end_finds_the_old_one_again(project, tmp_path, edited):
    before = (project / edited).read_text() if (project / edited).exists() else None
    run(tmp_path, 1)
    (project / edited).write_text("2")
    assert run(tmp_path, 2, made=b"new") == {}
    assert run(tmp_path, 3) == {NAME: b"new"}
    if before is None:
        (project / edited).unlink()
    else:
        (project / edited).write_text(before)
    assert run(tmp_path, 4) == {NAME: b"archive"}


def test_what_was_made_while_a_file_was_edited_is_not_kept(project, tmp_path):
    folder = tmp_path / "run1"
    state = module_archives.restore(folder)
    folder.mkdir(exist_ok=True)
    (project / "module_utils/vllm_fleet/x.py").write_text("2")
    (folder / NAME).write_bytes(b"of both")
    module_archives.keep(folder, state)
    assert run(tmp_path, 2) == {}
    (project / "module_utils/vllm_fleet/x.py").write_text("1")
    assert run(tmp_path, 3) == {}


def kept(tmp_path):
    return next((tmp_path / "cache/modules").glob(f"*/{NAME}.*"))


@pytest.mark.parametrize("wrong", ["cut", "changed", "empty", "open to others"])
def test_one_that_is_not_as_it_was_written_is_not_used(project, tmp_path, wrong):
    run(tmp_path, 1)
    file = kept(tmp_path)
    if wrong == "open to others":
        file.parent.chmod(0o777)
    else:
        file.write_bytes({"cut": b"arch", "changed": b"ARCHIVE", "empty": b""}[wrong])
    assert run(tmp_path, 2) == {}


def test_a_cache_that_cannot_be_written_ends_no_run(project, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / "file"))
    assert run(tmp_path, 1) == run(tmp_path, 2) == {}


def test_few_states_are_kept(project, tmp_path):
    for number in range(7):
        (project / "library/node_probe.py").write_text(str(number))
        run(tmp_path, number)
    assert len(list((tmp_path / "cache/modules").iterdir())) == 4
    assert run(tmp_path, "last") == {NAME: b"archive"}


def test_options_have_one_digest_in_a_run_and_another_in_the_next(monkeypatch):
    args = {"env": {"A": "s3cret"}, "model": "m", "watch_slice": 30.0, "none": None}
    known = planned.digest(args)
    assert known == planned.digest({"model": "m", "env": {"A": "s3cret"}, "use_cached_result": True})
    assert known != planned.digest({**args, "model": "n"})
    monkeypatch.setattr(planned, "_KEY", b"of another run")
    assert known != planned.digest(args)


def test_a_link_of_an_editor_ends_no_run(project, tmp_path):
    (project / "library" / ".#node_probe.py").symlink_to("ada@desk.123")
    assert run(tmp_path, 1) == run(tmp_path, 2) == {}
