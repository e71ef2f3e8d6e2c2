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


def answer(prompt: str) -> str:
    """The answer to a prompt; the same prompt has the same answer."""
    if re.search(r"capital of France", prompt, re.IGNORECASE):
        return "The capital of France is Paris."
    if re.search(r"\bpoem\b", prompt, re.IGNORECASE):
        return POEM
    return f"You said: {' '.join(prompt.split()) or 'nothing'}"


def tokens(text: str) -> list[str]:
    """Cut a text into tokens; joined they are the text again."""
    return re.findall(r"\s*\S+", text)
