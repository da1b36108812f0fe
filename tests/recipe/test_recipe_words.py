"""Small words of messages."""

from __future__ import annotations

import pytest

from compress.recipe.words import counted, describe, dotted, either, is_number, listed, literal, number, unknown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        (True, "true (true or false)"),
        (3, "3 (integer)"),
        (10**60, "10000000000000000000… (integer)"),
        (3.0, "3.0 (number)"),
        ("abc", "'abc' (text)"),
        ("x" * 41, f"'{'x' * 39}…' (text)"),
        ([], "a list"),
        ({}, "a mapping"),
    ],
)
def test_describe(value: object, text: str) -> None:
    assert describe(value) == text


def test_words() -> None:
    assert dotted(("stages", 0, "method")) == "stages.0.method"
    assert [number(1.0), number(0.5), number(7), number(1e300)] == ["1", "0.5", "7", "1e+300"]
    assert [counted(1, "item"), counted("1", "item"), counted(0, "item")] == ["1 item", "1 item", "0 items"]
    assert [literal("a"), literal(1), literal(None)] == ["`a`", "1", "None"]
    assert listed(["a", "b"]) == "`a`, `b`"
    assert [either(["a"]), either("ab"), either("abca")] == ["a", "a or b", "a, b or c"]
    assert [is_number(text) for text in ("1e-4", " 2 ", "", "x")] == [True, True, False, False]
    assert unknown("kind", "aq", ["awq", "gptq"]) == "unknown kind `aq`; did you mean `awq`? (known: awq, gptq)"
    assert unknown("kind", "zzz", ["awq"]) == "unknown kind `zzz` (known: awq)"
