# SPDX-License-Identifier: Apache-2.0
"""Two gateways that share an address, on nodes with systemd: how one dies under load, renews its certificate, and leaves."""

from __future__ import annotations

import datetime
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fleet import Fleet

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))

from gateway_scene import Echo, until  # noqa: E402

LOCAL = {
    "ansible_connection": "local",
    "ansible_python_interpreter": "/usr/bin/python3",
    "vllm_image_name": "acme/none",
    "vllm_image_tag": "1",
    "vllm_server_name": "gateway-pair",
}
KEY = "fleet-key-of-the-servers"
GATEWAYS = ("gateway1", "gateway2")


def pem(days: int = 90, *, other_key: bool = False) -> str:
    """A certificate that ends in so many days, and its key or another one."""
    key, wrong = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway.test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=200))
    builder = builder.not_valid_after(now + datetime.timedelta(days=days, hours=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("gateway.test")]), critical=False)
    made = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    written = (wrong if other_key else key).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (made + written).decode()


class Client(threading.Thread):
    """Sends one request after the other to an address; ``lost`` are those without an answer in ``patience`` seconds."""

    def __init__(self, address: str, stop: threading.Event, *, patience: float = 20, tls: bool = False) -> None:
        super().__init__(daemon=True)
        self.address, self.stop, self.patience, self.tls = address, stop, patience, tls
        self.good = self.lost = 0
        self.start()

    def run(self) -> None:
        while not self.stop.wait(0.01):
            answered = ask(self.address, self.patience, tls=self.tls) == 200
            self.good, self.lost = self.good + answered, self.lost + (not answered)


