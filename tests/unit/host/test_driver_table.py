# SPDX-License-Identifier: Apache-2.0
"""Which driver takes which ROCm, by roles/rocm/files/drivers.yml and by what AMD says of a year between the two."""

import re
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.vllm_fleet.host import driver, driver_table
from plugin_utils import driver_releases

FILE = Path(__file__).resolve().parents[3] / "roles/rocm/files/drivers.yml"
DATA = driver_releases.numbered(yaml.safe_load(FILE.read_text()))
TABLE = driver_table.parse(DATA)


def test_the_file_has_all_that_the_nodes_know_and_a_source_for_each():
    assert {one.module: one.line for one in TABLE.lines} == driver.MODULE_RELEASES
    for entry in DATA["drivers"]:
        assert entry["sources"] and set(entry["sources"]) <= DATA["sources"].keys(), entry["line"]
        assert all(release.startswith(entry["line"] + ".") for release in entry["releases"])
        assert set(entry["rocm"]) <= DATA["rocm"].keys(), entry["line"]
    used = {source for entry in DATA["drivers"] for source in entry["sources"]}
    assert DATA["sources"].keys() - used == {"rule", "rocm_history"}
    assert driver_table.parse(driver_table.as_option(DATA)) == TABLE, "what a node is given says the same"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.pop("rocm"), "is not understood (KeyError: 'rocm')"),
        (lambda data: data["drivers"][0].update(line="thirty"), "has thirty where two numbers are expected"),
        (lambda data: data["drivers"].reverse(), "is not in order"),
        (lambda data: data["drivers"].append(data["drivers"][-1]), "is not in order, or has a release twice"),
        (lambda data: data["rocm"]["7.2"].update(released="soon"), "has soon where a day is expected"),
    ],
)
def test_a_file_that_is_none_is_refused(change, words):
    data = driver_releases.numbered(yaml.safe_load(FILE.read_text()))
    change(data)
    with pytest.raises(ValueError, match=re.escape(words)):
        driver_table.parse(data)


def test_the_words_of_the_allowed_list():
    every = [one.line for one in TABLE.lines]
    assert {"31.10", "31.20", "31.50"} <= set(every)
    assert driver_table.allowed(["known", "newer", "30.30.4"], TABLE) == [*every, f">{every[-1]}", "30.30.4"]
    assert driver_table.allowed(["31.40", 30.30, "inbox"], TABLE) == ["31.40", "30.3", "inbox"]
    assert driver_table.allowed(["newer"], driver_table.Table()) == []


@pytest.mark.parametrize(
    ("release", "allowed", "right"),
    [
        ("31.40.1", ["known"], True),
        ("31.60", ["known"], False),
        ("31.60", ["known", "newer"], True),
        ("32.10.2", ["newer"], True),
        ("31.50.2", ["newer"], False),  # of the newest line, which is known
        ("30.40", ["known", "newer"], False),  # of no known line, and not above them
        ("inbox", ["known", "newer"], False),
        (None, ["known", "newer"], False),
    ],
)
def test_a_release_on_the_list(release, allowed, right):
    version = None if release == "inbox" else "9.9.9"
    assert driver.driver_allowed(release, version, driver_table.allowed(allowed, TABLE)) is right
    newer = release in ("31.60", "32.10.2")
    assert driver_table.newer_than_known(release, TABLE) is newer


