# SPDX-License-Identifier: Apache-2.0
"""What is a secret, and how it is taken out of what is shown. Pure, and the only place that knows.

A secret is known by its name (`*_KEY`, `Authorization`), by its shape (a password in a URL, the tokens of known
services), or because somebody gave it, in every form that a program may write it in.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from .terminal import mapped

_Shape = tuple[str, str | Callable[[re.Match[str]], str]]

HIDDEN = "***"
#: A shorter text is no secret, and hiding it would hide the text around it.
SHORTEST = 4
#: Words that stand for no secret where a secret could stand.
_ORDINARY = frozenset(("true", "false", "none", "null", "auto", "default", "enabled", "disabled"))

# -- names -------------------------------------------------------------------------------------------------------------

#: The end of a name whose value is a secret. `TOKENS` alone is none: vLLM has many settings that count tokens.
_NAME = (
    r"(?:^|_)(?:TOKEN|KEYS?|SECRETS?|AUTH|AUTHORIZATION|BEARER|COOKIES?|DSN)$|_(?:PASS|PWD|PAT)$"
    r"|(?:API|ACCESS|PRIVATE|SECRET|AUTH)_?(?:KEY|TOKEN)S?$|(?:HF|HUB)_TOKENS$"
    r"|(?:PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?)$"
)
#: What the same names are in the middle of a text, where a plain word such as `key` says nothing.
_WORD = (
    r"(?:(?:api|access|private|secret|auth|encryption)[_-]?keys?|(?:auth|access|bearer|hf|hub|refresh)[_-]?tokens?"
    r"|(?:client[_-]?)?secrets?|passw(?:or)?ds?|passphrase|credentials?)"
)
#: The same in capitals: a variable of the environment.
_VARIABLE = (
    r"[A-Z][A-Z0-9_]{0,60}(?:_(?:TOKEN|KEYS?|SECRETS?|AUTH|PASS|PWD|DSN)|PASSWORDS?|PASSWD|CREDENTIALS?|APIKEYS?)"
)


def is_secret(name: str) -> bool:
    """Return whether the value of a variable, a flag, a header or an option must never be shown."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.search(_NAME, re.sub(r"[^A-Za-z0-9]", "_", parts), re.IGNORECASE) is not None


def is_hidden(name: str, value: object) -> bool:
    """Return whether a value must not be shown: for its name, or for what it looks like."""
    if isinstance(value, (bool, type(None))):
        return False
    return is_secret(name) or scrub(text := str(value)) != text


# -- shapes ------------------------------------------------------------------------------------------------------------

_QUOTE = r"(?:''|\\?['\"])"
#: A text in quotes, which may be those of a text in a text: YAML doubles one.
_QUOTED = r"''[^'\n]+''|\\['\"][^'\"\\]*\\['\"]|'(?:[^'\n]|'')*'|\"[^\"\n]*\""
#: One value after its name, with or without quotes.
_VALUE = rf"(?:\[[^\]]{{0,2000}}\]|{_QUOTED}|[^\s'\",;&}})\]]+)"


def _in_place(found: re.Match[str]) -> str:
    """Put the mark in the place of a value, between the brackets or quotes that it had."""
    value = found[2]
    if value.lower() in _ORDINARY or value in ("''", '""'):  # `api_key=None` says that there is none
        return found[0]
    if value[0] == "[":
        return f"{found[1]}[{HIDDEN}]"
    mark = value[:2] if value[0] == "\\" or value[:2] == "''" else value[0] if value[0] in "'\"" else ""
    return f"{found[1]}{mark}{HIDDEN}{mark}"


