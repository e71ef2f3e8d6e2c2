# SPDX-License-Identifier: Apache-2.0
"""models/*.yml: each is right, says where its figures are from, and says for an accelerator what the file says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jinja2
import jsonschema
import pytest
import yaml
from ansible import context
from ansible.errors import AnsibleFilterError
from ansible.utils.vars import load_extra_vars
from made_presets import GOOD, changed

from ansible.module_utils.vllm_fleet.models import model_id, preset_files, presets, sizing
from ansible.module_utils.vllm_fleet.vllm import chat_options, cli, release_data, releases
from ansible.module_utils.vllm_fleet.weights import layout

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "filter_plugins"), str(ROOT / "scripts"), str(ROOT / "module_utils")]
import recipe_facts  # noqa: E402 - of scripts/sync_recipes
from vllm_models import vllm_given, vllm_plan, vllm_sizing_table  # noqa: E402

from plugin_utils.model_presets import fault as vllm_model_fault  # noqa: E402
from plugin_utils.model_presets import findings as vllm_model_findings  # noqa: E402
from plugin_utils.model_presets import least_request  # noqa: E402
from plugin_utils.model_presets import preset as vllm_preset  # noqa: E402

FILES = sorted((ROOT / "models").glob("*.yml"))
RULES = json.loads((ROOT / "models" / "schema.json").read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_preset_is_right_and_asks_only_what_its_model_answers(file):
    preset = yaml.safe_load(file.read_text())
    jsonschema.Draft202012Validator(RULES).validate(preset)
    assert preset_files.faults(preset, RULES) == []
    layout.check_repo_id(preset["model"])
    assert file.stem == preset["model"].partition("/")[2].lower()
    assert preset["verify"], "a preset without requests verifies nothing of its own"
    assert preset["verify"][0]["api"] == preset["api"], "the first is what an unchanged server is asked"
    for request in preset["verify"]:
        re.compile(request["expect"].get("pattern", ""))
    heads = preset.get("config", {}).get("num_attention_heads")
    for name, entry in preset["accelerators"].items():
        if heads and entry.get("args", {}).get("tensor-parallel-size"):
            assert heads % entry["args"]["tensor-parallel-size"] == 0, name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_flag_and_variable_of_a_preset_is_one_of_the_newest_release(file):
    """What a recipe still has and vLLM no longer reads does not come in by it."""
    known = cli.read_help((ROOT / "tests/standin/standin_vllm/serve-usage.txt").read_text()).flags
    preset = yaml.safe_load(file.read_text())
    for name, one in presets.all_resolved(preset):
        for kind in ("", *sizing.VRAM):
            made = presets.for_accelerator(one, presets.ROCM, kind, list(one.get("features") or {}))
            assert cli.normalise_args(made["args"]).keys() <= known, (name, kind)
            assert releases.wrong_variables(made["env"], release_data.NEWEST) == {}, (name, kind)
            if one.get("min_vllm"):
                assert releases.newer_flags(made["args"], one["min_vllm"]) == {}, (name, kind)


def test_every_preset_agrees_with_its_recipe_or_says_why_not():
    record = json.loads((ROOT / "models/recipes.json").read_text())["recipes"]
    own = {file.name: yaml.safe_load(file.read_text()) for file in FILES}
    assert {name: found for name, one in own.items() if (found := recipe_facts.disagreements(one, record))} == {}
    assert {one["recipe"]["file"] for one in own.values() if "recipe" in one} == record.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_figure_says_where_it_is_from(file):
    lines = file.read_text().splitlines()
    wanted = r"(revision|min_vllm|weights_bytes|config|  rocm|    bytes_per_gpu|verify):"
    for number, line in enumerate(lines):
        if re.match(wanted, line) and not line.startswith("verify"):
            inside = lines[number + 1] if line.startswith("config") else ""
            assert re.match(r" *#", lines[number - 1]) or re.match(r" *#", inside), f"{file.name}: {line.strip()}"


def test_the_models_that_a_user_may_expect_are_there():
    assert {
        "deepseek-ai/DeepSeek-V3.1",
        "deepseek-ai/DeepSeek-R1",
        "deepseek-ai/DeepSeek-V2-Lite-Chat",
        "deepseek-ai/deepseek-coder-6.7b-instruct",
        "meta-llama/Llama-3.3-70B-Instruct",
        "Qwen/Qwen3-235B-A22B",
        "openai/gpt-oss-120b",
        "openai-community/gpt2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "deepseek-ai/DeepSeek-R1-0528",
        "deepseek-ai/DeepSeek-V3.1-Terminus",
        "deepseek-ai/DeepSeek-V3.2-Exp",
        "deepseek-ai/DeepSeek-V4-Flash-0731",
        "deepseek-ai/DeepSeek-V4-Pro-0813",
        "google/gemma-4-31B-it",
        "jinaai/jina-embeddings-v5-text-small-retrieval",
        "jinaai/jina-reranker-m0",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "MiniMaxAI/MiniMax-M2.7",
        "moonshotai/Kimi-K2.6",
        "moonshotai/Kimi-K3",
        "openai/gpt-oss-20b",
        "Qwen/Qwen3-235B-A22B-Instruct-2507",
        "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8",
        "Qwen/Qwen3-VL-235B-A22B-Instruct",
        "Qwen/Qwen3.5-397B-A17B",
        "Qwen/Qwen3.6-35B-A3B",
        "zai-org/GLM-4.7-FP8",
        "zai-org/GLM-5.2-FP8",
    } <= preset_files.read(ROOT / "models", ROOT / "models/schema.json").keys()


def test_the_page_has_the_table_that_the_files_make():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/gen_models.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_page_is_a_preset():
    page = (ROOT / "docs/models.md").read_text().partition("## Add a model")[2]
    example = re.search(r"```yaml\n(.*?)```", page, re.S)
    assert example
    assert preset_files.faults(yaml.safe_load(example[1]), RULES) == []
    assert len(example[1].splitlines()) <= 10


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        (changed(accelerators__rocm__bytes_per_gpu=500), "bytes_per_gpu is 500; with these arguments it is 250"),
        (changed(api="completions"), "verify[1] asks the chat API of a model whose api is completions"),
        (
            changed(accelerators__rocm__args={"tp": 1, "port": 2}),
            "bytes_per_gpu is 250; with these arguments it is unknown",
        ),
    ],
)
def test_figures_that_disagree_are_faults(preset, words):
    assert words in "; ".join(preset_files.faults(preset, RULES))


def test_a_gpu_is_laid_over_rocm_flag_by_flag_and_cpu_stands_alone():
    preset = changed(
        served_name="tiny",
        accelerators={
            "rocm": {"args": {"a": 1, "b": 1}, "env": {"X": 1}},
            "MI355X": {"args": {"b": 2}, "env": {"Y": 2}},
            "cpu": {"args": {"c": 3}},
        },
    )
    named = {"served-model-name": "tiny"}
    assert presets.for_accelerator(preset, "rocm")["args"] == {"a": 1, "b": 1, **named}
    assert presets.for_accelerator(preset, "rocm", "AMD Instinct MI355X OAM")["args"] == {"a": 1, "b": 2, **named}
    assert presets.for_accelerator(preset, "rocm", "MI355X")["env"] == {"X": 1, "Y": 2}
    assert presets.for_accelerator(preset, "rocm", "MI300X")["env"] == {"X": 1}
    assert presets.for_accelerator(preset, "cpu", "MI355X")["args"] == {"c": 3, **named}
    assert presets.for_accelerator({}, "rocm") == {"args": {}, "env": {}}


VARIED = changed(
    accelerators={
        "rocm": {"args": {"a": 1, "tensor-parallel-size": 4}, "env": {"X": 1}, "bytes_per_gpu": 250},
        "MI300X": {"verified_by": "somebody", "gpus": 4},
        "MI355X": {"args": {"b": 2, "c": 3}, "reason": "why", "verified_by": "somebody", "gpus": 2},
    },
    revision="a" * 40,
    min_vllm="0.20.0",
    vram_gb=9,
    config={"num_attention_heads": 8, "torch_dtype": "bfloat16"},
    features={
        "tools": {"args": {"t": True}, "min_vllm": "0.25.0"},
        "text_only": {"args": {"a": None}, "env": {"Z": 1}},
    },
    variants={
        "same": {"accelerators": {"rocm": {"args": {"b": 7, "a": None}}}},
        "fp8": {
            "model": "acme/Tiny-1B-FP8",
            "weights_bytes": 400,
            "config": {"torch_dtype": None, "quantization_config": {"quant_method": "fp8"}},
            "features": {"text_only": None},
            "accelerators": {
                "MI355X": {"gpus": 1, "args": {"b": 9}, "reason": "that"},
                "MI300X": {"unsupported": "no FP8"},
            },
        },
    },
)


def chosen(model="acme/Tiny-1B", kind="", variant="", features=()):
    folder = Path(chosen.folder)
    return vllm_preset(model, "rocm", kind, str(folder), variant=variant, features=features)


@pytest.fixture
def varied(tmp_path):
    (tmp_path / "tiny.yml").write_text(json.dumps(VARIED))
    chosen.folder = tmp_path
    assert preset_files.faults(VARIED, RULES) == []


def test_a_variant_lies_over_the_file_and_under_the_features(varied):
    """A GPU's own entry of the file is under what the variant says for all GPUs."""
    tensor = {"tensor-parallel-size": 4}
    assert chosen()["args"] == {"a": 1, **tensor}
    assert chosen(kind="MI355X")["args"] == {"a": 1, "b": 2, "c": 3, **tensor}
    assert chosen(kind="MI355X", variant="same")["args"] == {"b": 7, "c": 3, **tensor}
    assert chosen(features=["tools", "text_only"])["args"] == {"t": True, **tensor}
    assert chosen(features=["text_only"])["env"] == {"X": 1, "Z": 1}
    assert (chosen()["min_vllm"], chosen(features=["tools"])["min_vllm"]) == ("0.20.0", "0.25.0")
    same = chosen(variant="same")
    assert (same["model"], same["revision"], same["vram_gb"]) == ("acme/Tiny-1B", "a" * 40, 9)


