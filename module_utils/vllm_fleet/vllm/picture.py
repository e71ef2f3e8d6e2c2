# SPDX-License-Identifier: Apache-2.0
"""A picture to ask a vision model about, drawn here: a square of one colour, as a PNG in a data URL. Pure."""

from __future__ import annotations

import base64
import struct
import zlib

#: Colours that a model is sure to tell from each other.
COLOURS = {"red": (220, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 220)}
#: Pixels of a side: patches of 14, 16 and 28 pixels divide it.
SIDE = 224


def png(colour: str) -> bytes:
    """Return a square of the colour as a PNG of a few hundred bytes (RFC 2083: eight bits, true colour)."""
    row = b"\0" + bytes(COLOURS[colour]) * SIDE
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(row * SIDE, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def content(prompt: str, colour: str) -> list[dict[str, object]]:
    """Return a message's content: the picture, then the text (OpenAI's parts, which vLLM takes)."""
    url = f"data:image/png;base64,{base64.b64encode(png(colour)).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
