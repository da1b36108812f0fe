"""How messages show paths, values and choices."""

from __future__ import annotations

from collections.abc import Iterable

from compress.config import suggest


def dotted(path: Iterable[str | int]) -> str:
    """`stages.0.method`, the way `--set` writes it."""
    return ".".join(map(str, path))


def describe(value: object) -> str:
    """A value and its type as the author sees them: `'abc' (text)`, `3 (integer)`, `a list`, `nothing`."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"{str(value).lower()} (true or false)"
        case int():
            digits = str(value)
            return f"{digits if len(digits) <= 40 else digits[:20] + '…'} (integer)"
        case float():
            return f"{value} (number)"
        case str():
            return f"{value if len(value) <= 40 else value[:39] + '…'!r} (text)"
        case list():
            return "a list"
    return "a mapping"


def number(value: int | float) -> str:
    """Without a pointless `.0`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else str(value)


def is_number(text: str) -> bool:
    """Whether a text is a number somebody put in quotes."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def counted(count: int | str, noun: str) -> str:
    """`1 item`, `2 items`."""
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}s"


def literal(choice: object) -> str:
    """An allowed value: text in backticks, anything else plain."""
    return f"`{choice}`" if isinstance(choice, str) else str(choice)


def listed(words: Iterable[str]) -> str:
    """`a`, `b`, each in backticks."""
    return ", ".join(f"`{word}`" for word in words)


def either(words: Iterable[str]) -> str:
    """a, a or b, a, b or c; each once."""
    *most, last = dict.fromkeys(words)
    return f"{', '.join(most)} or {last}" if most else last


def unknown(noun: str, word: str, known: Iterable[str]) -> str:
    """``unknown kind `aq`; did you mean `awq`? (known: awq, gptq)``."""
    known = list(known)
    near = suggest(word, known)
    meant = f"; did you mean `{near}`?" if near else ""
    return f"unknown {noun} `{word}`{meant} (known: {', '.join(known)})"
