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

from ansible.module_utils.vllm_fleet.models import preset_files, presets
from ansible.module_utils.vllm_fleet.weights import layout

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "filter_plugins"))
from vllm_models import vllm_given, vllm_plan, vllm_sizing_table  # noqa: E402

from plugin_utils.model_presets import fault as vllm_model_fault  # noqa: E402
from plugin_utils.model_presets import findings as vllm_model_findings  # noqa: E402
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
    for name, entry in preset["accelerators"].items():
        if entry.get("args", {}).get("tensor-parallel-size"):
            assert preset["config"]["num_attention_heads"] % entry["args"]["tensor-parallel-size"] == 0, name


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
    } <= {yaml.safe_load(file.read_text())["model"] for file in FILES}


def test_the_page_has_the_table_that_the_files_make():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/gen_models.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_page_is_a_preset():
    example = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/models.md").read_text(), re.S)
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
