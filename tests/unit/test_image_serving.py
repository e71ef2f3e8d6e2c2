# SPDX-License-Identifier: Apache-2.0
"""What the role vllm_image hands to root and to systemd: whose rights, which addresses, whose certificate folder."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles/vllm_image"
spec = importlib.util.spec_from_file_location("vllm_image_filters", ROLE / "filter_plugins/vllm_image.py")
assert spec and spec.loader
filters: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(filters)
USER = 65534
ADDRESSES = ["2: eth0    inet 10.0.0.2/24 brd 10.0.0.255 scope global eth0", "2: eth0    inet6 fd00::2/64 scope global"]


def test_the_nodes_that_get_an_image_are_its_peers() -> None:
    hosts = {
        "n2": {"ansible_host": "192.0.2.2", "__vllm_image_addresses": {"stdout_lines": ADDRESSES}},
        "n3": {"__vllm_image_addresses": {"failed": True}},
        "10.0.0.9": {},
    }
    assert filters.vllm_image_peers(list(hosts), hosts) == ["10.0.0.2", "10.0.0.9", "192.0.2.2", "fd00::2"]


@pytest.mark.parametrize("said", ["2: eth0 inet 0.0.0.0/0", "2: eth0 inet any/0 x", "2: eth0 inet 10.0.0.1;id/8"])
def test_a_node_lets_nobody_else_in(said: str) -> None:
    with pytest.raises(AnsibleFilterError, match="n2 says"):
        filters.vllm_image_peers(["n2"], {"n2": {"__vllm_image_addresses": {"stdout_lines": [said]}}})


@pytest.fixture
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's checkout whose settings name programs for git to run."""
    if os.geteuid() != 0:
        pytest.skip("only root can be led astray")
    top = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    top.chmod(0o755)
    (tree := top / "tree").mkdir()
    os.chown(tree, USER, USER)
    program = f"sh -c 'id -un >>{tree}/ran-as; cat'"
    script = f"""
        cd {tree}; export HOME={tree}; git init -q .; echo a >f; echo 'f filter=x diff=y' >.gitattributes; git add .
        git -c user.name=a -c user.email=b commit -qm x
        echo b >f; printf ran-as >.git/info/exclude
        git config core.fsmonitor {shlex.quote(program)}; git config core.hooksPath {tree}
        git config diff.external {shlex.quote(program)}; git config diff.y.textconv {shlex.quote(program)}
        git config filter.x.clean {shlex.quote(program)}; rm -f ran-as
    """
    as_user = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"]
    subprocess.run([*as_user, "sh", "-ec", script], check=True, capture_output=True)
    return tree


def revision(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the role's own script."""
    tasks = yaml.safe_load((ROLE / "tasks/probe_revision.yml").read_text())
    script = tasks[0]["ansible.builtin.shell"]["cmd"].replace("{{ vllm_image_build_context | quote }}", str(tree))
    command = ["/bin/bash", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_git_runs_as_the_owner_of_the_checkout_and_not_as_root(checkout: Path) -> None:
    done = revision(checkout, SUDO_UID=str(USER))
    assert done.returncode == 0, done.stderr
    commit, *changed, digest = done.stdout.splitlines()
    assert (len(commit), len(digest.split()[0])) == (40, 64)
    assert [line.split()[1] for line in changed] == ["f"]
    ran = (checkout / "ran-as").read_text().split() if (checkout / "ran-as").exists() else []
    assert set(ran) <= {"nobody"}  # a filter of the content is part of what git compares
    assert revision(checkout).stdout == done.stdout


def test_a_checkout_below_somebody_else_s_repository_is_not_read_by_root(checkout: Path) -> None:
    (inner := checkout / "inner").mkdir()
    done = revision(inner, SUDO_UID=str(USER))
    assert done.returncode
    assert not (checkout / "ran-as").exists()


PEM = "-----BEGIN PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\n"
#: What is in the folder before, and whether a run has made it; older versions left no mark.
FOLDERS = {
    "not there": (None, True),
    "an older run's": ({"ca.crt": PEM, "client.cert": PEM, "client.key": PEM}, True),
    "an older run's that was killed early": ({"ca.crt": PEM}, True),
    "an older run's that was killed earlier": ({}, True),
    "a user's": ({"ca.crt": "-----BEGIN CERTIFICATE-----\n"}, False),
    "a user's with a key": ({"client.cert": PEM, "client.key": PEM}, False),
    "a user's with more": ({"ca.crt": PEM, "README": ""}, False),
}


@pytest.mark.parametrize(("files", "own"), FOLDERS.values(), ids=FOLDERS)
def test_a_certificate_folder_of_somebody_else_is_left_alone(
    files: dict[str, str] | None, own: bool, tmp_path: Path
) -> None:
    script = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__vllm_image_certificate_script"]
    folder = tmp_path / "10.0.0.1:5443"

    def run(state: str) -> int:
        return subprocess.run(
            ["sh", "-c", script, "sh", str(folder), state], capture_output=True, check=False
        ).returncode

    def make() -> None:
        if files is not None:
            folder.mkdir()
        for name, text in (files or {}).items():
            (folder / name).write_text(text)

    make()
    if own:
        assert run("absent") == 0 and not folder.exists()
        make()
        assert run("present") == run("present") == 0
        assert folder.stat().st_mode & 0o777 == 0o700
    else:
        assert run("present") == 1
    assert run("absent") == 0
    assert folder.exists() is not own
    assert run("absent") == 0


def test_root_runs_no_file_of_the_cache_folder() -> None:
    """The folder may be in the home of the connecting user; what root runs from it would be that user's."""
    script = (ROLE / "files/serve_image.sh").read_text()
    assert '"User=$user"' in script
    for file in ("base.yml", "prepare_cpu_context.yml"):
        text = (ROLE / "tasks" / file).read_text()
        assert "__vllm_image_cache.path }}/build_base.sh" not in text
        assert "__vllm_image_cache.path }}/fetch_wheels.sh" not in text
