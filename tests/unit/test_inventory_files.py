# SPDX-License-Identifier: Apache-2.0
"""What of an inventory's files Ansible leaves out, by line."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import pytest
import yaml

from plugin_utils import inventory_files

FINE = """
    vllm:
      hosts:
        node1: {ansible_host: 192.0.2.1}
        node[2:9]:
      vars: {vllm_server_api_key: !vault "x", note: !unsafe "{{ a }}"}
      children: {more: {hosts: node10}, empty: , ansible: {hosts: {x: }}}
    all: {vars: {base: &base {a: 1, b: 2}, one: {<<: *base, a: 3}, two: {<<: *base, a: 4}}}
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FINE, []),
        ("", []),
        ("# nothing\n---\n", []),
        ("$ANSIBLE_VAULT;1.1;AES256\n6162\n", []),
        ("plugin: vllm_servers\n", []),
        ("plugin: x\nkeyed_groups: [{a: 1}]\nhosts: [a]\n", []),
        (
            "vllm:\n  hosts:\n    n1:\n    ansible_host: 1\n",
            [(4, "ansible_host stands beside n1 among the hosts of gr")],
        ),
        ("vllm:\n  hosts:\n    ansible_user:\n", [(3, "ansible_user stands among the hosts of group vllm")]),
        ("vllm:\n  hosts:\n    n1: s3cret\n", [(3, "host n1 has one value where its variables belong")]),
        ("vllm:\n  hosts:\n    n1: [{a: 1}]\n", [(3, "host n1 has a list where its variables belong")]),
        ("vllm:\n  hosts:\n    - n1\n", [(2, "hosts of group vllm is a list: write each name with a colon")]),
        ("vllm:\n  vars:\n    - a: 1\n", [(2, "vars of group vllm is a list: write each variable")]),
        ("vllm:\n  vars: a\n", [(2, "vars of group vllm is one value")]),
        ("vllm:\n  hosts: {n1: }\n  n2:\n    a: 1\n", [(3, "n2 stands in group vllm beside its hosts, vars and")]),
        (
            "vllm:\n  var: {a: 1}\n  host: {n1: }\n  child: {x: }\n",
            [(2, "var stands"), (3, "host st"), (4, "child st")],
        ),
        ("vllm:\n  ansible_user: ops\n", [(2, "ansible_user stands in group vllm")]),
        ("vllm: [n1]\n", [(1, "group vllm has a list instead of")]),
        ("hosts: {n1: }\n", [(1, "hosts stands in no group")]),
        ("all:\n  children:\n    vllm:\n      n1: {}\n", [(4, "n1 stands in group vllm")]),
        ("a:\n  hosts:\n    n1: {x: 1}\n    n1: {}\n", [(4, "n1 stands twice, in lines 3 and 4")]),
        ("a: {vars: {x: {y: 1, y: 2}}}\n", [(1, "y stands twice, in lines 1 and 1")]),
        ("a: &a {hosts: {n1: 5}}\nb: *a\n", [(1, "host n1 has one value")]),
    ],
)
def test_what_ansible_leaves_out_of_hosts(text: str, said: list[tuple[int, str]]) -> None:
    found = inventory_files.faults(textwrap.dedent(text), source=True)
    assert [one.line for one in found] == [line for line, _ in said], found
    assert all(one.what.startswith(words) for one, (_, words) in zip(found, said, strict=True)), found
    assert "s3cret" not in str(found)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: s3cret\nb: 1\na: s4cret\n", [3]),
        ("hosts: [1]\nvllm: [2]\n", []),
        ("x: [{a: 1}, {a: 1, b: 2, a: 3}]\n", [1]),
        ("x: &x {y: *x}\n", []),
        ("? [a, b]\n: 1\n", []),
        ("'1': a\n1: b\n", []),
    ],
)
def test_names_that_stand_twice(text: str, lines: list[int]) -> None:
    found = inventory_files.faults(text, source=False)
    assert [one.line for one in found] == lines
    assert "cret" not in str(found)


def test_no_yaml_is_not_hidden() -> None:
    with pytest.raises(yaml.YAMLError):
        inventory_files.faults("a: [", source=True)


def test_each_file_is_judged_by_what_it_is_for(tmp_path: Path) -> None:
    for name, text in {
        "inv/hosts.yml": "vllm: {n1: }\n",
        "inv/hosts": "[vllm]\nn1 ansible_host=1\n",
        "inv/run.yml": "#!/bin/sh\na: [\n",
        "inv/broken.yml": "a: [\n",
        "inv/group_vars/vllm/main.yml": "a: 1\na: 2\n",
        "inv/group_vars/vllm/secret.yml": "$ANSIBLE_VAULT;1.1;AES256\n61\n",
        "inv/group_vars/.old.yml": "a: 1\na: 2\n",
        "inv/host_vars/n1": "a: 1\na: 2\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    sources = inventory_files.yaml_sources([str(tmp_path / "inv"), "a,b"], lambda name: name.endswith("_vars"))
    said, broken = inventory_files.judge(sources, inventory_files.variables_files([tmp_path / "inv"]), tmp_path)
    assert [one.partition(": ")[0] for one in said] == [
        "inv/hosts.yml:1", "inv/group_vars/vllm/main.yml:2", "inv/host_vars/n1:2",
    ]  # fmt: skip
    assert broken == [tmp_path / "inv/broken.yml"]


def test_two_hundred_hosts_are_judged_at_once() -> None:
    text = "vllm:\n  hosts:\n" + "".join(
        f"    n{i}:\n      ansible_host: 192.0.2.{i}\n      a: 1\n" for i in range(200)
    )
    began = time.perf_counter()
    assert inventory_files.faults(text, source=True) == []
    assert time.perf_counter() - began < 0.5
