#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Who used what through a gateway, from its journal."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_usage
short_description: Add up the requests of a gateway by day, key and model
version_added: "0.1.0"
description:
  - Reads the lines that HAProxy's service wrote to the journal, one after the other.
  - This module does not modify state.
options:
  first_day:
    description:
      - First day, such as C(2026-11-01), UTC.
    type: str
    required: true
  last_day:
    description:
      - Last day, UTC.
    type: str
    required: true
  unit:
    description:
      - The service.
    type: str
    default: haproxy.service
attributes:
  check_mode:
    support: full
    description: Nothing is changed in either mode.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: Never changed.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Get who used what in November
  gateway_usage:
    first_day: "2026-11-01"
    last_day: "2026-11-30"
  register: usage
"""

RETURN = r"""
rows:
  description:
    - Each C(day) (UTC, of a request's end), C(key) and C(model) with C(requests), C(errors), C(hung_up), C(bytes_in), C(bytes_out), C(with_tokens)
      (requests whose answer named its tokens), C(tokens_in), C(tokens_out), and C(first), counts of times to the first
      byte by class.
  returned: always
  type: list
  elements: dict
unreadable:
  description: Lines of requests that are not of the role's form.
  returned: always
  type: int
begins:
  description: Seconds since 1970 at which the oldest line of the service was written. Null where there is none.
  returned: always
  type: float
"""

import contextlib
import datetime
import json
import subprocess
from collections.abc import Iterator

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.gateway import usage

SHOWN = ("--output=json", "--output-fields=MESSAGE", "--quiet", "--no-pager")


def seconds(day: str, more: int = 0) -> int:
    """Return when a day begins, ``more`` days later; ValueError where it is none."""
    begins = datetime.datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=datetime.timezone.utc)
    return int((begins + datetime.timedelta(more)).timestamp())


def date(number: int) -> str:
    """Return the day that is ``number`` days after the first of 1970, UTC."""
    return (datetime.date(1970, 1, 1) + datetime.timedelta(number)).isoformat()


@contextlib.contextmanager
def journal(*words: str) -> Iterator[Iterator[bytes]]:
    """Lines of journalctl as they come; it ends with the block."""
    with subprocess.Popen(["journalctl", *SHOWN, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield iter(process.stdout or ())
        finally:
            process.terminate()


def main() -> None:
    """Read, add up, report."""
    module = AnsibleModule(
        argument_spec={
            "first_day": {"type": "str", "required": True},
            "last_day": {"type": "str", "required": True},
            "unit": {"type": "str", "default": "haproxy.service"},
        },
        supports_check_mode=True,
    )
    asked = module.params
    try:
        since, until = seconds(asked["first_day"]), seconds(asked["last_day"], 1)
    except ValueError:
        module.fail_json(msg=f"{asked['first_day']} to {asked['last_day']} are no days: give them as 2026-11-01.")
    # Fields that journald itself writes: another program cannot write in the name of the service.
    of_service = (f"_SYSTEMD_UNIT={asked['unit']}", "SYSLOG_IDENTIFIER=haproxy")
    try:
        with journal(*of_service) as lines:
            first = next(lines, b"")
        with journal(f"--since=@{since}", f"--until=@{until}", *of_service) as lines:
            found = usage.read_journal(lines, date)
    except OSError as error:
        module.fail_json(msg=f"journalctl cannot be run: {error.strerror or error}. Accounts are read from journald.")
    begins = int(json.loads(first)["__REALTIME_TIMESTAMP"]) / 1e6 if first.strip() else None
    module.exit_json(changed=False, begins=begins, **found)


if __name__ == "__main__":
    main()
