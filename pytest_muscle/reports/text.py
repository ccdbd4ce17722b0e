"""Text from models made fit to be shown: nothing in it can act on a terminal, and it has an end."""

from __future__ import annotations

import unicodedata
from difflib import SequenceMatcher

_LINE_BREAKS = {"\n": "\n", "\t": "    "}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_DIFF_WORDS = 400


def plain(text: str, limit: int = 2000) -> str:
    """Return the text with every control character spelt out, cut after ``limit`` characters.

    Terminal escapes, bidirectional overrides and lone surrogates become ``\\x1b``, ``\\u202e`` and so on;
    line breaks stay.
    """
    cut = len(text) - limit
    shown = text[:limit].translate(_SPELLING)
    return f"{shown} [... {cut:,} more characters]" if cut > 0 else shown


def one_line(text: str, limit: int = 200) -> str:
    """Return the text as :func:`plain` does, on one line."""
    joined = " ".join(text[: 4 * limit].split())
    shown = joined.translate(_SPELLING)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _spelt(character: str) -> str:
    if " " <= character <= "~":
        return character
    if character in _LINE_BREAKS:
        return _LINE_BREAKS[character]
    if unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class _Spelling(dict[int, str]):
    """What each character met so far is shown as, for ``str.translate``."""

    def __missing__(self, code: int) -> str:
        self[code] = _spelt(chr(code))
        return self[code]


_SPELLING = _Spelling()


def difference(old: str, new: str) -> str:
    """Return the new text with what changed marked word by word: ``[-old-] {+new+}``.

    Only the first 400 words of each are compared; empty when nothing in them is alike.
    """
    before, after = old.split()[:_DIFF_WORDS], new.split()[:_DIFF_WORDS]
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    pieces = []
    alike = False
    for operation, i1, i2, j1, j2 in matcher.get_opcodes():
        if operation == "equal":
            alike = True
            pieces.append(" ".join(before[i1:i2]))
            continue
        if i2 > i1:
            pieces.append(f"[-{' '.join(before[i1:i2])}-]")
        if j2 > j1:
            pieces.append(f"{{+{' '.join(after[j1:j2])}+}}")
    return plain(" ".join(pieces)) if alike else ""
