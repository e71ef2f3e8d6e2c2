# SPDX-License-Identifier: Apache-2.0
"""Is a model's id the one that is meant? Pure: ids in, verdicts out.

Nothing here ever picks a model: an id is taken as it stands or refused, and a refusal lists what it may have meant.
Once a helper that guessed gave a user DeepSeek-V2-Lite for V3.1, a smaller model under a similar name.

Two models differ by the numbers and the words of their names: V3 and V3.1, 6.7b and 33b, ``-Base``,
``-FP8`` or ``-0528`` at the end are other models. Only what remains when numbers and number of words agree is taken for
a slip of the pen: other capitals, other separators, a letter too many, too few or in the wrong place, the organisation
left out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..common.alike import edits
from ..common.finding import Finding
from ..weights.layout import SnapshotError, check_repo_id

_WORD = re.compile(r"[a-z]+|\d+")

#: A word shorter than this names a size, a generation or a format (V, B, GPT, OPT): one letter makes another model.
SHORTEST_MISSPELT = 4
#: Letters that may be wrong in a word of at least six; in a shorter one only one may be.
MOST_SLIPS = 2

#: difflib's ratio from which on a known model is worth naming.
LEAST_ALIKE = 0.6

#: From which on a name without an organisation means one of a known model, or of its sibling.
ALIKE = 0.75

#: Named in refusals where nothing is near: what an id looks like.
EXAMPLE = "deepseek-ai/DeepSeek-V3.1"


@dataclass(frozen=True)
class Verdict:
    """``ok``, or ``fault`` (a clause) and the ``nearest`` known ids, the best first; empty when nothing is near."""

    ok: bool
    fault: str = ""
    nearest: tuple[str, ...] = ()

    def sentence(self, model: str) -> str:
        """Return the refusal as a sentence with what to do next; empty where the id is good."""
        if self.ok:
            return ""
        text = f"vllm_server_model is {model!r}: {self.fault}. Expected the exact id"
        if not self.nearest:
            return f"{text} as in the model's address on the Hub, such as {EXAMPLE}."
        text += f"; the nearest known: {', '.join(self.nearest)}. Write it so"
        return (
            f"{text}, or set vllm_server_model_exact: true if it is another model."
            if _well_formed(model)
            else f"{text}."
        )

    def finding(self, model: str) -> Finding | None:
        """Return the refusal as a finding; None where the id is good."""
        if self.ok:
            return None
        expected = " or ".join(self.nearest) or f"an exact id such as {EXAMPLE}"
        remedy = "nothing is guessed: write the exact id, as in the model's address on the Hub"
        if "/" in model and self.nearest:
            remedy += ", or set vllm_server_model_exact: true if it is another model"
        return Finding("refused", "model's id", expected, f"'{model}' ({self.fault})", remedy)


def check(model: str, known: Iterable[str], *, exact: bool = False) -> Verdict:
    """Return the verdict on an id against ``known`` ones (presets, models in a cache).

    A path on the node (it begins with ``/``) and an id that is known pass, and so does one that is well-formed and
    resembles no known one. ``exact`` says that the user means this id, whatever it resembles; a malformed one is
    refused even so.
    """
    ids = sorted(set(known))
    if model.startswith("/") or model in ids:
        return Verdict(True)
    if not model:
        return Verdict(False, "it is empty")
    try:
        check_repo_id(model)
    except SnapshotError as error:
        return Verdict(False, _clause(str(error)), tuple(nearest(model, ids)))
    if exact:
        return Verdict(True)
    # A whole id that differs in nothing but its spelling is a better match than others that are merely near.
    for kind in (_same_spelling, _without_organisation, _slip):
        found = {one: fault for one in ids if (fault := kind(model, one))}
        if found:
            best = [one for one in nearest(model, found) if one in found] or list(found)
            return Verdict(False, found[best[0]], tuple(best))
    return Verdict(True)


def nearest(model: str, known: Iterable[str]) -> list[str]:
    """Return up to three known ids that ``model`` may have meant, the best first.

    An id with the same letters and digits stands alone. Otherwise those come first that begin with all words of the
    name, then those with the same numbers before those with others, so that V2 is not offered for V3 where there is a
    V3.
    """
    ids = list(known)
    wanted = _letters(model)
    same = [one for one in ids if wanted and wanted in (_letters(one), _letters(_name(one)))]
    if same:
        return same
    numbers = _numbers(_name(model))
    begun = sorted((one for one in ids if _begins(model, one)), key=lambda one: (len(_name(one)), one))
    ratios = {one: _ratio(model, one) for one in ids if one not in begun}
    near = sorted((one for one in ratios if ratios[one] >= LEAST_ALIKE), key=lambda one: -ratios[one])
    return (begun + ([one for one in near if _numbers(_name(one)) == numbers] or ([] if begun else near)))[:3]


def _same_spelling(model: str, known: str) -> str:
    if model.lower() == known.lower():
        return "upper and lower case differ from a known model's id, and ids are exact"
    if _letters(model) == _letters(known):
        return "it differs from a known model's id only in the signs between the words"
    return ""


def _without_organisation(model: str, known: str) -> str:
    if "/" in model or "/" not in known:
        return ""
    if _letters(model) == _letters(_name(known)) or _slips(model, _name(known)) is not None:
        return "the organisation before the name is missing"
    if _begins(model, known):
        return "the organisation before the name is missing, and the end of the name"
    # The Hub has few models without an organisation, all of them old.
    return "the organisation before the name is missing" if _ratio(model, known) >= ALIKE else ""


def _slip(model: str, known: str) -> str:
    if ("/" in model) != ("/" in known):
        return ""
    slips = 0
    if "/" in model:
        organisation = _slips(_organisation(model), _organisation(known), whole=True)
        if organisation is None:
            return ""  # another organisation: its own version of a model may have the same name
        slips = organisation
    letters = _slips(_name(model), _name(known))
    if letters is None and _letters(_name(model)) == _letters(_name(known)):
        letters = 0
    if letters is None:
        return ""
    return "it looks like a known model's id with a slip of the pen" if 0 <= slips + letters <= MOST_SLIPS else ""


def _slips(one: str, other: str, *, whole: bool = False) -> int | None:
    """Return the number of wrong letters between two names, or None where they are names of different things.

    ``whole`` compares the letters as one word, as in an organisation's name, where the hyphens mean little.
    """
    words, others = _WORD.findall(one.lower()), _WORD.findall(other.lower())
    if whole:
        words, others = ["".join(words)], ["".join(others)]
    if len(words) != len(others):
        return None
    total = 0
    for word, wanted in zip(words, others, strict=True):
        if word == wanted:
            continue
        shortest = min(len(word), len(wanted))
        if word.isdigit() or wanted.isdigit() or shortest < SHORTEST_MISSPELT:
            return None
        distance = edits(word, wanted)
        if distance > (MOST_SLIPS if shortest >= 6 else 1):
            return None
        total += distance
    return total


def _begins(model: str, known: str) -> bool:
    """Return whether a known model's name has all words of this one at its beginning, and more."""
    words, others = _WORD.findall(_name(model).lower()), _WORD.findall(_name(known).lower())
    return len("".join(words)) >= SHORTEST_MISSPELT and words == others[: len(words)] and len(words) < len(others)


def _ratio(model: str, known: str) -> float:
    return difflib.SequenceMatcher(None, _name(model).lower(), _name(known).lower()).ratio()


def _letters(text: str) -> str:
    return "".join(_WORD.findall(text.lower()))


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def _name(model: str) -> str:
    return model.rpartition("/")[2]


def _organisation(model: str) -> str:
    return model.rpartition("/")[0]


def _well_formed(model: str) -> bool:
    try:
        check_repo_id(model)
    except SnapshotError:
        return False
    return True


def _clause(sentence: str) -> str:
    """Return the fault of check_repo_id's sentence."""
    return sentence.partition(": ")[2].partition(";")[0] or sentence
