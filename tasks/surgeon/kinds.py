"""What kind of text a token is: the unit in which the coverage of a vocabulary is counted and policies are named.

Special tokens are told apart by their tokenizer, not by their text: the caller decides those.
"""

from __future__ import annotations

import re
import unicodedata

SCRIPTS = (
    "latin",
    "arabic",
    "armenian",
    "bengali",
    "cyrillic",
    "devanagari",
    "georgian",
    "greek",
    "gujarati",
    "gurmukhi",
    "han",
    "hangul",
    "hebrew",
    "hiragana",
    "kannada",
    "katakana",
    "khmer",
    "lao",
    "malayalam",
    "myanmar",
    "sinhala",
    "tamil",
    "telugu",
    "thai",
    "tibetan",
    "other_scripts",
)
"""Latin is text with letters beyond ASCII's; the last stands for the scripts that are not listed."""

KINDS = ("digits", "words", "code", "punctuation", "white_space", "bytes", "symbols", "special", *SCRIPTS)
"""Every kind. "special" is not given by `kind_of`: a special token is one whatever its text."""

_DIGITS = re.compile(r"\s*[0-9]+\s*")
_WORDS = re.compile(r"\s*'?[A-Za-z]+(?:'[A-Za-z]+)?\s*")
_PUNCTUATION = re.compile(r"""[\s.,;:!?'"()\-]+""")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_NAMED_OTHERWISE = {"cjk": "han", "ideographic": "han", "extended": "arabic"}
"""First words of Unicode names that are not the script's own name."""
_WIDTHS = {"fullwidth", "halfwidth"}
_NO_SCRIPT = {"mathematical", "combining", "modifier", "superscript", "subscript", "variation", "micro", "digit"} | {
    "double", "feminine", "masculine", "script", "black"
}  # fmt: skip


def kind_of(text: str) -> str:
    """The kind of a decoded token. "bytes": what is no text, parts of characters (as U+FFFD) and control characters.

    ASCII: "digits", "words" (letters alone), "white_space", "punctuation" (what prose uses), "code" (all else: braces,
    operators, underscores, letters joined to signs). Beyond: the script of the first letter that is not ASCII, else
    "punctuation" or "symbols". White space around a token does not count.
    """
    if "\ufffd" in text or _CONTROLS.search(text):
        return "bytes"
    if not text.strip():
        return "white_space"
    if not text.isascii():
        return _foreign(text)
    if _DIGITS.fullmatch(text):
        return "digits"
    if _WORDS.fullmatch(text):
        return "words"
    return "punctuation" if _PUNCTUATION.fullmatch(text) else "code"


def _foreign(text: str) -> str:
    characters = [character for character in text if not character.isascii()]
    for character in characters:
        # A combining mark alone is a script's too in Devanagari or Thai; digits of other scripts as well.
        if unicodedata.category(character)[0] in "LM" or unicodedata.category(character) == "Nd":
            return _script(character)
    categories = {unicodedata.category(character)[0] for character in characters if not character.isspace()}
    return "punctuation" if categories <= {"P"} else "symbols"


def _script(character: str) -> str:
    # The standard library has no property for scripts, but a letter's Unicode name starts with its script.
    words = unicodedata.name(character, "").lower().replace("-", " ").split() or [""]
    first = words[1] if words[0] in _WIDTHS and len(words) > 1 else words[0]
    if first in _NO_SCRIPT:
        return "symbols"
    script = _NAMED_OTHERWISE.get(first, first)
    return script if script in SCRIPTS else "other_scripts"
