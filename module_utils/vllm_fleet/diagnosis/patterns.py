# SPDX-License-Identifier: Apache-2.0
"""The table of known failures: one row a class, the patterns that match it, the words for cause and remedy. Pure.

Fragments are vLLM 0.32.0's (the file is named at the pattern), and PyTorch's, huggingface_hub's, transformers' and
Docker's. Rows stand in rows_*.py by what they are about, and are tried in the order of the classes. How a log is
searched, and what may count as a root cause, is in diagnose.py and reading.py; what a message is that no row knows, in
families.py; the words are in explain_*.py.
"""

from __future__ import annotations

from ..common.failure import FailureClass
from . import rows_end, rows_gpu, rows_model, rows_node
from .row import Row

_ORDER = list(FailureClass)

ROWS: tuple[Row, ...] = tuple(
    sorted(
        (*rows_gpu.ROWS, *rows_model.ROWS, *rows_node.ROWS, *rows_end.ROWS),
        key=lambda row: _ORDER.index(row.class_),
    )
)

#: The classes of ``failure.class``, each with one row.
CLASSES = tuple(row.class_ for row in ROWS)
