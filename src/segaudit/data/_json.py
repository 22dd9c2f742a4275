"""Large JSON files an element at a time: where each one is, so that it need not be kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from segaudit.types import UserError

CHUNK = 1 << 22
"""Characters that are read at once, unless a value is longer."""
SPACE = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()


def elements(path: Path) -> Iterator[tuple[str, Any, int, int]]:
    """(key, element, first byte, byte after it) for the lists in the object that a JSON file is; the rest is skipped.

    Memory is that of a few elements. Raises UserError for a file that is not such JSON.
    """
    try:
        with path.open(encoding="latin-1", newline="") as file:  # a character a byte: places are those of the file
            yield from _walk(_Text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: this is not whole JSON ({error}); copy it again") from error


def element(path: Path, first: int, last: int) -> Any:
    """The element between two bytes. Raises UserError where there is none: the file has changed."""
    try:
        with path.open("rb") as file:
            file.seek(first)
            return json.loads(file.read(last - first))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: it has changed since it was opened, or cannot be read ({error})") from error


class _Text:
    """A file's text from some place on; `at` is where in `text` the reader is."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.at, self.before = file, "", 0, 0

    def more(self) -> bool:
        """Drop what is read and read on; False, and nothing changes, at the end."""
        added = self.file.read(max(CHUNK, len(self.text) - self.at))  # doubled: a long value is decoded few times
        if not added:
            return False
        self.before += self.at
        self.text, self.at = self.text[self.at :] + added, 0
        return True

    def peek(self) -> str:
        """The next character that is no space."""
        while True:
            found = SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                raise ValueError("it ends too early")

    def take(self, *wanted: str) -> str:
        """The next character, which must be one of these."""
        found = self.peek()
        if found not in wanted:
            raise ValueError(f"there is {found!r} at byte {self.before + self.at}, not {' or '.join(wanted)}")
        self.at += 1
        return found

    def value(self) -> tuple[Any, int, int]:
        """The next value, its first byte and the byte after it."""
        self.peek()
        while True:
            try:
                made, end = DECODER.raw_decode(self.text, self.at)
            except ValueError:
                if not self.more():
                    raise
                continue
            if end == len(self.text) and self.more():  # a number may go on
                continue
            piece = self.text[self.at : end]
            if not piece.isascii():
                made = json.loads(piece.encode("latin-1").decode("utf-8"))
            first, self.at = self.before + self.at, end
            return made, first, self.before + end


def _walk(text: _Text) -> Iterator[tuple[str, Any, int, int]]:
    text.take("{")
    if text.peek() == "}":
        return
    while True:
        key, _, _ = text.value()
        text.take(":")
        if text.peek() != "[":
            text.value()
        else:
            text.take("[")
            while text.peek() != "]":
                made, first, last = text.value()
                yield str(key), made, first, last
                if text.take(",", "]") == "]":
                    break
            else:
                text.take("]")
        if text.take(",", "}") == "}":
            return