@pytest.mark.parametrize(
    ("release", "rocm", "accepted", "words"),
    [
        ("30.10.2", "6.2.4", True, "AMD names ROCm 6.2 for driver 30.10"),
        ("30.30.4", "7.2.3", True, "AMD names ROCm 7.2 for driver 30.30"),
        ("31.40.1", "7.2.3", True, "are within a year; AMD names ROCm 7.14 for driver 31.40"),
        ("31.50", "10.1.0", True, "AMD names ROCm 10.1"),
        ("31.50", "7.2", True, "within a year"),
        ("31.50", "6.4.3", False, "more than a year apart; AMD names ROCm 10.0, 10.1 for driver 31.50"),
        ("30.10", "10.1", False, "more than a year apart"),
        ("30.10", "10.0", True, "within a year"),
        # Neither has a day of its own: between those of its neighbours both are within a year.
        ("31.20", "7.13", True, "within a year"),
        ("31.20", "6.1", False, "ROCm 6.1 is older than the rule of one year"),
        # Newer than all that is known: no day can be too late, and some are too early.
        ("32.10", "10.1", None, "the days of driver 32.10 and ROCm 10.1 are not known here"),
        ("32.10", "6.4", False, "more than a year apart"),
        ("30.10", "11.0", False, "more than a year apart"),
        ("31.50", "11.0", None, "are not known here"),
        ("inbox", "7.2", None, ""),
        (None, "7.2", None, ""),
        ("31.40", "", None, ""),
    ],
)
def test_a_driver_and_the_rocm_of_an_image(release, rocm, accepted, words):
    found = driver_table.verdict(TABLE, release, rocm)
    assert (found.accepted, words in found.why) == (accepted, True), found


def facts(release="30.30.4", **changes):
    loaded = {"loaded": True, "release": release, "version": "6.16.13", "allowed": True, "reboot_required": False}
    return {**loaded, "on_disk_version": "6.16.13", "package_release": release, "package_allowed": True, **changes}


WAITS = {"reboot_required": True, "on_disk_version": "6.19.14.31400000", "package_release": "31.40"}


@pytest.mark.parametrize(
    ("node", "installs", "reboots", "release"),
    [
        (facts(), True, True, "30.30.4"),
        (facts(**WAITS), True, True, "31.40"),
        (facts(**WAITS), True, False, "30.30.4"),
        (facts(**{**WAITS, "package_allowed": False}), True, True, "30.30.4"),
        (facts(**{**WAITS, "package_release": None}), False, True, "31.40"),
        (facts("31.10", allowed=False), True, True, "30.30.4"),
        (facts("31.10", allowed=False), False, True, "31.10"),
        (facts(None, loaded=False, allowed=False, on_disk_version=None), True, False, "30.30.4"),
        (
            facts(None, loaded=False, allowed=False, on_disk_version="6.16.6", package_allowed=False),
            False,
            False,
            "30.20",
        ),
        (facts(None), True, True, None),
    ],
)
def test_the_driver_that_a_server_will_start_on(node, installs, reboots, release):
    assert driver_table.coming(node, "30.30.4", installs=installs, reboots=reboots) == release


def test_what_preflight_says_of_driver_and_image():
    refused = driver_table.finding(TABLE, "31.50", "6.4.3")
    assert (refused.level, refused.got) == ("refused", "driver 31.50, ROCm 6.4.3")
    assert "preflight_accept: [driver and image]" in refused.remedy
    assert driver_table.finding(TABLE, "31.50", "6.4.3", proven=True).level == "warning"
    assert driver_table.finding(TABLE, "31.50", "10.0.0").level == "ok"
    assert driver_table.finding(TABLE, "32.10", "10.0.0").level == "unknown"
    assert driver_table.finding(TABLE, "31.50", "") is None


@pytest.mark.parametrize(
    ("release", "distribution", "words"),
    [
        ("30.30.4", "ubuntu-26.04", "not for ubuntu-26.04: set rocm_driver_version to one of 31.30, 31.40."),
        ("31.40", "ubuntu-26.04", ""),
        ("31.40", "fedora-44", "and not for fedora-44: install a driver by hand."),
        ("31.50", "ubuntu-26.04", ""),  # nothing is said of it
        ("39.10", "debian-12", ""),
    ],
)
def test_a_distribution_that_amd_packages_nothing_for(release, distribution, words):
    found = driver_table.lacks_packages(TABLE, release, distribution)
    assert (words in found) if words else (found == ""), found
