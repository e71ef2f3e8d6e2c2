# SPDX-License-Identifier: Apache-2.0
"""AMD's driver package: versions, what DKMS said."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.host import driver, driver_package


@pytest.mark.parametrize(
    ("release", "pattern"),
    [
        ("30.30.4", "*.30300400-*[0-9]"),
        ("31.40", "*.31400000-*[0-9]"),
        ("31.40.0", "*.31400000-*[0-9]"),
        ("7.1.12", "*.07011200-*[0-9]"),
    ],
)
def test_the_pattern_finds_the_packages_of_a_release(release, pattern):
    assert driver_package.version_pattern(release) == pattern
    package = f"1:6.16.13{pattern.replace('*.', '.').replace('*[0-9]', '2341068.24.04')}"
    assert driver.driver_release(package) == driver.strip_zero(release)


@pytest.mark.parametrize(
    ("loaded", "wanted", "found"),
    [
        (("30.30.4", "6.16.13", None), "30.10.2", ["release 30.30.4"]),
        (("30.30.4", "6.16.13", "30.30.4"), "30.10.2", ["release 30.30.4", "release 30.30.4"]),
        (("30.30", "6.16.13", None), "30.30.4", []),
        (("31.40", "6.19.14", None), "31.40.0", []),
        (("30.30.4", "6.16.13", None), "31.40", []),
        (("30.9", "6.16.13", None), "30.10", []),
        (("inbox", None, None), "30.10", []),
        (("inbox", None, "31.50"), "31.40", ["release 31.50"]),
        ((None, None, None), "31.40", []),
        ((None, "6.10.5", None), "30.10.2", []),
        ((None, "6.14.14", None), "31.40", ["version 6.14.14, of no known release,"]),
    ],
)
def test_what_is_newer_than_the_wanted_release(loaded, wanted, found):
    facts = dict(zip(("release", "version", "package_release"), loaded, strict=True))
    assert driver_package.newer(facts, wanted) == found


def test_drivers_without_a_release_are_older_than_the_first_that_has_one():
    assert driver_package.FIRST_NUMBERED == "6.14.14"


@pytest.mark.parametrize(
    ("build", "said"),
    [
        ({"tail": ["making", "Error! Bad return status", "see make.log"]}, "Error! Bad return status"),
        ({"tail": ["making", "done"], "msg": "m"}, "done"),
        ({"tail": [], "msg": "dkms is not there"}, "dkms is not there"),
        ({"msg": ""}, "nothing"),
        ({}, "nothing"),
    ],
)
def test_what_dkms_said(build, said):
    assert driver_package.dkms_said(build) == said