def test_a_variant_with_weights_of_its_own_keeps_the_name_and_nothing_that_was_counted(varied):
    fp8 = chosen(kind="MI355X", variant="fp8")
    assert (fp8["model"], fp8["revision"], fp8["weights_bytes"], fp8["gpus"]) == ("acme/Tiny-1B-FP8", "", 400, 1)
    assert fp8["args"]["served-model-name"] == "acme/Tiny-1B"
    assert (fp8["args"]["b"], fp8["args"]["c"]) == (9, 3)
    assert fp8["config"] == {"num_attention_heads": 8, "quantization_config": {"quant_method": "fp8"}}
    assert (fp8["verified"], fp8["features"], "vram_gb" in fp8) == ({}, ["tools"], False)
    own = chosen("acme/Tiny-1B-FP8", "MI355X")
    assert "served-model-name" not in own["args"]
    assert own["args"] == {key: value for key, value in fp8["args"].items() if key != "served-model-name"}
    assert chosen("acme/Tiny-1B-FP8", variant="fp8")["args"] == chosen("acme/Tiny-1B-FP8")["args"]
    assert "acme/Tiny-1B-FP8" in vllm_model_fault("acme/Tiny-1b-FP8", path=str(chosen.folder))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"variant": "fp9"}, "vllm_server_variant is 'fp9', and models/tiny.yml has these variants: same, fp8."),
        (
            {"features": ["tools", "mtp"]},
            "vllm_server_features is 'mtp', and models/tiny.yml has these features: tools",
        ),
        ({"variant": "fp8", "features": ["text_only"]}, "vllm_server_features is 'text_only'"),
        ({"features": "tools"}, "expected a list, such as [tools, reasoning]"),
        ({"model": "acme/Tiny-1B-FP8", "variant": "same"}, "has these variants: fp8."),
        ({"model": "acme/none", "variant": "fp8"}, "the model has no preset: give vllm_server_args in its place"),
    ],
)
def test_what_a_preset_does_not_have_is_refused_with_what_it_has(varied, asked, words):
    with pytest.raises(AnsibleFilterError, match=re.escape(words)):
        chosen(**asked)