# Patterns are compiled when they are first needed, by the re module's cache: most runs of a module need none of them.
#: Shapes that are nothing else, and what takes their place.
_SHAPES: tuple[_Shape, ...] = (
    # One slash is what is left of two where a URL was taken for a path.
    (r"(:/{1,2}[^/\s:@'\"]*:)[^/\s'\"]+@", rf"\1{HIDDEN}@"),
    (r"(://)[\w.~%+-]{16,}@", rf"\1{HIDDEN}@"),
    (
        r"(?i)([?&][\w.-]{0,60}(?:token|key|secret|password|signature|credential)[\w.-]{0,60}=)[^&\s'\"#]+",
        rf"\1{HIDDEN}",
    ),
    (
        r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----[\s\S]*?(?:-----END \1PRIVATE KEY-----|\Z)",
        HIDDEN,
    ),
    (r"\bhf_(?:(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{6,}|[a-z]{12,}(?!\w))", HIDDEN),
    (r"\bsk-[\w-]{6,}", HIDDEN),
    (r"\b(?:gh[pousr]_|github_pat_|glpat-|gldt-|nvapi-|dckr_pat_|npm_|pypi-|r8_|wandb_v1_)[\w-]{16,}", HIDDEN),
    (r"\bxox[a-z]-[\w-]{10,}", HIDDEN),
    (r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}", HIDDEN),
    (r"\bAIza[\w-]{30,}", HIDDEN),
    (r"(?<![\w-])eyJ[\w-]{8,2000}\.[\w-]{8,4000}(?:\.[\w-]*)?", HIDDEN),
    # `Bearer $KEY`, as the last lines of a run say it, is a variable of the shell; `Bearer $ecret` may be a secret.
    (
        r"(?i)\b((?:proxy-)?authorization\\?['\"]?\s*[:=]\s*\\?['\"]?)(?!(?-i:Bearer \$KEY)(?![\w$]))"
        r"(?:(?:bearer|basic|token|digest|negotiate)\s+)?"
        r"[^\s'\",}\]]+",
        rf"\1{HIDDEN}",
    ),
    (
        rf"(?i)((?:(?<![\w-])x-[\w-]{{0,60}}(?:key|token|secret)|(?:set-)?cookie)(?:{_QUOTE})?\s*[:=]\s*(?:{_QUOTE})?)[^\s'\",}}\]]+",
        rf"\1{HIDDEN}",
    ),
    (rf"\b({_VARIABLE}=)({_VALUE})", _in_place),
    (
        rf"((?:(?i:{_WORD})|\b{_VARIABLE})(?:{_QUOTE})\s*:\s*)({_QUOTED}|\[[^\]]{{0,2000}}\])",
        _in_place,
    ),
)
#: Shapes that a sentence may have, too: "--api-key is missing". For logs and values, not for the project's own words.
_LOOSE: tuple[_Shape, ...] = (
    (r"\b((?i:bearer)\s+)[\w.~+/=-]+", rf"\1{HIDDEN}"),
    # A command line, where --api-key takes several values, and the same as a list of quoted words.
    (
        rf"(?i)(?<![\w-])(--(?:[\w-]{{1,60}}-)?(?:{_WORD}|token|key)(?:=|\s+))(?!\[|(?:\w+_)?(?:KEY|TOKEN|PASSWORD|SECRET)\b)"
        r"(?!-)[^\s'\"\],;]+(?:[ \t]+(?!-)[^\s'\"\],;]+)*",
        rf"\1{HIDDEN}",
    ),
    (rf"(?i)(?<![\w-])(--(?:[\w-]{{1,60}}-)?(?:{_WORD}|token|key)['\"]\s*,\s*)('[^']*'|\"[^\"]*\")", _in_place),
    # `non-default args: {'api_key': ['...']}`: 0.32.0 hides them itself, older releases print them.
    (rf"(?i)({_WORD}['\"]?\]?\s*[=:]\s*)({_VALUE})", _in_place),
    (rf"\b({_VARIABLE}['\"]?\]?\s*[=:]\s*)({_VALUE})", _in_place),
)
#: What a text must hold for any of them to be worth a try.
_HINT = (
    r"(?i)hf_|sk-|bearer|key|token|secret|passw|passphrase|credential|authorization|cookie|_auth|_pass\b|_pwd|_dsn"
    r"|:/{1,2}[^/\s]*@|gh[pousr]_|github_pat|glpat|gldt|pypi-|r8_|wandb_v1|xox|akia|asia|aiza|eyj|nvapi|dckr_pat|npm_"
    r"|signature"
)


def scrub(text: str, values: Iterable[str] = ()) -> str:
    """Take out the given ``values`` in all their forms, and what looks like a secret: for logs and for values."""
    return _shaped(_without(text, values), (*_SHAPES, *_LOOSE))


def scrub_words(text: str, values: Iterable[str] = ()) -> str:
    """Take out the given ``values`` and what can be nothing but a secret: for texts that the project wrote itself."""
    return _shaped(_without(text, values), _SHAPES)


def _shaped(text: str, patterns: Sequence[_Shape]) -> str:
    if re.search(_HINT, text):
        for pattern, replacement in patterns:
            text = re.sub(pattern, replacement, text)
    return text


def command(words: Sequence[str]) -> list[str]:
    """Return the words of a command line without secrets: the values of a flag, of a variable, of any shape."""
    shown, hides = [], False
    for word in words:
        name, equals, value = word.partition("=")
        flag = word.startswith("-")
        if hides and not flag:
            shown.append(HIDDEN)
            continue
        secret = is_secret(name) and re.fullmatch(r"-{0,2}[\w.-]+", name) is not None
        hides = secret and flag and not equals
        shown.append(f"{name}={HIDDEN}" if secret and equals and value else scrub(word))
    return shown


# -- known values ------------------------------------------------------------------------------------------------------


def values_in(given: object) -> set[str]:
    """Return the secrets in an environment or in arguments: by name, or the password of a URL.

    ``given`` is a mapping, or one of the other forms in which people write them: a list of `NAME=value`, a text.
    """
    found: set[str] = set()
    for name, value in _pairs(given):
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, (bool, type(None))):
                continue
            text = str(one)
            found |= {text} if is_secret(name) else set()
            found |= {match[1] for match in re.finditer(r"://[^/\s:@'\"]*:([^/\s'\"]+)@", text)}
    found |= {unquote(value) for value in found}
    return {value for value in found if len(value) >= SHORTEST and value.lower() not in _ORDINARY}


