# SPDX-License-Identifier: Apache-2.0
"""Secrets are known by name, by shape, and by value in every form; what only resembles one stays."""

from __future__ import annotations

import base64
import html
import json
import shlex
import time
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import yaml

from ansible.module_utils.vllm_fleet.common import secrets
from ansible.module_utils.vllm_fleet.common.secrets import HIDDEN, is_secret, scrub, scrub_words
from ansible.module_utils.vllm_fleet.gateway import generations

ROOT = Path(__file__).resolve().parents[3]
USAGE = (ROOT / "tests/standin/standin_vllm/serve-usage.txt").read_text()


@pytest.mark.parametrize(
    "name",
    [
        *("VLLM_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "MASTER_KEY", "ENCRYPTION_KEY", "APIKEY"),
        *("hf-token", "S3_CREDENTIALS", "MY_KEYS", "AUTH", "PROXY_AUTH", "Authorization", "Proxy-Authorization"),
        *("X-Api-Key", "Cookie", "Set-Cookie", "apiKey", "authToken", "api_keys", "API_TOKENS", "HF_TOKENS", "DB_PASS"),
        *("DB_PWD", "SENTRY_DSN", "client_secret", "MY_SECRETS", "ssl-keyfile-password", "key", "token", "github.pat"),
    ],
)
def test_a_name_that_says_so(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("VLLM_MAX_TOKENS", "ssl-keyfile", "MONKEY", "TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "NCCL_DEBUG", "PWD"),
        *("max_num_batched_tokens", "tokenizer", "SSH_AUTH_SOCK", "AUTHOR", "prompt_tokens", "KEYBOARD", "PASSES", ""),
    ],
)
def test_a_name_that_does_not(name):
    assert not is_secret(name)


def test_no_flag_of_vllm_is_hidden_that_holds_none():
    flags = {word for word in USAGE.replace("[", " ").replace(",", " ").split() if word.startswith("--")}
    assert len(flags) > 150
    assert {flag for flag in flags if is_secret(flag)} <= {"--api-key", "--hf-token", "--allow-credentials"}


# -- shapes --

SHAPES = {
    # YAML doubles a quote in quotes.
    "got: '{''api_key'': ''canary-1'', ''b'': ''c''}'": "got: '{''api_key'': ''***'', ''b'': ''c''}'",
    "'api_key': 'can''ary', 'b': 'c'": "'api_key': '***', 'b': 'c'",
    "{'api_key': '', 'b': 'c'}": "{'api_key': '', 'b': 'c'}",
    "http://user:canary@proxy:3128": "http://user:***@proxy:3128",
    "no file /srv/https:/user:canary@proxy/x": "no file /srv/https:/user:***@proxy/x",
    "redis://:can@ry/x@h": "redis://:***@ry/x@h",  # no URL: a slash ends the host
    "http://u:can@ary@h/p": "http://u:***@h/p",
    "https://canarycanarycanary@git.example": "https://***@git.example",
    "GET /x?a=1&api_key=canary&b=2 HTTP/1.1": "GET /x?a=1&api_key=***&b=2 HTTP/1.1",
    "https://s3/x?X-Amz-Signature=canary": "https://s3/x?X-Amz-Signature=***",
    "hf_canarycanarycanaryCANARY": "***",
    "hf_abcdefghijklmno": "***",
    "sk-canary-0123": "***",
    "ghp_canarycanarycanary0": "***",
    "github_pat_canarycanarycanary": "***",
    "glpat-canarycanarycanary": "***",
    "xoxb-canary-canary": "***",
    "AKIACANARYCANARYCA00": "***",
    "AIzacanarycanarycanarycanarycanarycan": "***",
    "nvapi-canarycanarycanary0": "***",
    "eyJjYW5hcnki.eyJjYW5hcnki.canary": "***",
    "Authorization: Basic canary": "Authorization: ***",
    "Authorization: Bearer canary": "Authorization: ***",
    "{'Authorization': 'canary'}": "{'Authorization': '***'}",
    "x-api-key: canary": "x-api-key: ***",
    "X-Custom-Token: canary": "X-Custom-Token: ***",
    "MY_KEY=canary next": "MY_KEY=*** next",
    'curl -H "Authorization: Bearer $KEY"': 'curl -H "Authorization: Bearer $KEY"',
    'curl -H "Authorization: Bearer $canary"': 'curl -H "Authorization: ***"',
    "Authorization: Bearer $KEYcanary": "Authorization: ***",
    "export A_TOKEN='canary canary'": "export A_TOKEN='***'",
    '{"api_key": "canary", "a": 1}': '{"api_key": "***", "a": 1}',
    "{'password': ['canary', 'canary']}": "{'password': [***]}",
    '"{\\"api_key\\": \\"canary\\"}"': '"{\\"api_key\\": \\"***\\"}"',
    "-----BEGIN RSA PRIVATE KEY-----\ncanary\n-----END RSA PRIVATE KEY-----\nx": "***\nx",
    "-----BEGIN PRIVATE KEY-----\ncanary, cut": "***",
}
LOOSE = {
    "token: bearer canary": "token: bearer ***",
    "vllm serve --api-key canary canary2 --port 1": "vllm serve --api-key *** --port 1",
    "['--hf-token', 'canary canary']": "['--hf-token', '***']",
    "--ssl-keyfile-password canary": "--ssl-keyfile-password ***",
    "api-key=canary": "api-key=***",
    "secret_key: canary": "secret_key: ***",
    "WANDB_API_KEY: canary": "WANDB_API_KEY: ***",
    "password = 'canary'": "password = '***'",
}


@pytest.mark.parametrize(("text", "shown"), [*SHAPES.items(), *LOOSE.items()])
def test_a_shape_is_hidden_in_a_log(text, shown):
    assert scrub(text) == shown
    assert scrub(shown) == shown


@pytest.mark.parametrize(("text", "shown"), SHAPES.items())
def test_an_unmistakable_shape_is_hidden_in_the_projects_own_words(text, shown):
    assert scrub_words(text) == shown
    assert scrub_words(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "vllm_server_api_key: expected printable ASCII, found a blank; make one with `openssl rand -hex 32`",
        "remove --api-key from vllm_server_args; the key is vllm_server_api_key: a secret",
        "hf_token: expected a secret, found 'vault_hf_token' is undefined",
        "the secret: it is safe; a password: none",
    ],
)
def test_the_projects_own_words_stay_whole(text):
    assert scrub_words(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "eos_token_id: 2, max_num_batched_tokens=4096, 512 tokens per request, eos_token='</s>'",
        "[--api-key API_KEY [API_KEY ...]]",
        "http://0.0.0.0:8000/v1/models?after=1",
        "git@github.com:org/repo ssh://git@host/x hf_quantization_config",
        "KeyError: 'model.layers.0'; key: value; asia-pacific; disk-full-now task-force",
        "Using cache key=abc for prefix caching",
    ],
)
def test_what_only_resembles_a_secret_stays(text):
    assert scrub(text) == text


