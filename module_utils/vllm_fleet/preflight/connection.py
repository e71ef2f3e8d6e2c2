# SPDX-License-Identifier: Apache-2.0
"""Why a node could not be asked, and what to type, from what OpenSSH, sudo and Ansible say. Pure.

Each message was recorded with OpenSSH 9.2, sudo 1.9.13 and ansible-core 2.19 (tests/fixtures/ssh/), or stands in their
sources where it is not among the recordings.
"""

from __future__ import annotations

import base64
import re
import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """What is wrong, as half a sentence, and what to do. ``what`` is `connection`, `root` or `Python`.

    ``address`` is that of the node, which may stand in both.
    """

    what: str
    cause: str
    remedy: str
    address: str = ""


@dataclass(frozen=True)
class Way:
    """How the controller gets to a node; words in capitals where it is not known.

    ``key`` is the file of the private key that the inventory names, ``locked`` whether a passphrase guards it,
    ``known`` the file of known hosts that the inventory names.
    """

    address: str = "ADDRESS"
    port: int = 22
    user: str = "USER"
    key: str = ""
    locked: bool = False
    known: str = ""


#: What is wrong, cause and remedy, by a part of the message; the first one counts. Names in braces are groups of the
#: pattern, fields of Way, `p` (an option for the port, where it is another one) and `known` (as known_hosts has it).
_ROWS: tuple[tuple[str, str, str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "connection",
        "its SSH host key is not the one that the controller knows",
        "if the node was installed anew, forget the old key (`ssh-keygen{f} -R '{known}'`), and accept the new one"
        " after a look at it (`ssh{o}{p} {user}@{address}`); if it was not, somebody may answer in its place",
    ),
    (
        r"Host key verification failed|No \S+ host key is known for",
        "connection",
        "its SSH host key is not known to the controller",
        "look at the key and accept it (`ssh{o}{p} {user}@{address}`), or accept what answers now"
        " (`ssh-keyscan{p} {address} >> {hosts}`)",
    ),
    (
        r"Permissions \d+ for '(?P<file>[^'\n]+)' are too open",
        "connection",
        "the private key {file} may be read by others, so ssh does not use it",
        "take that away: `chmod 600 {file}`",
    ),
    (
        r"no such identity: (?P<file>[^:\n]+): No such file",
        "connection",
        "there is no private key {file} on the controller",
        "correct ansible_ssh_private_key_file or --private-key",
    ),
    (
        r"you must install the sshpass program",
        "connection",
        "the controller has no sshpass, and a password was given for ssh",
        "use a key (`ssh-copy-id{p} {user}@{address}`), or install sshpass (`sudo apt-get install sshpass`)",
    ),
    (
        r"Too many authentication failures",
        "connection",
        "its SSH server gave up before the right key was tried",
        "name the key: ansible_ssh_private_key_file, with ansible_ssh_common_args: -o IdentitiesOnly=yes",
    ),
    (
        r"Permission denied \([\w,-]*\)|Invalid/incorrect (?:username/)?password|Permission denied, please",
        "connection",
        "its SSH server does not take the key or password of the user {user}",
        "bring the key (`ssh-copy-id{p} {user}@{address}`), or correct ansible_user and ansible_ssh_private_key_file",
    ),
    (
        r"Could not resolve hostname (?P<name>[^:\s]+):(?P<number>\d+):",
        "connection",
        "{name}:{number} is an address with a port in it",
        "write ansible_host: {name} and ansible_port: {number}",
    ),
    (
        r"Could not resolve hostname (?P<name>[^:\s]+)",
        "connection",
        "the name {name} is not known to the controller's DNS",
        "correct it, or give the node's address as ansible_host",
    ),
    (
        r"Connection refused",
        "connection",
        "nothing listens at {address}, port {port}",
        "start its SSH server (`systemctl start ssh` at its console), or correct ansible_host and ansible_port",
    ),
    (
        r"No route to host|Network is unreachable|Host is down",
        "connection",
        "there is no way to {address}",
        "check that it is on (`ping {address}`), that ansible_host is right, and the VPN or route to its network",
    ),
    (
        r"timed out|Timeout, server \S+ not responding",
        "connection",
        "{address}, port {port}, does not answer in time",
        "check that it is on, that ansible_host is right, and that a firewall lets the port through"
        " (`nc -vz {address} {port}`)",
    ),
    (
        r"kex_exchange_identification|Connection (?:closed|reset) by",
        "connection",
        "its SSH server ended the connection",
        "see `journalctl -u ssh` at its console: too many connections (MaxStartups), or this controller is blocked",
    ),
    (
        r"Missing \w+ password|a terminal is required to read the password|a password is required",
        "root",
        "sudo wants a password of the user {user}, and none was given",
        "give it with --ask-become-pass, or as ansible_become_password from vault",
    ),
    (
        r"Incorrect \w+ password|Duplicate become password prompt|Sorry, try again",
        "root",
        "a password that sudo on the node does not accept",
        "give the connecting user's own with --ask-become-pass, or as ansible_become_password from vault; if it is"
        " right, {user} may not use sudo: see `sudo -l -U {user}` as root on the node",
    ),
    (
        r"is not in the sudoers file|may not run sudo|is not allowed to (?:execute|run)",
        "root",
        "the user {user} may not use sudo",
        "allow it (`usermod -aG sudo {user}` as root on the node), or connect as one who may (ansible_user)",
    ),
    (
        r"sudo: (?:command )?not found",
        "root",
        "there is no sudo on the node",
        "install it (`apt-get install sudo` as root on the node), or connect as root (ansible_user: root)",
    ),
    (
        r"module interpreter '(?P<file>[^'\n]+)' was not found|(?P<other>\S*python\S*): (?:command )?not found",
        "Python",
        "there is no {file} on the node",
        "install it (`sudo apt-get install python3` on the node), or correct ansible_python_interpreter",
    ),
)
#: What a key that ssh could not use is, by the way to the node, before the messages: ssh says the same of all of them.
_OPEN = r"Permissions \d+ for '"
_KEY_REFUSED = rf"{_OPEN}|Permission denied \([\w,-]*\)|Permission denied, please"
_PUBLIC = (
    "connection",
    "{key} is the public key, and ssh wants the private one",
    "name the private one, which is without .pub: ansible_ssh_private_key_file: {private}",
)
_LOCKED = (
    "connection",
    "its SSH server does not take the key of the user {user}, or {key} was not opened: it has a passphrase",
    "give it to the agent (`ssh-add {key}`), which asks once; if the agent has it, bring the key to the node"
    " (`ssh-copy-id{p} {user}@{address}`)",
)
#: Where a message itself says how the node was to be reached.
_ADDRESSES = (
    r"connect to host (?P<address>\S+) port (?P<port>\d+)",
    r"(?P<user>[\w.-]+)@(?P<address>[\w.:-]+): Permission denied",
    r"Connection (?:to|closed by|reset by) (?P<address>[\w.:-]+) port (?P<port>\d+)",
)


