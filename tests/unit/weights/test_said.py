# SPDX-License-Identifier: Apache-2.0
"""What a node says is data: every value that goes to another node has a form, or is refused with the node's name."""

from __future__ import annotations

import base64
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible.module_utils.vllm_fleet.weights import said, swarm
from ansible.module_utils.vllm_fleet.weights import torrent as torrents

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tests" / "unit"))
from role_variables import rendering  # noqa: E402

spec = importlib.util.spec_from_file_location("hf_cache_filters_of_said", ROOT / "filter_plugins" / "hf_cache.py")
assert spec and spec.loader
filters: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(filters)
FOLDER = "/tmp/hf_cache.0123abcd.x1Y2z3W4"
SERVE = f"sudo -n rsync --config={FOLDER}/rsyncd.conf --server --daemon ."
HOST_KEY = "seed ssh-ed25519 " + "A" * 68
OFFER = ["ops", FOLDER, "202612312359", SERVE, HOST_KEY + " root@n1"]


def test_an_offer_is_taken_apart() -> None:
    found = said.offer(OFFER, "n1")
    assert (found.user, found.folder, found.until, found.command) == ("ops", FOLDER, "202612312359", SERVE)
    assert found.host_keys == (HOST_KEY,)  # without the comment, which is anybody's text


#: Line, and what a seed in other hands may say in its place.
LIES = [
    *((0, lie) for lie in ("root -oProxyCommand=id", "-oProxyCommand=id", "", "a b", "a\nb", "a'b", "%h", "x" * 99)),
    *((1, lie) for lie in ("/", "/etc", "/tmp/hf_cache.x", f"{FOLDER}/..", f"{FOLDER} /etc", f"{FOLDER}\n", "~")),
    *((2, lie) for lie in ("20991231", "2099123123590", '209912312359",command="sh', "")),
    *((3, lie) for lie in ("sh", f"{SERVE} ", f"{SERVE};sh", SERVE.replace("x1Y2z3W4", "other111"), f'{SERVE}"', "")),
    *((4, lie) for lie in ("* ssh-ed25519 AAAA", "seed @cert-authority *", HOST_KEY + "\nx", "seed", "")),
]


@pytest.mark.parametrize(("line", "lie"), LIES)
def test_a_line_of_another_form_is_refused_and_the_node_is_named(line: int, lie: str) -> None:
    lines = [*OFFER]
    lines[line] = lie
    with pytest.raises(said.NotOfItsForm, match=r"^n1 says .* expected .*\.$"):
        said.offer(lines, "n1")


@pytest.mark.parametrize("lines", [[], OFFER[:2], OFFER[:4]])
def test_a_part_of_an_offer_is_none(lines: list[str]) -> None:
    with pytest.raises(said.NotOfItsForm):
        said.offer(lines, "n1")


@pytest.mark.parametrize(
    "lines",
    [
        ["/", "ssh-ed25519 " + "A" * 68],
        [FOLDER],
        [FOLDER, 'command="sh" ssh-ed25519 ' + "A" * 68],
        [FOLDER, "ssh-ed25519 " + "A" * 68 + "\nssh-ed25519 B"],
        [FOLDER, "ssh-ed25519 $(id)"],
    ],
)
def test_a_key_of_another_form_does_not_reach_the_seed(lines: list[str]) -> None:
    with pytest.raises(said.NotOfItsForm, match=r"^n2 says"):
        said.key(lines, "n2")


@pytest.mark.parametrize(
    "found", ["0.0.0.0", "::", "0.0.0.0/0", "224.0.0.1", "n1", "10.0.0.1 -oX=y", "", None, 7, ["10.0.0.1"]]
)
def test_an_address_is_one_address(found: Any) -> None:
    with pytest.raises(said.NotOfItsForm):
        said.address(found, "n1")


@pytest.mark.parametrize("found", [["8.8.8.8"], ["10.0.0.0/8"], ["any"], [f"10.0.0.{n}" for n in range(1, 30)]])
def test_a_node_lets_in_no_more_than_a_node(found: list[str]) -> None:
    variables: dict[str, Any] = {"n1": {"__hf_cache_ready": {"address": "10.0.0.1", "addresses": found}}}
    with pytest.raises(AnsibleFilterError, match="n1 says"):
        filters.hf_cache_addresses({"peers": ["n1"]}, variables)


def test_the_addresses_of_a_swarm_are_those_of_its_nodes() -> None:
    variables: dict[str, Any] = {
        "n1": {"__hf_cache_ready": {"address": "10.0.0.1", "addresses": ["10.0.0.1", "192.168.0.1"]}},
        "n2": {"hf_cache_swarm_address": "198.51.100.7", "__hf_cache_ready": {"ok": False}},
        "n3": {},
        # The inventory may give a public one, which the node then says, too.
        "n4": {
            "hf_cache_swarm_address": "8.8.8.8",
            "__hf_cache_ready": {"address": "8.8.8.8", "addresses": ["10.0.0.4"]},
        },
    }
    found = filters.hf_cache_addresses({"peers": list(variables)}, variables)
    assert found == ["10.0.0.1", "10.0.0.4", "192.168.0.1", "198.51.100.7", "8.8.8.8"]