@pytest.mark.parametrize(
    ("kind", "variant", "level", "got"),
    [
        ("AMD Instinct MI300X OAM", "", "", ""),
        ("MI325X", "", "warning", "MI325X, on which no source has served it"),
        ("MI300X", "fp8", "refused", "MI300X: no FP8"),
        ("MI210", "", "", ""),
        ("", "", "", ""),
    ],
)
def test_what_a_source_says_about_a_gpu_is_a_finding(varied, kind, variant, level, got):
    found = presets.of_gpu(chosen(kind=kind, variant=variant), kind)
    assert ((found.level, found.got) if found else ("", "")) == (level, got)


@pytest.mark.parametrize(
    ("model", "args", "revision", "said"),
    [
        ("acme/x", {"trust_remote_code": True}, "", "main of acme/x"),
        ("acme/x", {"trust-remote-code": True}, "v1", "v1 of acme/x"),
        ("acme/x", {"trust-remote-code": True}, "a" * 40, ""),
        ("acme/x", {"trust-remote-code": False}, "", ""),
        ("/models/x", {"trust-remote-code": True}, "", ""),
        ("acme/x", {}, "", ""),
    ],
)
def test_code_of_a_repository_that_is_not_pinned_is_warned_of(model, args, revision, said):
    found = presets.remote_code(model, args, revision)
    assert (said in found.got and found.level == "warning") if said else found is None