def test_healthy_logs_stay_as_they_are():
    for log in sorted((ROOT / "tests/fixtures").glob("*/ready.log")):
        text = log.read_text()
        assert scrub(text) == text, log


# -- known values --

#: A value with whatever some form writes otherwise.
KEY = "a'b\"c\\d&é%/+ <ü>-Canary~0"
WRITERS = {
    "as it is": str,
    "repr": repr,
    "repr of bytes": lambda key: repr(key.encode()),
    "json": json.dumps,
    "json with other letters": lambda key: json.dumps(key, ensure_ascii=False),
    "json in json": lambda key: json.dumps(json.dumps({"key": key})),
    "repr of json": lambda key: repr(json.dumps(key)),
    "url": quote,
    "whole url": lambda key: quote(key, safe=""),
    "form": quote_plus,
    "url in small letters": lambda key: quote(key).replace("%C3", "%c3").lower() if key.islower() else quote(key),
    "html": html.escape,
    "shell": shlex.quote,
    "haproxy": generations.quoted,
    "yaml": lambda key: "'" + key.replace("'", "''") + "'",
    "hex": lambda key: key.encode().hex(),
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 for urls": lambda key: base64.urlsafe_b64encode(key.encode()).decode(),
    "yaml dump": lambda key: yaml.safe_dump({"a": key}, allow_unicode=True, width=1000),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("key", [KEY, "Canary-0123456789", "canary/0+1=="])
def test_a_known_value_is_hidden_however_it_is_written(key, write):
    shown = scrub(f"value {write(key)} end", (key,))
    assert HIDDEN in shown
    assert "anary" not in shown
    assert shown.endswith(" end")


@pytest.mark.parametrize("user", ["", "u", "us", "use", "user:", "someone:"])
def test_in_base64_of_something_longer_nothing_usable_is_left(user):
    key = "Canary-0123456789-abcdef"
    text = base64.b64encode(f"{user}{key}".encode()).decode()
    left = scrub(text, (key,)).replace(HIDDEN, "")
    assert len(left) <= len(base64.b64encode(user.encode())) + 4


def test_lines_of_a_value_of_several_are_hidden_one_by_one():
    key = "-----BEGIN CANARY-----\ncanarycanary1\ncanarycanary2\n-----END-----"
    assert scrub("12:00 canarycanary2 said", (key,)) == "12:00 *** said"


def test_the_longest_goes_first_and_what_is_too_short_stays():
    assert scrub("a plainword and plainword2, 1", ["plainword", "plainword2", "", "1"]) == "a *** and ***, 1"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"MY_API_KEY": "canary-1", "MASTER_KEY": 12345, "PLAIN": "x-y-z"}, {"canary-1", "12345"}),
        ({"OTHER_KEY": True, "A_TOKEN": None, "B_KEY": "1", "AUTH": "none", "C_KEY": "True"}, set()),
        ({"hf-token": "canary-2"}, {"canary-2"}),
        ({"api-key": ["canary-3", "canary-4"]}, {"canary-3", "canary-4"}),
        ({"HTTPS_PROXY": "http://user:can%20ary@proxy:3128"}, {"can%20ary", "can ary"}),
        (["MY_API_KEY=canary-5", "X=1"], {"canary-5"}),
        ([{"MY_API_KEY": "canary-6"}], {"canary-6"}),
        ("--api-key canary-7 canary-8 --port 8000", {"canary-7", "canary-8"}),
        ("MY_API_KEY=canary-9 X=1", {"canary-9"}),
        (None, set()),
        (3, set()),
    ],
)
def test_values_are_found_in_every_form_of_an_environment(given, found):
    assert secrets.values_in(given) == found


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["vllm", "--api-key", "canary1", "canary2", "--port", "1"], "vllm --api-key *** *** --port 1"),
        (["a", "--api-key=canary"], "a --api-key=***"),
        (["env", "HF_TOKEN=canary", "vllm"], "env HF_TOKEN=*** vllm"),
        (["x", "-H", "Authorization: Bearer canary"], "x -H Authorization: ***"),
        (["x", "redis://u:canary@h"], "x redis://u:***@h"),
        (["python", "-c", "os.environ['A_KEY']='canary'"], "python -c os.environ['A_KEY']='***'"),
        (["a", "--tokenizer", "b", "--ssl-keyfile", "c"], "a --tokenizer b --ssl-keyfile c"),
    ],
)
def test_a_command_line_is_shown_without_secrets(words, shown):
    assert " ".join(secrets.command(words)) == shown


