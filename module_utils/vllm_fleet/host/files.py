# SPDX-License-Identifier: Apache-2.0
"""Reads small text files of /sys and /proc; remembers in words what could not be read."""

from __future__ import annotations

from pathlib import Path


class Files:
    """Reads small text files; remembers in words what could not be read."""

    def __init__(self) -> None:
        """Begin without notes."""
        self.notes: list[str] = []

    def text(self, path: Path, *, expected: bool = True) -> str | None:
        """Return the stripped content, or None with a note (no note for a missing file that need not be there)."""
        try:
            content = path.read_bytes().decode("utf-8", "replace").strip()
        except FileNotFoundError:
            if expected:
                self.notes.append(f"{path} is missing")
            return None
        except OSError as error:
            self.notes.append(f"{path} cannot be read: {error.strerror or error}")
            return None
        if not content and expected:
            self.notes.append(f"{path} is empty")
        return content or None

    def number(self, path: Path, *, expected: bool = True) -> int | None:
        """Return the file's decimal or 0x number, or None with a note."""
        content = self.text(path, expected=expected)
        if content is None:
            return None
        try:
            return int(content, 0)
        except ValueError:
            self.notes.append(f"{path} holds {content[:40]!r} where a number belongs")
            return None

    def entries(self, path: Path, *, expected: bool = True) -> list[Path]:
        """Return a directory's entries, numbers in numeric order; an unreadable directory is empty, with a note."""
        try:
            found = list(path.iterdir())
        except FileNotFoundError:
            if expected:
                self.notes.append(f"{path} is missing")
            return []
        except OSError as error:
            self.notes.append(f"{path} cannot be read: {error.strerror or error}")
            return []
        return sorted(found, key=lambda entry: (int(entry.name) if entry.name.isdigit() else -1, entry.name))

    def properties(self, path: Path) -> dict[str, int]:
        """Return a KFD ``properties`` file ("name value" per line); lines that do not fit are skipped."""
        found: dict[str, int] = {}
        for line in (self.text(path) or "").splitlines():
            name, _, value = line.partition(" ")
            if value.strip().isdigit():
                found[name] = int(value)
        return found
