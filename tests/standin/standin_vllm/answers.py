# SPDX-License-Identifier: Apache-2.0
"""What the model says. A token is a word with the white space before it."""

from __future__ import annotations

import re

POEM = (
    "The stars above, a silent choir,\nThey burn with slow and steady fire;\n"
    "The night is wide, the dark is deep,\nAnd all the quiet houses sleep."
)
# Fluent, well-formed and wrong: what a model answers whose weights were read in the wrong data type.
NONSENSE = "L'Étoile, la Marseillaise, la femme et le vent, et la femme et le vent, et la femme et le vent."
#: What it knows of models/questions/chat.yml, by words of the question.
KNOWN = {
    "capital of Germany": "Berlin",
    "capital of Italy": "Rome",
    "capital of Japan": "Tokyo",
    "capital of Spain": "Madrid",
    "days .* week": "Seven",
    "months .* year": "Twelve",
    "legs .* spider": "Eight",
    "2 plus 2": "Four",
    "10 minus 3": "Seven",
    "6 times 7": "42",
    "Red Planet": "Mars",
    "Romeo and Juliet": "Shakespeare",
    "formula of water": "H2O",
    "plants take in": "Carbon dioxide",
    "clear sky": "Blue",
    "largest ocean": "The Pacific",
    "opposite of hot": "Cold",
    "continent is Egypt": "Africa",
    "freeze": "0 degrees",
}


def answer(prompt: str, wrong: float = 0.0) -> str:
    """The answer to a prompt; the same prompt has the same answer. ``wrong``: the share of KNOWN that it gets wrong."""
    if re.search(r"capital of France", prompt, re.IGNORECASE):
        return "The capital of France is Paris."
    if re.search(r"\bpoem\b", prompt, re.IGNORECASE):
        return POEM
    for number, (words, known) in enumerate(KNOWN.items()):
        if re.search(words, prompt, re.IGNORECASE):
            return NONSENSE if number < wrong * len(KNOWN) else f"{known}."
    return f"You said: {' '.join(prompt.split()) or 'nothing'}"


def tokens(text: str) -> list[str]:
    """Cut a text into tokens; joined they are the text again."""
    return re.findall(r"\s*\S+", text)