# -- what is given back --


def test_a_result_is_cleaned_wherever_a_value_stands():
    given = {"msg": "a canary", "list": [{"canary": ("x canary", 3, None, True)}]}
    assert secrets.cleaned(given, ["canary"]) == {"msg": "a ***", "list": [{"***": ["x ***", 3, None, True]}]}
    assert secrets.cleaned(given, []) is given


def test_requests_are_sealed_without_their_prompts_and_expectations():
    given = [
        {
            "prompt": "password: x",
            "api_key": "canary",
            "headers": {"X-Any": "canary"},
            "expect": {"headers": {"X-Served-By": "node1"}},
            "max_tokens": 5,
        }
    ]
    assert secrets.sealed(given) == [{**given[0], "api_key": HIDDEN, "headers": {"X-Any": HIDDEN}}]


@pytest.mark.parametrize("key", ["a b", "a\n", "\ta", "ä", "a\x00", "\x7f", " "])
def test_a_key_that_no_header_can_carry(key):
    assert secrets.unsendable(key)
    assert not secrets.unsendable("!az-~09")
    assert not secrets.unsendable(None)


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "a.",
            "-",
            "--a",
            "A_",
            "://a:",
            "api_key=[",
            "api_key='",
            "'a",
            "eyJ-",
            "x-",
            "?a",
            "hf_",
            "Authorization: ",
        ),
        *("bearer ", "_KEY", "password", "http://u:p", "-----BEGIN PRIVATE KEY-----", '\\"', "--api-key ", "sk-", "a@"),
    ],
)
def test_no_line_takes_long(piece):
    """What tries each beginning with each end takes 3 s for a line of this length where all is done in C, else longer."""
    text = piece * (100_000 // len(piece))
    began = time.process_time()
    # With a hint all shapes are tried, those of `scrub_words` among them; without one it is looked for.
    for hint in ("", "key token secret "):
        scrub(hint + text, ("canary-0123456789",))
    assert time.process_time() - began < 1.5
