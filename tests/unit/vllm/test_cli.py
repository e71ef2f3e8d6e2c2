# SPDX-License-Identifier: Apache-2.0
"""The command line of vllm serve: written canonically, read from any hand."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.vllm import cli

SERVE = ["vllm", "serve"]
OLD = ["python3", "-m", "vllm.entrypoints.openai.api_server"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, []),
        ({"max-model-len": 512}, ["--max-model-len", "512"]),
        ({"max_model_len": 512}, ["--max-model-len", "512"]),
        ({"--max-model-len": 512}, ["--max-model-len", "512"]),
        ({"enable-expert-parallel": True}, ["--enable-expert-parallel"]),
        ({"enable-prefix-caching": False}, ["--no-enable-prefix-caching"]),
        ({"trust-remote-code": None}, []),
        ({"-tp": 8}, ["--tensor-parallel-size", "8"]),
        ({"served-model-name": ["a", "b"]}, ["--served-model-name", "a", "b"]),
        (
            {"speculative-config": {"num_speculative_tokens": 1, "method": "mtp"}},
            ["--speculative-config", '{"method":"mtp","num_speculative_tokens":1}'],
        ),
        ({"compilation_config.cudagraph_mode": "none"}, ["--compilation-config.cudagraph_mode", "none"]),
        ({"compilation-config.use_inductor": True}, ["--compilation-config.use_inductor", "true"]),
        ({"compilation-config.use_inductor": False}, ["--compilation-config.use_inductor", "false"]),
        (
            {"compilation-config.cudagraph_capture_sizes": [1, 2]},
            ["--compilation-config.cudagraph_capture_sizes", "[1,2]"],
        ),
        ({"seed": -1}, ["--seed=-1"]),
        ({"gpu-memory-utilization": 0.9, "dtype": "auto"}, ["--dtype", "auto", "--gpu-memory-utilization", "0.9"]),
    ],
)
def test_arguments_are_written_as_vllm_reads_them(args, words):
    assert cli.build("org/m", cli.normalise_args(args), entrypoint=SERVE, extra={}) == ["org/m", *words]


def test_the_old_entry_module_gets_the_model_as_a_flag():
    assert cli.build("org/m", {}, entrypoint=OLD, extra={"revision": "abc"}) == [
        "--model",
        "org/m",
        "--revision",
        "abc",
    ]


def test_a_negative_number_in_a_list_is_a_number():
    assert cli.normalise_args({"x": [-1, "-0.5", "-"]}) == {"x": ["-1", "-0.5", "-"]}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"port": 1}, "option 'port'"),
        ({"api_key": "x"}, "option 'api_key'"),
        ({"model": "x"}, "option 'model'"),
        ({"hf-token": "hf_x"}, "option 'hf_token'"),
        ({"max-model-len": 1, "max_model_len": 2}, "same flag --max-model-len"),
        ({"x": object()}, "expected text"),
        (
            {"served-model-name": ["m", "--host", "0.0.0.0", "--api-key", "x"]},
            "'--host' in a list would be read as a flag",
        ),
        ({"served-model-name": ["m", "-q"]}, "'-q' in a list would be read as a flag"),
        ({"x": ["1", "-1x"]}, "'-1x' in a list would be read as a flag"),
    ],
)
def test_refusals_name_the_flag_and_the_way_out(args, says):
    with pytest.raises(cli.CommandError, match=says):
        cli.build("org/m", cli.normalise_args(args), entrypoint=SERVE, extra={})


@pytest.mark.parametrize(
    ("words", "model", "flags", "rest"),
    [
        (["org/m", "--max-model-len", "512"], "org/m", {"max-model-len": "512"}, ()),
        (["--model=org/m", "-tp", "8", "--enforce-eager"], "org/m", {"tensor-parallel-size": "8", "enforce-eager": True}, ()),
        (["org/m", "--seed", "-1"], "org/m", {"seed": "-1"}, ()),
        (["org/m", "--no-enable-prefix-caching"], "org/m", {"enable-prefix-caching": False}, ()),
        (["org/m", "--served-model-name", "a", "b", "--port=1"], "org/m", {"served-model-name": ["a", "b"], "port": "1"}, ()),
        (["bash", "-c"], "bash", {"c": True}, ()),
    ],
)  # fmt: skip
def test_any_command_line_is_read(words, model, flags, rest):
    if "c" in flags:
        flags = {"-c": True}
    parsed = cli.parse(words)
    assert (parsed.model, parsed.flags, parsed.rest) == (model, flags, rest)


def test_what_is_written_is_read_back():
    args = {"max-model-len": 512, "enforce-eager": True, "seed": -3, "served-model-name": ["x", "y"], "a-b": False}
    parsed = cli.parse(cli.build("org/m", cli.normalise_args(args), entrypoint=SERVE, extra={"revision": "r"}))
    assert parsed.model == "org/m"
    assert parsed.flags == {
        "a-b": False,
        "enforce-eager": True,
        "max-model-len": "512",
        "revision": "r",
        "seed": "-3",
        "served-model-name": ["x", "y"],
    }


@pytest.mark.parametrize(
    ("image", "wanted", "result"),
    [
        (["vllm", "serve"], None, ["vllm", "serve"]),  # vllm/vllm-openai-rocm
        (["/opt/venv/bin/vllm", "serve"], None, ["/opt/venv/bin/vllm", "serve"]),
        (None, None, ["vllm", "serve"]),
        (["/bin/bash"], None, ["vllm", "serve"]),  # rocm/vllm: a shell would wait for someone to type
        (["vllm", "serve"], OLD, OLD),
    ],
)
def test_the_entrypoint_follows_the_image_unless_the_user_says(image, wanted, result):
    assert cli.entrypoint_for(image, wanted) == result


HELP = """usage: vllm serve [model_tag] [options]
  --max-model-len MAX_MODEL_LEN, --max_model_len
  --enable-prefix-caching, --no-enable-prefix-caching
  --served-model-name [NAME ...]
  --compilation-config, -cc CONFIG
