# SPDX-License-Identifier: Apache-2.0
"""The key of an apt repository, believed for its fingerprint. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def primary_keys(listing: str) -> list[str]:
    """Return the fingerprints of primary keys, secret ones too, in what ``gpg --with-colons --show-keys`` printed."""
    return re.findall(r"(?m)^(?:pub|sec):.*\n(?:.*\n)*?fpr:+([0-9A-F]{40}):", listing)


def only_expected_keys(primary: Sequence[str], expected: Iterable[str]) -> bool:
    """Return whether there are keys and all are expected; blanks and case of the expected ones do not matter."""
    return bool(primary) and set(primary) <= {str(one).replace(" ", "").upper() for one in expected}
