# SPDX-License-Identifier: Apache-2.0
"""Variables read from Python: worked out when asked for, once, with the defaults of Jinja."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleUndefinedVariable
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from plugin_utils.variables import Variables


def variables(**given):
    raw = {name: trust_as_template(value) if isinstance(value, str) else value for name, value in given.items()}
    return Variables(Templar(DataLoader()), raw)


def test_a_value_is_worked_out_when_it_is_asked_for_and_what_is_made_of_a_note_has_it():
    known = variables(a="{{ b }}/c", b="{{ d }}", d=1)
    known.note("d", "x")
    assert known["a"] == "x/c"
    known.note("b", "later")
    assert known["a"] == "x/c", "worked out once"


def test_a_default_stands_for_what_is_not_defined_or_leans_on_it():
    known = variables(leans="{{ nothing }}", empty="")
    assert known.get("nothing", 1) == known.get("leans", 1) == 1
    assert not known.get("empty", 1)
    with pytest.raises(AnsibleUndefinedVariable):
        known["leans"]
    with pytest.raises(KeyError):
        known["nothing"]


def test_a_text_that_nobody_trusts_stays_a_text():
    assert Variables(Templar(DataLoader()), {"told": "{{ 1 + 1 }}"})["told"] == "{{ 1 + 1 }}"