def _pairs(given: object) -> Iterable[tuple[str, object]]:
    if isinstance(given, Mapping):
        return [(str(name), value) for name, value in given.items()]
    words = given.split() if isinstance(given, str) else given if isinstance(given, (list, tuple)) else []
    pairs: list[tuple[str, object]] = []
    name = ""
    for word in words:
        if isinstance(word, Mapping):
            pairs += _pairs(word)
            continue
        head, equals, value = str(word).partition("=")
        if equals:
            pairs.append((head, value))
        elif not head.startswith("-") and name:
            pairs.append((name, head))
        name = head if head.startswith("-") and not equals else name if not equals else ""
    return pairs


def _without(text: str, values: Iterable[str]) -> str:
    wanted = tuple(sorted({value for value in values if len(value) >= SHORTEST}))
    for form in forms(wanted) if wanted else ():
        text = text.replace(form, HIDDEN)
    return text


@functools.lru_cache(maxsize=64)
def forms(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return every text in which one of ``values`` may stand in something shown, the longest first."""
    found: set[str] = set()
    for value in values:
        # A log gives out lines: those of a key of several are known one by one.
        parts = {value, value.strip(), *(line.strip() for line in value.splitlines() if len(line.strip()) >= 8)}
        for part in parts:
            found |= _written(part)
    return tuple(sorted((form for form in found if len(form) >= SHORTEST), key=lambda form: (-len(form), form)))


def _written(value: str) -> set[str]:
    raw = value.encode("utf-8", "surrogateescape")
    as_json = json.dumps(value)[1:-1]
    quoted = {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    found = {value, repr(value)[1:-1], repr(raw)[2:-1], as_json, json.dumps(as_json)[1:-1]}
    found |= {json.dumps(value, ensure_ascii=False)[1:-1], repr(as_json)[1:-1]}
    found |= quoted | {re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), one) for one in quoted}
    found |= {html.escape(value), html.escape(value, quote=False), value.replace("'", "''")}
    # The shell's quotes, and HAProxy's, whose formats begin with %.
    found |= {
        value.replace("'", "'\"'\"'"),
        value.replace("'", "'\\''"),
        value.replace("%", "%%").replace("'", "'\\''"),
    }
    return found | {raw.hex(), raw.hex().upper()} | _base64(raw)


def _base64(raw: bytes) -> set[str]:
    """Return the letters that stand for it in Base64, alone and in the middle of something longer."""
    found = {base64.b64encode(raw).decode().rstrip("=")}
    for before in range(3):
        text = base64.b64encode(b"\0" * before + raw).decode().rstrip("=")
        # A letter of six bits may have some of a neighbour's.
        inner = text[(0, 2, 3)[before] : len(text) - (1 if (before + len(raw)) % 3 else 0)]
        found |= {inner} if len(inner) >= 8 else set()
    return found | {one.translate(str.maketrans("+/", "-_")) for one in found}


# -- whatever is given back --------------------------------------------------------------------------------------------


def cleaned(data: Any, values: Iterable[str]) -> Any:
    """Return a result, a record or a fact without the given ``values``, wherever in it they stand."""
    known = tuple(values)
    return mapped(data, lambda text: _without(text, known)) if known else data


def unmistakable(data: Any) -> Any:
    """Return data without what can be nothing but a secret."""
    return mapped(data, scrub_words)


def sealed(data: Any) -> Any:
    """Return options of requests without what opens a door: values with a secret's name, and all headers that are sent.

    Headers that are expected of an answer (`expect`) are left.
    """
    if isinstance(data, Mapping):
        return {name: value if name == "expect" else _sealed(str(name), value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [sealed(value) for value in data]
    return data


def _sealed(name: str, value: Any) -> Any:
    if isinstance(value, Mapping) and name == "headers":
        return dict.fromkeys(value, HIDDEN)
    if isinstance(value, (Mapping, list, tuple)):
        return sealed(value)
    return HIDDEN if value and is_secret(name) else value


def kind(value: object) -> str:
    """Say what a value is that has not the form in which its secrets could be told from the rest."""
    if isinstance(value, str):
        return f"a text of {len(value)} characters (not shown)"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)} (not shown)"
    # Ansible's own types have names of their own.
    if isinstance(value, (bool, int, float)):
        return "true or false" if isinstance(value, bool) else "a number"
    return "a dictionary" if isinstance(value, Mapping) else type(value).__name__


def unsendable(key: object) -> bool:
    """Return whether no header can carry a key: one that is not printable ASCII, or has a blank or a line break."""
    return re.fullmatch(r"[!-~]*", "" if key is None else str(key)) is None
