"""Kinds are told by the text alone, and every one that comes out can be named in a recipe."""

from __future__ import annotations

import pytest

from tasks.surgeon.kinds import KINDS, SCRIPTS, kind_of

CASES = {
    "digits": [" 123", "7"],
    "words": [" the", "'s", "Don't", "getElement"],
    "code": ["{\n", "->", "_name", " {", "x1", "#include"],
    "punctuation": [", ", "...\n", "。", "“"],
    "white_space": ["\n\n", "   ", "\u00a0", "\u3000"],
    "bytes": ["\ufffd", "a\ufffd", "\x04"],
    "symbols": ["😀", "→", "²", "€", "\u200b", "𝐀"],
    "latin": ["é", " café", "ß", "ｃ"],
    "cyrillic": ["Москва"],
    "han": ["東京", "々"],
    "hiragana": ["は"],
    "katakana": ["カ", "ｶ", "ー"],
    "hangul": ["서울"],
    "arabic": ["القاهرة", "۱"],
    "devanagari": ["दिल्ली", "\u093f"],
    "greek": ["Ἀθήνα", " φ"],
    "other_scripts": ["ᐅ", "ⴰ"],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in CASES.items() for text in texts])
def test_kind_of(kind: str, text: str) -> None:
    assert kind_of(text) == kind


def test_every_character_has_a_kind_that_a_recipe_can_name() -> None:
    found = {kind_of(chr(code)) for code in range(0x11000) if not 0xD800 <= code < 0xE000}
    assert found == set(KINDS) - {"special"}
    assert set(SCRIPTS) <= set(KINDS)
