"""Text from models made fit to be shown: nothing in it can act on a terminal, and it has an end."""

from __future__ import annotations

import unicodedata
from difflib import SequenceMatcher

_LINE_BREAKS = {"\n": "\n", "\t": "    "}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_DIFF_WORDS = 200


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
    shown = " ".join(text[: 4 * limit].split()).translate(_SPELLING)
    is_whole = len(shown) <= limit and len(text) <= 4 * limit
    return shown if is_whole else shown[: limit - 3] + "..."


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

    Only the first 200 words of each are compared, as the time grows with their product and more; empty
    when nothing in them is alike, or everything.
    """
    before, after = (text.split(maxsplit=_DIFF_WORDS)[:_DIFF_WORDS] for text in (old, new))
    operations = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    if len({operation == "equal" for operation, *_ in operations}) < 2:
        return ""
    pieces = []
    for operation, i1, i2, j1, j2 in operations:
        if operation == "equal":
            pieces.append(" ".join(before[i1:i2]))
            continue
        if i2 > i1:
            pieces.append(f"[-{' '.join(before[i1:i2])}-]")
        if j2 > j1:
            pieces.append(f"{{+{' '.join(after[j1:j2])}+}}")
    return plain(" ".join(pieces))