def explain(message: str, way: Way | None = None, *, name: str = Way.address) -> Told | None:
    """Return what a message means; None where it is none of those that are known.

    ``way`` is what the caller knows; without it the message itself may say the address, or else the node's ``name``.
    """
    for pattern, what, cause, remedy in (*_of_key(message, way), *_ROWS):
        found = re.search(pattern, message)
        if found is None:
            continue
        way = way or _way(message, name)
        words = {name: value for name, value in found.groupdict().items() if value}
        words = {"file": words.get("other", "python3"), **words, "address": way.address, "user": way.user}
        words["port"] = str(way.port)
        words["p"] = f" -p {way.port}" if way.port != Way.port else ""
        words["known"] = f"[{way.address}]:{way.port}" if way.port != Way.port else way.address
        words["o"] = f" -o UserKnownHostsFile={shlex.quote(way.known)}" if way.known else ""
        words["f"] = f" -f {shlex.quote(way.known)}" if way.known else ""
        words["hosts"] = shlex.quote(way.known) if way.known else "~/.ssh/known_hosts"
        words |= {"key": way.key, "private": way.key.removesuffix(".pub")}
        return Told(what, cause.format_map(words), remedy.format_map(words), way.address)
    return None


def _of_key(message: str, way: Way | None) -> list[tuple[str, str, str, str]]:
    """Return the row of what is wrong with the key itself, where that is known."""
    if way is None or not way.key:
        opened = re.search(r"Permissions \d+ for '(?P<key>[^'\n]+\.pub)'", message)
        return [(_KEY_REFUSED, "connection", *_public_of(opened["key"]))] if opened else []
    if way.key.endswith(".pub"):
        return [(_KEY_REFUSED, *_PUBLIC)]
    return [(_KEY_REFUSED, *_LOCKED)] if way.locked and not re.search(_OPEN, message) else []


def _public_of(key: str) -> tuple[str, str]:
    """Return cause and remedy for a public key that ssh names itself."""
    words = {"key": key, "private": key.removesuffix(".pub")}
    return _PUBLIC[1].format_map(words), _PUBLIC[2].format_map(words)


def known_hosts(*arguments: str) -> str:
    """Return the file of known hosts that arguments of ssh name; empty where none does, or one that keeps nothing."""
    for text in arguments:
        try:
            words = shlex.split(text)
        except ValueError:
            continue
        for word in words:
            name, _, value = word.removeprefix("-o").strip().replace(" ", "=", 1).partition("=")
            # The first counts, of several files the first too.
            first = next(iter(value.strip(' "').split('"')[0].split()), "")
            if name.lower() == "userknownhostsfile" and first not in ("", "/dev/null", "none"):
                return first
    return ""


def locked(text: str) -> bool:
    """Return whether the text of a private key is one that a passphrase guards (OpenSSH PROTOCOL.key, PEM, PKCS 8)."""
    if "BEGIN ENCRYPTED PRIVATE KEY" in text or "Proc-Type: 4,ENCRYPTED" in text:
        return True
    body = re.search(r"-----BEGIN OPENSSH PRIVATE KEY-----\s+([A-Za-z0-9+/]{32})", text)
    # The magic word, then the cipher's name with its length in four bytes.
    return body is not None and not base64.b64decode(body[1])[15:].startswith(b"\0\0\0\4none")


def _way(message: str, name: str) -> Way:
    for pattern in _ADDRESSES:
        found = re.search(pattern, message)
        if found:
            words = found.groupdict()
            return Way(words["address"], int(words.get("port") or Way.port), words.get("user") or Way.user)
    return Way(name)