@pytest.mark.parametrize(
    ("model", "verify", "api"),
    [
        ("openai-community/gpt2", [], "completions"),
        ("jinaai/jina-reranker-m0", [], "rerank"),
        ("acme/none", [], "chat"),
        ("openai-community/gpt2", [{"api": "embeddings", "query": "x"}], "embeddings"),
    ],
)
def test_a_gateway_asks_through_the_api_of_the_model(model, verify, api):
    asked = least_request(model, verify)
    assert asked["api"] == api
    assert chat_options.wrong_request(asked) == ""


def test_a_recipe_and_its_preset_are_held_together():
    recipe = recipe_facts.facts(
        {
            "meta": {"date_updated": "2026-08-01", "hardware": {"mi300x": "verified", "h100": "verified"}},
            "model": {
                "model_id": "acme/Tiny-1B",
                "min_vllm_version": "0.20.0",
                "docker_image": {"nvidia": "x", "amd": "rocm:1"},
                "base_args": ["--a", "1", "--no-b", "-cc.mode=3", "--json", '{"x": [1]}'],
                "base_env": {"N": 1},
            },
            "features": {
                "tool_calling": {"description": "a text", "args": ["--t", "--chat-template", "examples/x.jinja"]}
            },
            "variants": {"default": {"precision": "bf16", "vram_minimum_gb": 9}, "nvfp4": {"precision": "nvfp4"}},
            "hardware_overrides": {
                "amd": {"extra_args": ["--a", "2"], "extra_env": {"X": "1"}},
                "hopper": {"extra_args": ["--h"]},
            },
        }
    )
    assert "a text" not in json.dumps(recipe) and "nvfp4" not in recipe["variants"]
    assert recipe_facts.wanted(recipe, "default", "MI300X") == (
        {"a": "2", "b": False, "compilation-config.mode": "3", "json": {"x": [1]}},
        {"N": "1", "X": "1"},
    )
    preset = changed(
        vram_gb=9,
        min_vllm="0.20.0",
        accelerators={
            "rocm": {
                "args": {
                    "tensor-parallel-size": 4,
                    "a": 2,
                    "b": False,
                    "compilation-config": {"mode": 3},
                    "json": {"x": [1]},
                },
                "env": {"N": 1, "X": 1},
            },
            "MI300X": {"verified_by": "x"},
        },
        features={"tools": {"args": {"t": True, "chat-template": "/app/x.jinja"}}},
        recipe={"file": "models/acme/Tiny-1B.yaml"},
    )
    record = {"models/acme/Tiny-1B.yaml": recipe}
    assert recipe_facts.disagreements(preset, record) == []
    assert recipe_facts.disagreements(preset, {}) == [
        "models/acme/Tiny-1B.yaml is not among the recipes: gone, or not recorded yet "
        "(scripts/sync_recipes CHECKOUT --write)"
    ]
    preset["accelerators"]["rocm"]["args"]["a"] = 3
    preset["accelerators"]["MI325X"] = {"verified_by": "x"}
    preset["recipe"]["differs"] = {"X": "nothing"}
    assert recipe_facts.disagreements(preset, record) == [
        "--a: preset 3, recipe 2",
        "MI325X: preset verified, recipe nothing",
        "X: recipe.differs has a reason, and nothing differs",
    ]