def ask(address: str, seconds: float, text: str = "short", *, tls: bool = False) -> int:
    """Status of a chat; 0 without an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = (
        http.client.HTTPSConnection(address, 8080, timeout=seconds, context=context)
        if tls
        else http.client.HTTPConnection(address, 8080, timeout=seconds)
    )
    try:
        body = json.dumps({"messages": [{"role": "user", "content": text}]})
        connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


class Pair:
    """Two gateways before two servers of this machine."""

    def __init__(self, folder: Path, fleet: Fleet) -> None:
        self.folder, self.fleet = folder, fleet
        self.inventory = yaml.safe_load((folder / "fleet/inventory.yml").read_text())
        self.address = {name: fleet.node(name).address for name in GATEWAYS}
        first = IPv4Address(self.address["gateway1"])
        host, self.vip = str(first - int(first) % 256 + 1), str(first - int(first) % 256 + 200)
        self.servers = [Echo(f"s{n}", "acme/small", key=KEY, bind=host) for n in (1, 2)]

    def play(self, *words: str, playbook: str = "", hosts: dict[str, Any] | None = None, **edits: Any) -> str:
        """Run the role on both gateways, or a playbook."""
        variables = {
            "gateway_vip": {"address": f"{self.vip}/24", "interface": "eth0"},
            "gateway_drain_timeout": 20,
            **edits,
        }
        servers = {one.name: {**LOCAL, **one.host} for one in self.servers}
        groups = {"vllm": {"hosts": servers}, "gateway": {"hosts": hosts or {}, "vars": variables}}
        (self.folder / "more.yml").write_text(json.dumps({"all": {"children": groups}}))
        play = {
            "hosts": "gateway",
            "become": True,
            "gather_facts": False,
            "any_errors_fatal": True,
            "roles": ["gateway"],
        }
        (self.folder / "play.yml").write_text(json.dumps([play]))
        environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "2000"}
        command = ["ansible-playbook", "-i", self.folder / "fleet/inventory.yml", "-i", self.folder / "more.yml"]
        done = subprocess.run(
            [str(word) for word in [*command, ROOT / playbook if playbook else self.folder / "play.yml", *words]],
            capture_output=True,
            text=True,
            env=environ,
            cwd=ROOT,
            check=False,
        )
        self.code = done.returncode
        return done.stdout + done.stderr

    def ok(self, *words: str, **edits: Any) -> dict[str, int]:
        """Insist that it went through; what changed on each gateway."""
        said = self.play(*words, **edits)
        assert self.code == 0, said
        return {host: int(n) for host, n in re.findall(r"^(gateway\d)\s.*\bchanged=(\d+)", said, re.MULTILINE)}

    def holders(self) -> list[str]:
        """Who has the address."""
        command = ["ip", "-4", "-o", "address", "show", "dev", "eth0"]
        shown = {name: self.fleet.exec(name, command, check=False).stdout for name in GATEWAYS}
        return [name for name, text in shown.items() if f" {self.vip}/" in text]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    fleet = Fleet(f"pair-{os.getpid()}", say=lambda _: None)
    try:
        fleet.up(folder / "fleet", [], gateways=["bookworm", "trixie"])
        made = Pair(folder, fleet)
        yield made
        for one in made.servers:
            one.shutdown()
            one.server_close()
    finally:
        fleet.down()


def test_two_gateways_share_an_address_and_a_second_run_changes_nothing(pair: Pair) -> None:
    said = pair.play("--limit", "gateway1")
    assert (pair.code, "by another list of gateways than gateway2" in said) == (2, True), said
    changed = pair.ok()
    assert all(changed.values()), changed
    until(lambda: len(pair.holders()) == 1, "one has the address")
    until(lambda: ask(pair.vip, 2) == 200, "it answers")
    # What is installed and stopped is started again, and check mode says so; nothing else changes, on the other one nothing.
    (other,) = set(GATEWAYS) - set(pair.holders())
    pair.fleet.exec(other, ["systemctl", "stop", "keepalived"])
    would, did = pair.ok("--check"), pair.ok()
    assert would == did and set(did.values()) == {0, 1}, (would, did)
    assert did[other] == 1


#: What happens to a gateway, and what brings it back. systemd would start a killed HAProxy at once, and nothing would move.
DEATHS: dict[str, tuple[Callable[[Fleet, str], Any], Callable[[Fleet, str], Any]]] = {
    "a killed HAProxy": (
        lambda fleet, name: fleet.exec(
            name, ["sh", "-c", "systemctl mask -q --runtime haproxy; kill -KILL $(pidof haproxy)"]
        ),
        lambda fleet, name: fleet.exec(
            name, ["sh", "-c", "systemctl unmask -q --runtime haproxy; systemctl start haproxy"]
        ),
    ),
    "a stopped keepalived": (
        lambda fleet, name: fleet.exec(name, ["systemctl", "stop", "keepalived"]),
        lambda fleet, name: fleet.exec(name, ["systemctl", "start", "keepalived"]),
    ),
    "a host without power": (lambda fleet, name: fleet.off(name), lambda fleet, name: fleet.on(name)),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_gateway_dies_under_load(pair: Pair, death: str) -> None:
    """Its own streams are lost and nothing else; new connections come through within three seconds."""
    (victim,) = pair.holders()
    (other,) = set(GATEWAYS) - {victim}
    stop, through_other = threading.Event(), []
    for server in pair.servers:
        server.delay = 0.0
    clients = [Client(pair.vip, stop, patience=2) for _ in range(2)] + [
        Client(pair.address[other], stop) for _ in range(2)
    ]
    until(lambda: all(one.good > 5 for one in clients), "load on both")
    for server in pair.servers:
        server.delay = 3.5
    slow = [threading.Thread(target=lambda: through_other.append(ask(pair.address[other], 20))) for _ in range(4)]
    begun = sum(server.chats for server in pair.servers)
    for one in slow:
        one.start()
    until(lambda: sum(server.chats for server in pair.servers) >= begun + 4, "long requests are with the servers")
    for server in pair.servers:
        server.delay = 0.0
    began = time.monotonic()
    DEATHS[death][0](pair.fleet, victim)
    until(lambda: pair.holders() == [other], "the other one has the address")
    until(lambda: ask(pair.vip, 0.3) == 200, "new connections")
    back = time.monotonic() - began
    for one in slow:
        one.join()
    stop.set()
    for one in clients:
        one.join()
    own, others = sum(one.lost for one in clients[:2]), sum(one.lost for one in clients[2:])
    print(
        f"{death}: new connections after {back:.1f} s, requests lost at the dead gateway {own}, at the other {others} of "
        f"{sum(one.good for one in clients[2:])}, long ones {through_other}"
    )
    assert (others, through_other) == (0, [200] * 4)
    # A command of the test itself takes a part of this.
    assert back < 4.5
    DEATHS[death][1](pair.fleet, victim)
    # Who comes back does not take the address again.
    until(lambda: "BACKUP" in state(pair, victim), "it stands by")
    assert pair.holders() == [other]


def state(pair: Pair, name: str) -> str:
    """The last state that keepalived wrote down on a gateway."""
    log = pair.fleet.exec(name, ["journalctl", "-b", "-u", "keepalived", "-o", "cat"], check=False).stdout
    return ([line for line in log.splitlines() if "Entering" in line] or [""])[-1]


def served(address: str) -> str:
    """The certificate that a client gets."""
    return ssl.get_server_certificate((address, 8080), timeout=5)


def test_a_certificate_is_renewed_without_losing_a_connection(pair: Pair) -> None:
    path = "/etc/haproxy/gateway.pem"
    old, new = pem(20), pem(80)
    assert all(pair.ok(gateway_certificate=path, gateway_certificate_pem=old).values())
    assert served(pair.vip).strip() in old
    pid = pair.fleet.exec("gateway1", ["pidof", "haproxy"]).stdout
    bad = {
        "gateway1": (pem(-1), "certificate has expired"),
        "gateway2": (pem(other_key=True), "the key belongs to another certificate"),
    }
    hosts = {name: {"gateway_certificate_pem": one} for name, (one, _) in bad.items()}
    said = pair.play(gateway_certificate=path, hosts=hosts, gateway_maxconn=99)
    assert pair.code == 2, said
    for name, (_, says) in bad.items():
        assert says in said, said
        assert served(pair.address[name]).strip() in old
    stop = threading.Event()
    clients = [Client(pair.address[name], stop, tls=True) for name in GATEWAYS]
    for server in pair.servers:
        server.delay = 0.2
    pair.ok(gateway_certificate=path, gateway_certificate_pem=new)
    until(lambda: all(served(pair.address[name]).strip() in new for name in GATEWAYS), "new certificates")
    stop.set()
    for one in clients:
        one.join()
    print(f"{sum(one.good for one in clients)} requests over a renewal, {sum(one.lost for one in clients)} lost")
    assert (sum(one.lost for one in clients), pair.fleet.exec("gateway1", ["pidof", "haproxy"]).stdout) == (0, pid)
    said = pair.play(gateway_certificate=path, gateway_certificate_pem=new, playbook="playbooks/status.yml")
    rows = [line for line in said.splitlines() if "running" in line and "gateway" in line]
    assert [("80 days left" in row, "checked" in row) for row in rows] == [(True, True)] * 2, said
    assert f"{pair.vip}/24 is at gateway" in said and "different configurations" not in said, said


def test_a_gateway_leaves_when_its_streams_have_ended(pair: Pair) -> None:
    (leaving,) = pair.holders()
    (other,) = set(GATEWAYS) - {leaving}
    path, gone = "/etc/haproxy/gateway.pem", {leaving: {"gateway_absent": True}}
    for server in pair.servers:
        server.delay = 8.0
    answers: list[int] = []
    stream = threading.Thread(target=lambda: answers.append(ask(pair.address[leaving], 30, tls=True)))
    begun = sum(server.chats for server in pair.servers)
    stream.start()
    until(lambda: sum(server.chats for server in pair.servers) > begun, "a long request is with a server")
    given = {"gateway_certificate": path, "gateway_certificate_pem": pem(70), "hosts": gone}
    assert pair.ok("--limit", leaving, **given)[leaving] > 0
    stream.join()
    for server in pair.servers:
        server.delay = 0.0
    assert answers == [200]
    left = pair.fleet.exec(
        leaving, ["sh", "-c", "find / -xdev -name '*vllm-fleet*'; pidof haproxy keepalived"], check=False
    )
    assert (left.stdout, pair.holders()) == ("", [other])
    assert ask(pair.vip, 2, tls=True) == 200
    # Without the variable the other gives the address up, and goes on. Of the first nothing is left to take away.
    changed = pair.ok(**{**given, "gateway_vip": {}})
    assert changed[leaving] == 0 < changed[other]
    assert (pair.holders(), ask(pair.address[other], 2, tls=True)) == ([], 200)
