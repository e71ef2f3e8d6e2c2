# SPDX-License-Identifier: Apache-2.0
"""Files of presets: what is wrong with one is said in a clause with its place."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest
from made_presets import GOOD, changed

from ansible.module_utils.vllm_fleet.models import preset_files

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "filter_plugins"))

ROOT = Path(__file__).resolve().parents[3]


RULES = json.loads((ROOT / "models" / "schema.json").read_text())


BAD = [
    ("no mapping", [], "the file is a list; expected a mapping"),
    ("nothing", None, "the file is None; expected a mapping"),
    ("no model", changed(model=None), "the file lacks model"),
    ("an id without organisation", changed(model="tiny"), "model is 'tiny'; expected to match"),
    ("an id with a space", changed(model="acme/Tiny 1B"), "model is 'acme/Tiny 1B'"),
    ("a key that is none", changed(revison="a" * 40), "has 'revison', which is not one of model, "),
    ("a short commit", changed(revision="c0781d0"), "revision is 'c0781d0'; expected to match"),
    ("another API", changed(api="responses"), "api is 'responses'; expected one of chat, completions"),
    ("bytes as text", changed(weights_bytes="1 GB"), "weights_bytes is '1 GB'; expected a whole number"),
    ("no bytes", changed(weights_bytes=0), "weights_bytes is 0; expected 1 or more"),
    ("true for a number", changed(weights_bytes=True), "weights_bytes is True; expected a whole number"),
    ("a version as a number", changed(min_vllm=0.12), "min_vllm is 0.12; expected text"),
    ("no accelerators", changed(accelerators={}), "accelerators is empty"),
    ("another GPU", changed(accelerators={"H100": {}}), "accelerators has 'H100', which is not one of rocm, MI300X"),
    ("dashes", changed(accelerators__rocm__args={"--x": 1}), "accelerators.rocm.args has --x; names"),
    ("lower case", changed(accelerators__rocm__env={"path": 1}), "accelerators.rocm.env has path; names"),
    ("heads as text", changed(config={"num_attention_heads": "8"}), "config.num_attention_heads is '8'"),
    ("no expectation", changed(verify__0__expect={}), "verify[1].expect is empty"),
    ("no prompt", changed(verify__0__prompt=None), "verify[1]: Exactly one of messages and prompt must be given"),
    ("no query", changed(api="embeddings", verify__0__api="embeddings", verify__0__prompt=None), "needs a query"),
    ("null in a variant", changed(variants={"v": {"model": None}}), "variants.v.model is None; expected text"),
    ("an empty variant", changed(variants={"v": {}}), "variants.v is empty"),
    ("a feature's name", changed(features={"Tools": {"args": {}}}), "names are expected to match"),
    ("a GPU without a reason", changed(accelerators__MI355X={"env": {"X": 1}}), "MI355X changes arguments or env"),
    (
        "twice the same id",
        changed(variants={"v": {"model": "a/b"}, "w": {"model": "a/b"}}),
        "the model of two variants",
    ),
    ("no requests", changed(verify=[]), "verify is empty"),
]


@pytest.mark.parametrize(("what", "preset", "words"), BAD, ids=[case[0] for case in BAD])
def test_a_wrong_preset_is_refused_in_words(what, preset, words):
    assert words in "; ".join(preset_files.faults(preset, RULES))


def test_the_schema_is_one_and_each_of_its_keywords_has_a_clause():
    jsonschema.Draft202012Validator.check_schema(RULES)
    assert preset_files.faults(GOOD, RULES) == []
    words = set(re.findall(r'"([$a-zA-Z]+)":', json.dumps(RULES)))
    judging = words & set(jsonschema.Draft202012Validator.VALIDATORS)
    assert judging - set(preset_files._CLAUSES) == {"properties", "items", "propertyNames", "$ref"}


def test_a_controller_without_jsonschema_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(preset_files.PresetError, match=r"install requirements\.txt"):
        preset_files.faults(GOOD, RULES)


def test_an_error_without_a_clause_of_ours_keeps_the_words_of_jsonschema():
    assert preset_files.schema_faults({"a": 9}, {"properties": {"a": {"maximum": 5}}}) == [
        "a is wrong (9 is greater than the maximum of 5)"
    ]


def test_files_that_were_right_are_not_judged_again_and_changed_ones_are(tmp_path, monkeypatch):
    schema, file, note = tmp_path / "schema.json", tmp_path / "models" / "tiny.yml", tmp_path / "cache" / "presets"
    schema.write_text(json.dumps(RULES))
    file.parent.mkdir()
    file.write_text(json.dumps(GOOD))
    judged = []
    whole = preset_files.faults
    monkeypatch.setattr(preset_files, "faults", lambda *given: judged.append(1) or whole(*given))

    def read():
        preset_files._read.cache_clear()  # another run
        return list(preset_files.read(file.parent, schema, note))

    assert read() == read() == [GOOD["model"]]
    assert len(judged) == 1
    file.write_text(json.dumps(changed(weights_bytes=0)))
    for _ in range(2):  # what was wrong is not noted
        with pytest.raises(preset_files.PresetError, match="weights_bytes is 0"):
            read()
    note.write_bytes(b"\xff")
    file.write_text(json.dumps(GOOD))
    assert read() == [GOOD["model"]]