@pytest.mark.parametrize(
    "words",
    [
        ["sh", "-c", "id"],
        ["setpriv", "--reuid", "0;id", "--regid", "0", "--clear-groups"],
        ["setpriv", "--reuid", "1", "--regid", "1", "--clear-groups", "sh"],
        ["setpriv", "--reuid 1 --regid", "1", "--keep-groups", "--bounding-set=+all"],
        "setpriv",
    ],
)
def test_only_setpriv_with_ids_goes_before_a_command(words: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="the owner of its cache"):
        filters.hf_cache_as_owner({"as_owner": words}, "n1")


@pytest.mark.parametrize(
    ("found", "wanted"), [("../x", "main"), ("a" * 40, "b" * 40), (None, "main"), ("A" * 40, "main")]
)
def test_a_commit_is_the_pinned_one(found: Any, wanted: str) -> None:
    with pytest.raises(AnsibleFilterError, match="n1 says"):
        filters.hf_cache_commit({"commit": found}, "n1", wanted)


def copied_by(folder: Path, offer: list[str]) -> list[str]:
    """The command of a receiver's copy, as the role makes it of what the seed has said."""
    seed = {"__hf_cache_offer": {"stdout_lines": offer}, "__hf_cache_whole": {"commit": "c" * 40}}
    receiver = {
        "__hf_cache_key": {"stdout_lines": [FOLDER, "ssh-ed25519 " + "A" * 68]},
        "__hf_cache_missing": {"wanted": ["a" * 64, "-e sh", "../x"]},
    }
    common = {
        "hf_cache_repo_id": "org/m",
        "hf_cache_path": "/srv/hf",
        "hf_cache_revision": "main",
        "__hf_cache_topology": {"seed": "n1", "peers": ["n1", "n2"], "receivers": ["n2"], "transport": "rsync"},
    }
    wanted = {"argv": "[__hf_cache_offered.user] + __hf_cache_rsync_argv if inventory_hostname == 'n2' else []"}
    folder.mkdir()
    found = rendering(folder, ROOT / "roles/hf_cache", {"n1": seed, "n2": receiver}, wanted, **common)
    return list(found["n2"]["argv"])


def test_no_word_of_a_lying_seed_reaches_the_command_line_of_a_receiver(tmp_path: Path) -> None:
    user, program, *words = copied_by(tmp_path / "1", OFFER)
    assert (user, program) == ("ops", "rsync")
    shell = [f"--rsh=ssh -F {FOLDER}/config", "--include=/" + "a" * 64]
    assert [word for word in words if word.startswith(("--rsh", "--include"))] == shell
    with pytest.raises(AssertionError, match="n1 says 'root -oProxyCommand"):
        copied_by(tmp_path / "2", ["root -oProxyCommand=touch /tmp/x;false", *OFFER[1:]])


# Torrents


def bencoded(value: Any) -> bytes:
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, list):
        return b"l" + b"".join(map(bencoded, value)) + b"e"
    return b"d" + b"".join(bencoded(name) + bencoded(value[name]) for name in sorted(value)) + b"e"


NAME, BLOB = "c" * 40, "a" * 64
TRACKER = "http://10.0.0.1:6969/announce"


def made(more: dict[bytes, Any], path: list[bytes] | None = None, name: str = NAME, tracker: str = TRACKER) -> bytes:
    files = [{b"length": 1, b"path": path or [BLOB.encode()]}]
    info = {b"files": files, b"name": name.encode(), b"piece length": 1, b"pieces": bytes(20)}
    return bencoded({b"announce": tracker.encode(), b"info": info, **more})


def judged(data: bytes) -> None:
    torrents.check(torrents.read_torrent(data), NAME, TRACKER)


def test_a_torrent_as_the_seed_makes_it_is_taken() -> None:
    judged(made({b"created by": b"mktorrent 1.1", b"creation date": 1}))


@pytest.mark.parametrize(
    "data",
    [
        made({b"url-list": [b"http://192.0.2.1/"]}),
        made({b"announce-list": [[b"http://192.0.2.1/announce"]]}),
        made({b"nodes": [[b"192.0.2.1", 1]]}),
        made({}, [b"..", b"x"]),
        made({}, [b"../../etc/cron.d/x"]),
        made({}, [b"x"]),
        made({}, name="../x"),
        made({}, tracker="http://192.0.2.1:6969/announce"),
        made({}) + b"more",
        b"d" + b"l" * 100_000,
    ],
    ids=range(10),
)
def test_a_torrent_that_names_more_is_refused(data: bytes) -> None:
    with pytest.raises(torrents.SwarmError):
        judged(data)


@pytest.mark.parametrize("blob", ["../../../../etc/shadow", "/etc/shadow", "", ".", "a", "A" * 64])
def test_a_seed_shares_blobs_alone(blob: str, tmp_path: Path) -> None:
    with pytest.raises(torrents.SwarmError, match="no blob's name"):
        swarm.origins(tmp_path, [blob])


def test_what_comes_as_text_is_not_a_torrent() -> None:
    with pytest.raises(torrents.SwarmError):
        judged(base64.b64encode(made({})))