def test_the_filter_gives_every_key_and_refuses_a_folder_with_a_wrong_file(tmp_path):
    assert vllm_preset("deepseek-ai/DeepSeek-V3.1")["args"] == {
        "tensor-parallel-size": 8,
        "enable-expert-parallel": True,
    }
    unknown = vllm_preset("acme/none")
    assert (unknown["args"], unknown["env"], unknown["verify"], unknown["revision"]) == ({}, {}, [], "")
    (tmp_path / "tiny.yml").write_text(json.dumps(GOOD))
    assert vllm_preset("acme/Tiny-1B", path=str(tmp_path))["args"] == {"tensor-parallel-size": 4}
    assert "acme/Tiny-1B" in vllm_model_fault("acme/tiny-1b", path=str(tmp_path))
    assert not vllm_model_fault("acme/tiny-1b", True, path=str(tmp_path))
    (tmp_path / "more.yml").write_text(json.dumps(GOOD))
    with pytest.raises(AnsibleFilterError, match="has a preset already"):
        vllm_preset("x/y", path=str(tmp_path))
    (tmp_path / "more.yml").write_text("model: [")
    with pytest.raises(AnsibleFilterError, match=r"more\.yml is no YAML"):
        vllm_preset("x/y", path=str(tmp_path))
    (tmp_path / "more.yml").write_text("model: acme/other\napi: chat\n")
    with pytest.raises(AnsibleFilterError, match=r"more\.yml: the file lacks accelerators"):
        vllm_preset("x/y", path=str(tmp_path))


def test_an_inexact_id_is_a_finding_with_the_nearest():
    (found,) = vllm_model_findings("deepseek-ai/deepseek-v3.1")
    assert (found["level"], found["what"], found["expected"]) == ("refused", "model's id", "deepseek-ai/DeepSeek-V3.1")
    assert "vllm_server_model_exact: true" in found["remedy"]
    (found,) = vllm_model_findings("DeepSeek V3.1")
    assert "'DeepSeek V3.1' (" in found["got"] and "exact: true" not in found["remedy"]
    assert vllm_model_findings("deepseek-ai/DeepSeek-V3.1") == vllm_model_findings("") == []


IDS = sorted(preset_files.read(ROOT / "models", ROOT / "models/schema.json"))


def loose(one):
    """Give names that people write for an id: other case and signs, no organisation, without the end."""
    organisation, _, name = one.partition("/")
    yield from (
        one.lower(),
        one.upper(),
        name,
        name.lower(),
        name.upper(),
        f"{organisation} {name}",
        f" {one}",
        f"{one} ",
    )
    yield from (name.replace("-", " "), name.lower().replace("-", " "), name.replace("-", "_"), one.replace("-", "_"))
    yield from (name.replace("-", "").lower(), f"{organisation}/ {name}", f"{organisation}//{name}")
    short = name.rpartition("-")[0]
    if short.count("-") > 1:  # enough of a name
        yield from (short, short.lower(), short.replace("-", " "), short.lower().replace("-", " "))


@pytest.mark.parametrize("one", IDS)
def test_a_loose_name_is_refused_with_the_right_id_first(one):
    """Some six hundred names; a name without its end may begin several ids."""
    for name in {*loose(one)} - {*IDS}:
        found = model_id.check(name, IDS)
        assert not found.ok, name
        assert found.nearest, name
        begun = model_id._letters(name.rpartition("/")[2])
        assert found.nearest[0] == one or model_id._letters(found.nearest[0].partition("/")[2]).startswith(begun), name


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("DeepSeek V3.1", "deepseek-ai/DeepSeek-V3.1"),
        ("DeepSeek-V3", "deepseek-ai/DeepSeek-V3.1"),
        ("deepseek v3.2", "deepseek-ai/DeepSeek-V3.2-Exp"),
        ("DeepSeek-V4-Flash", "deepseek-ai/DeepSeek-V4-Flash-0731"),
        ("deepseek r1", "deepseek-ai/DeepSeek-R1"),
        ("Kimi-K2.5", "moonshotai/Kimi-K2.6"),
        ("kimi k2.7", "moonshotai/Kimi-K2.6"),
        ("GLM 4.6", "zai-org/GLM-4.7"),
        ("MiniMax-M2.5", "MiniMaxAI/MiniMax-M2.7"),
        ("Llama-3.1-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"),
        ("Qwen3.5-397B", "Qwen/Qwen3.5-397B-A17B"),
        ("qwen3 coder 480b", "Qwen/Qwen3-Coder-480B-A35B-Instruct"),
    ],
)
def test_a_sibling_or_the_beginning_of_a_name_leads_to_what_is_known(name, first):
    found = model_id.check(name, IDS)
    assert not found.ok
    assert found.nearest[0] == first, found.nearest