"""


def test_flags_are_read_from_help_and_unknown_ones_named():
    known = cli.read_help(HELP).flags
    assert {"max-model-len", "enable-prefix-caching", "served-model-name", "compilation-config"} <= known
    args = {"max_model_len": 1, "gpu-mem-utilisation": 0.5, "compilation-config.mode": "none", "gone": None}
    assert cli.unknown_flags(cli.normalise_args(args), known) == ["gpu-mem-utilisation"]


#: Shortened from what 0.32.0 prints.
VALUES = """usage: vllm serve [model_tag] [options]
  --tool-call-parser {apertus,hermes} or name registered in --tool-parser-plugin
                        Select the tool call parser. (default: None)
  --dtype {auto,bfloat16,float16}
                        Data type for model weights and activations:
                        - "auto" will use FP16 precision for FP32 and FP16
                        models. (default: auto)
  --max-model-len MAX_MODEL_LEN
                        Model context length. (default: None)
  --load-format LOAD_FORMAT
                        The format of the model weights. (default: auto)
  --distributed-executor-backend ['external_launcher', 'mp', 'ray', 'uni']
                        Backend to use. (default: None)
  --tensor-parallel-size TENSOR_PARALLEL_SIZE, -tp TENSOR_PARALLEL_SIZE
                        Number of tensor parallel groups. (default: 1)
  --enable-expert-parallel, --no-enable-expert-parallel
                        (default: False)
  --optimization-level OPTIMIZATION_LEVEL
                        The level, written as O2 too. (default:
                        2)
"""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"max-model-len": "abc"}, "max-model-len: expected a number, got 'abc'"),
        ({"max-model-len": [1, 2]}, "max-model-len: expected a number, got ['1', '2']"),
        ({"max-model-len": True}, "max-model-len: expected a number, got True"),
        ({"tensor-parallel-size": "two"}, "tensor-parallel-size: expected a number, got 'two'"),
        ({"dtype": "bf16"}, "dtype: expected one of auto, bfloat16, float16, got 'bf16'"),
        ({"max-model-len": "auto"}, None),
        ({"dtype": "BFloat16"}, None),
        ({"dtype": "auto,float16"}, None),
        ({"max-model-len": "25.6k"}, None),
        ({"max-model-len": -1, "tensor-parallel-size": 8, "optimization-level": "O2"}, None),
        ({"dtype": "auto", "load-format": "anything", "distributed-executor-backend": "mine"}, None),
        ({"tool-call-parser": "of_a_plugin", "enable-expert-parallel": True, "dtype": None}, None),
    ],
)
def test_a_value_is_refused_where_the_help_is_clear(args, says):
    assert cli.wrong_values(cli.normalise_args(args), cli.read_help(VALUES)) == ([says] if says else [])


@pytest.mark.parametrize(
    ("args", "unknown"),
    [
        ({"headless": False}, ["no-headless"]),
        ({"headless": True}, []),
        ({"enable_prefix_caching": False}, []),
        ({"no-enable-prefix-caching": True}, []),
        ({"gone": False}, ["gone"]),
        ({"compilation-config.use_inductor": False}, []),
    ],
)
def test_a_switch_is_only_said_no_to_where_it_has_a_no(args, unknown):
    known = cli.read_help(HELP + "  --headless\n").flags
    assert cli.unknown_flags(cli.normalise_args(args), known) == unknown


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ({}, ["org/m"]),
        ({"served-model-name": "a"}, ["a"]),
        ({"--served_model_name": ["a", "b"]}, ["a", "b"]),
        ({"served-model-name": 7}, ["7"]),
        ({"served-model-name": None}, ["org/m"]),
        ({"served-model-name": []}, ["org/m"]),
    ],
)
def test_the_names_that_a_server_answers_to(args, names):
    assert cli.served_names(args, "org/m") == names


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ({}, []),
        ({"lora_modules": "a=/x"}, ["a"]),
        ({"lora-modules": ["a=/x", '{"name": "b", "path": "/y"}', {"name": "c"}, "{broken"]}, ["a", "b", "c"]),
        ({"lora-modules": None}, []),
    ],
)
def test_names_of_adapters(args, names):
    assert cli.adapter_names(args) == names
