# SPDX-License-Identifier: Apache-2.0
"""The swarm's commands and readings: recorded output in, values out."""

import signal
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.weights import torrent as torrents

RECORDED = Path(__file__).resolve().parents[2] / "fixtures" / "aria2"
TEN = 10 << 21


@pytest.mark.parametrize(
    ("log", "total", "first", "done", "seeding"),
    [
        ("fresh", TEN, 0, 16384, False),
        ("resumed", TEN, 3145728, TEN, True),
        ("whole", TEN, TEN, TEN, True),
        ("repaired", 8 << 21, 14417920, 8 << 21, True),
    ],
)
def test_a_recorded_peer_is_read(log: str, total: int, first: int, done: int, seeding: bool) -> None:
    now = torrents.read_progress((RECORDED / f"1.36-{log}.log").read_text(), total)
    assert (now.first, now.done, now.total, now.seeding, now.error) == (first, done, total, seeding, "")


def test_rate_peers_and_time_left_are_of_the_newest_line() -> None:
    log = "[#49e389 3145728B/20971520B(15%) CN:0 SD:0 DL:0B]\n[#49e389 9535488B/20971520B(45%) CN:3 SD:1 DL:6191627B UL:5B(9B) ETA:1s]\n"
    now = torrents.read_progress(log, TEN)
    assert (now.done, now.rate, now.up, now.peers, now.eta, now.first) == (9535488, 6191627, 5, 3, 2, 3145728)


def test_a_peer_that_still_checks_says_nothing_of_what_it_has() -> None:
    now = torrents.read_progress("[#49e389 0B/0B CN:0 SD:0][Checksum:#49e389 1048576B/20971520B(5%)]\n", TEN)
    assert (now.first, now.done, now.eta) == (None, 0, None)


def test_what_made_aria2_give_up_is_kept() -> None:
    log = "[#1 5B/10B(50%) CN:1 SD:1 DL:1B]\nException: [AbstractDiskWriter.cc:435] errNum=28 errorCode=9 Failed to write into the file x, cause: No space left on device\n"
    now = torrents.read_progress(log, 10)
    assert (now.code, now.done) == (torrents.DISK_FULL, 5)
    assert "No space left" in now.error


def test_a_torrent_tells_its_hash_and_its_files_in_order() -> None:
    torrent = torrents.read_torrent((RECORDED / "ten-files.torrent").read_bytes())
    assert torrent.info_hash == "b18a794633a45b267193641c77f52a12d44640c5"  # as aria2 announced it
    assert [name for name, _size in torrent.files] == [f"f{number:02}" for number in range(10)]
    assert torrent.select(["f02", "f00"]) == [3, 1]
    assert torrent.size(["f01", "f01", "f02"]) == 2 << 21
    with pytest.raises(torrents.SwarmError, match="no blob f11"):
        torrent.select(["f11"])


def test_a_file_that_is_no_blob_of_the_folder_makes_no_torrent() -> None:
    for path in ("11:../../etc/x", "6:/etc/x", "2:..", "0:", "1:a1:b", "3:a\nb", "9:blobs/abc"):
        data = f"d4:infod5:filesld6:lengthi1e4:pathl{path}eeeee".encode()
        with pytest.raises(torrents.SwarmError, match="cannot be read"):
            torrents.read_torrent(data)
    assert torrents.read_torrent(b"d4:infod5:filesld6:lengthi1e4:pathl3:abceeeee").files == (("abc", 1),)


@pytest.mark.parametrize(
    "data",
    [b"l-3:", b"d1:al-30:ee", b"li1_0ee", b"l+1:ae", b"l" * 200_000, b"i" + b"9" * 100_000 + b"e", b"99:a", b"l1:a"],
    ids=lambda data: repr(data[:12]),
)
def test_a_torrent_leads_its_reader_nowhere(data: bytes) -> None:
    """A length below nothing led back to what was read, for ever."""

    def over(*_: object) -> None:
        raise TimeoutError("it is read for ever")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(5)
    try:
        with pytest.raises(torrents.SwarmError):
            torrents.read_torrent(data)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("data", [b"", b"d4:infoi1ee", b"not a torrent", b"d8:announce3:xyz", b"i12e"])
def test_what_is_no_torrent_is_refused(data: bytes) -> None:
    with pytest.raises(torrents.SwarmError, match="cannot be read"):
        torrents.read_torrent(data)


@pytest.mark.parametrize(
    ("total", "exponent"), [(0, 18), (80 << 20, 18), (2 << 30, 19), (64 << 30, 24), (690 * 10**9, 26), (10**13, 26)]
)
def test_pieces_are_small_enough_to_overlap_and_few_enough_to_list(total: int, exponent: int) -> None:
    assert torrents.piece_exponent(total) == exponent


@pytest.mark.parametrize(("numbers", "text"), [([1, 2, 3], "1-3"), ([7, 1, 3, 2], "1-3,7"), ([5], "5"), ([], "")])
def test_selected_files_are_written_as_aria2_takes_them(numbers: list[int], text: str) -> None:
    assert torrents.ranges(numbers) == text


@pytest.mark.parametrize("seed", ["no", "made", "held"])
def test_a_peer_talks_to_nobody_but_the_tracker_and_its_peers(seed: str) -> None:
    argv = torrents.aria2_argv("t", "/d", "10.0.0.1", 6881, seed=seed)
    for option in ("enable-dht=false", "enable-dht6=false", "bt-enable-lpd=false", "enable-peer-exchange=false"):
        assert f"--{option}" in argv
    assert "--interface=10.0.0.1" in argv
    assert "--listen-port=6881" in argv
    assert not [word for word in argv if "rpc" in word]
    # With this off, aria2 leaves instead of seeding.
    assert "--bt-hash-check-seed=false" not in argv


def test_units_end_by_themselves_and_may_write_one_folder_only() -> None:
    argv = torrents.service_argv("u", ["aria2c"], seconds=60, log="/l", writable="/w")
    assert argv[-2:] == ["--", "aria2c"]
    for item in ("RuntimeMaxSec=60", "ProtectSystem=strict", "ReadWritePaths=/w", "NoNewPrivileges=yes"):
        assert f"--property={item}" in argv
    # A signal only: `on-abnormal` and wider begin anew what RuntimeMaxSec has ended.
    assert [item for item in argv if "=Restart=" in item] == ["--property=Restart=on-abort"]


def test_units_speak_with_their_team_alone() -> None:
    argv = torrents.service_argv("u", ["aria2c"], seconds=60, log="/l", peers=["10.0.0.1", "10.0.0.2"])
    said = [item for item in argv if "IPAddress" in item]
    assert said == [
        "--property=IPAddressDeny=any",
        *(f"--property=IPAddressAllow={address}" for address in ("localhost", "10.0.0.1", "10.0.0.2")),
    ]


def test_the_torrent_is_private() -> None:
    argv = torrents.mktorrent_argv("n", "http://10.0.0.1:6969/announce", 1, "/f", "/o")
    assert "-p" in argv


@pytest.mark.parametrize(
    ("address", "private"),
    [("10.1.2.3", True), ("192.168.0.1", True), ("100.64.0.1", True), ("8.8.8.8", False), ("x", False), ("", False)],
)
def test_addresses_that_the_internet_reaches_are_told_apart(address: str, private: bool) -> None:
    assert torrents.is_private(address) is private