@pytest.mark.parametrize(
    "name", ["zai-org/GLM-5.2", "deepseek-ai/DeepSeek-V3", "amd/DeepSeek-V3.1-MXFP4", "distilgpt2", "bert-base-uncased"]
)
def test_another_model_passes(name):
    assert model_id.check(name, IDS).ok


def test_hosts_of_a_replica_are_one_machine_of_a_plan():
    """Twice 141 GB do not fit into one node of one GPU each; over two of them they do."""
    gpus = [{"name": "MI300X", "vram_total": 206141652992, "vram_used": 0}]
    node = {"plan_node": {"gpus": gpus}}
    facts = {
        "model": "acme/Large",
        "config": {"num_attention_heads": 64, "torch_dtype": "bfloat16"},
        "weights_bytes": 282 * 10**9,
        "source": "",
        "min_vllm": "",
    }
    alone = vllm_plan(facts, {"n1": node, "n2": node})
    assert len(alone["refusals"]) == 2
    pair = {host: {**node, "vllm_server_replica": "big"} for host in ("n1", "n2")}
    both = vllm_plan(facts, pair)
    assert both["refusals"] == []
    ((name, row),) = both["rows"]
    assert (name, row["machine"], row["tensor"], row["sizes"]) == ("big (n1+n2)", "2 x 1 x MI300X", 2, [1, 2])
    assert both["notes"] == [
        "big (n1+n2): acme/Large on 2 x 1 x MI300X: nothing fixes tensor-parallel-size; 2 is the least that fits."
    ]


def test_deepseek_coder_is_served_with_the_context_that_it_was_trained_with():
    """Its config.json scales RoPE by four, and vLLM would take that for four times the context."""
    assert vllm_preset("deepseek-ai/deepseek-coder-6.7b-instruct")["args"]["max-model-len"] == 16384


def test_the_example_of_the_module_is_one_that_works():
    """The page of vllm_model_info leads from the module to the table."""
    page = (ROOT / "library/vllm_model_info.py").read_text()
    example = yaml.safe_load(page.partition('EXAMPLES = r"""')[2].partition('"""')[0])[1]
    environment = jinja2.Environment(autoescape=False)  # noqa: S701 - text for a terminal
    environment.filters |= {"vllm_plan": vllm_plan, "vllm_sizing_table": vllm_sizing_table}
    config = {"num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 64, "head_dim": 128}
    facts = {"model": "Qwen/Qwen3-32B", "config": config, "weights_bytes": 65 << 30, "source": "", "min_vllm": ""}
    text = environment.from_string(example["ansible.builtin.debug"]["msg"]).render(model={"facts": facts})
    assert re.search(r"8 x MI300X +2 +1,2,4,8 +32.5 GiB", text)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ((), False),
        (("plan_gpu=MI300X",), False),
        (("plan_gpu=MI300X", "vllm_server_model=acme/x"), True),
        (('{"plan_model": "acme/x"}',), True),
    ],
)
def test_what_the_command_line_gives_hides_the_inventorys(words, given, monkeypatch):
    monkeypatch.setattr(context, "CLIARGS", {"extra_vars": words})
    monkeypatch.setattr(load_extra_vars, "extra_vars", None, raising=False)
    assert vllm_given(["vllm_server_model", "plan_model"]) is given


def test_devices_of_the_container_are_asked_about():
    preset = vllm_preset("acme/none")
    assert presets.sizing_options(preset, {}, {}, devices=["/dev/dri/renderD128"])["devices"] == ["/dev/dri/renderD128"]
    assert presets.sizing_options(preset, {}, {})["devices"] is None
