# SPDX-License-Identifier: Apache-2.0
"""What OpenSSH, sudo and Ansible say, as a cause and what to type: recorded messages, and some from their sources."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible.module_utils.vllm_fleet.preflight.connection import Way, explain, known_hosts, locked

RECORDED = yaml.safe_load((Path(__file__).resolve().parents[2] / "fixtures/ssh/messages.yml").read_text())
#: What is said of each recording, and a part of what to do.
SAID = {
    "unknown_key": ("its SSH host key is not known to the controller", "ssh-keyscan ADDRESS >> ~/.ssh/known_hosts"),
    "changed_key": ("its SSH host key is not the one that the controller knows", "ssh-keygen -R 'ADDRESS'"),
    "denied": ("its SSH server does not take the key or password of the user ops", "ssh-copy-id ops@127.0.0.1"),
    "wrong_user": ("its SSH server does not take the key or password of the user nobodyhere", "correct ansible_user"),
    "open_key": ("the private key /home/me/.ssh/id may be read by others", "chmod 600 /home/me/.ssh/id"),
    "no_key_file": ("there is no private key /home/me/.ssh/id_none on the controller", "--private-key"),
    "no_route": ("there is no way to 192.0.2.77", "ping 192.0.2.77"),
    "refused": ("nothing listens at 127.0.0.1, port 2223", "systemctl start ssh"),
    "timeout": ("10.255.255.1, port 2222, does not answer in time", "nc -vz 10.255.255.1 2222"),
    "banner": ("127.0.0.1, port 2224, does not answer in time", "nc -vz 127.0.0.1 2224"),
    "closed": ("its SSH server ended the connection", "MaxStartups"),
    "dns": ("the name nodexyz.invalid is not known to the controller's DNS", "as ansible_host"),
    "sudo_missing": ("sudo wants a password of the user USER", "--ask-become-pass"),
    "sudo_wrong": ("a password that sudo on the node does not accept", "--ask-become-pass"),
    "no_python": ("there is no /usr/bin/python9 on the node", "ansible_python_interpreter"),
}
#: From the sources of OpenSSH (sshconnect.c, ssh.c), of sudo (logging.c, auth) and of Ansible's plugin ssh.
ALSO = [
    ("ssh: connect to host 10.0.0.7 port 22: Connection timed out", "10.0.0.7, port 22, does not answer in time"),
    ("ssh: connect to host 10.0.0.7 port 22: Network is unreachable", "there is no way to 10.0.0.7"),
    ("me is not in the sudoers file.  This incident will be reported.", "the user USER may not use sudo"),
    ("sudo: a terminal is required to read the password; either use", "sudo wants a password"),
    ("ssh: Could not resolve hostname 10.0.0.1:22: Name or service not known", "10.0.0.1:22 is an address with a port"),
    ("Permissions 0644 for '/home/me/.ssh/id.pub' are too open.", "/home/me/.ssh/id.pub is the public key"),
    ("/bin/sh: 1: sudo: not found", "there is no sudo on the node"),
    ("/bin/sh: 1: /usr/bin/python3: not found", "there is no /usr/bin/python3 on the node"),
    ("to use the password mechanism, you must install the sshpass program", "the controller has no sshpass"),
    ("Received disconnect from 10.0.0.7 port 22:2: Too many authentication failures", "its SSH server gave up"),
]


def test_every_recording_has_its_sentence():
    assert RECORDED.keys() == SAID.keys()


@pytest.mark.parametrize("name", SAID)
def test_a_recorded_message_is_its_cause_and_what_to_type(name):
    told = explain(RECORDED[name])
    cause, remedy = SAID[name]
    assert told.cause.startswith(cause)
    assert remedy in told.remedy
    assert "{" not in told.cause + told.remedy


@pytest.mark.parametrize(("message", "cause"), ALSO)
def test_messages_from_the_sources(message, cause):
    assert explain(message).cause.startswith(cause)


def test_what_the_caller_knows_of_the_way_is_in_the_commands():
    told = explain(RECORDED["changed_key"], Way("10.0.0.7", 2222, "ops"))
    assert "`ssh-keygen -R '[10.0.0.7]:2222'`" in told.remedy
    assert "`ssh -p 2222 ops@10.0.0.7`" in told.remedy


def test_another_message_is_left_to_its_caller():
    assert explain("the disk is full") is None


DENIED = RECORDED["denied"]


def test_a_public_key_is_told_and_not_to_be_closed():
    for message in (DENIED, RECORDED["open_key"]):
        told = explain(message, Way(key="/k/id.pub"))
        assert told.cause.startswith("/k/id.pub is the public key")
        assert told.remedy.endswith("ansible_ssh_private_key_file: /k/id")


def test_a_key_with_a_passphrase_is_for_the_agent():
    told = explain(DENIED, Way("10.0.0.7", key="/k/id", locked=True))
    assert "it has a passphrase" in told.cause and "`ssh-add /k/id`" in told.remedy
    assert "may be read by others" in explain(RECORDED["open_key"], Way(key="/k/id", locked=True)).cause
    assert "passphrase" not in explain(DENIED, Way(key="/k/id")).cause


def test_the_inventorys_own_file_of_known_hosts_is_the_one_to_write_to():
    way = Way("10.0.0.7", 22, "ops", known="/k/known hosts")
    told = explain(RECORDED["unknown_key"], way)
    assert "`ssh -o UserKnownHostsFile='/k/known hosts' ops@10.0.0.7`" in told.remedy
    assert "`ssh-keyscan 10.0.0.7 >> '/k/known hosts'`" in told.remedy
    assert "`ssh-keygen -f '/k/known hosts' -R '10.0.0.7'`" in explain(RECORDED["changed_key"], way).remedy


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (("-o 'UserKnownHostsFile=\"/k/known_hosts\"' -o StrictHostKeyChecking=yes",), "/k/known_hosts"),
        (("", "-o UserKnownHostsFile=/k/a -o UserKnownHostsFile=/k/b"), "/k/a"),
        (("-oUserKnownHostsFile=/k/a",), "/k/a"),
        (("-o 'userknownhostsfile /k/a /k/b'",), "/k/a"),
        (("-o UserKnownHostsFile=/dev/null", "-C -o ControlMaster=auto"), ""),
        (("-o 'unclosed",), ""),
    ],
)
def test_which_file_of_known_hosts_ssh_is_told(arguments, file):
    assert known_hosts(*arguments) == file


#: The beginnings of keys that `ssh-keygen -t ed25519` made, with and without a passphrase.
@pytest.mark.parametrize(
    ("text", "guarded"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAA", True),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAA", False),
        ("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n", True),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----\n", True),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE", False),
        ("ssh-ed25519 AAAA", False),
        ("", False),
    ],
)
def test_whether_a_passphrase_guards_a_key(text, guarded):
    assert locked(text) is guarded
