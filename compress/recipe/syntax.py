"""Which YAML a recipe may use, and what to say when it is not YAML."""

from __future__ import annotations

import re
from typing import NamedTuple

import yaml
from yaml.reader import ReaderError

from compress.errors import RecipeError

TAG = "tag:yaml.org,2002:"

_DIGITS = "[0-9](?:_?[0-9])*"
_EXPONENT = "[eE][-+]?[0-9]+"
SCALARS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    (f"{TAG}null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (f"{TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (
        f"{TAG}int",
        re.compile(r"^[-+]?(?:0|[1-9](?:_?[0-9])*|0x[0-9a-fA-F]+|0o[0-7]+)$"),
        list("-+0123456789"),
    ),
    (
        f"{TAG}float",
        re.compile(
            rf"^(?:[-+]?(?:{_DIGITS}\.(?:{_DIGITS})?(?:{_EXPONENT})?|\.{_DIGITS}(?:{_EXPONENT})?"
            rf"|{_DIGITS}{_EXPONENT}|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN))$"
        ),
        list("-+0123456789."),
    ),
    (f"{TAG}merge", re.compile(r"^<<$"), ["<"]),
)
"""Tag, pattern and first characters of every plain scalar that is not text: YAML 1.2's core schema, plus merge keys
and digits grouped by `_`. A number with leading zeros is text: 010 is eight in YAML 1.1 and ten in 1.2."""


class RecipeLoader(yaml.SafeLoader):
    """PyYAML's composer with the scalars above instead of YAML 1.1's."""


RecipeLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in SCALARS:
    RecipeLoader.add_implicit_resolver(_tag, _pattern, _first)


class _Advice(NamedTuple):
    """A sentence for PyYAML's messages that match.

    `opened` reports the line where the construct began instead of the one where PyYAML gave up; `{line}` in a hint is
    that line too.
    """

    pattern: str
    message: str
    hint: str | None = None
    opened: bool = False


_QUOTE = "put quotes around the value"
_ADVICE = (
    _Advice(r"found another document", "a second document begins here", "a recipe is one document: remove the `---`"),
    _Advice(r"scanning an alias", "`*` begins an alias", "put quotes around text that begins with `*`"),
    _Advice(r"undefined alias", "this alias names no anchor", "put quotes around text that begins with `*`"),
    _Advice(r"scanning an anchor", "`&` begins an anchor", "put quotes around text that begins with `&`"),
    _Advice(r"duplicate anchor", "this anchor is defined a second time", "give it another name"),
    _Advice(r"(scanning|parsing) a tag|tag handle", "`!` begins a tag", "put quotes around text that begins with `!`"),
    _Advice(r"escape", "unknown escape in double quotes", "use single quotes, or write `\\\\` for a backslash"),
    _Advice(r"quoted scalar", "the quote opened here is never closed", "close it", opened=True),
    _Advice(r"flow sequence.*got '<stream end>'", "the `[` opened here is never closed", "add `]`", opened=True),
    _Advice(r"flow mapping.*got '<stream end>'", "the `{` opened here is never closed", "add `}}`", opened=True),
    _Advice(r"'<stream end>'", "a `[` or `{` is never closed", "close it"),
    _Advice(r"flow sequence", "a `,` or `]` is missing before this", "the `[` is on line {line}"),
    _Advice(r"flow mapping", "a `,` or `}` is missing before this", "the `{{` is on line {line}"),
    _Advice(r"mapping values", "unexpected `:`", f"indent the line like its neighbours, or {_QUOTE}"),
    _Advice(r"expected ':'", "a key without `:`", "write `key: value`", opened=True),
    _Advice(r"cannot start any token|expected the node content", "unexpected character", _QUOTE),
    _Advice(
        r"<block end>|<document start>|not allowed here",
        "this does not fit here",
        "check the indentation and the quotes",
    ),
    _Advice(r"directive", "`%` begins a directive", "put quotes around text that begins with `%`"),
)


def syntax_error(error: yaml.YAMLError, text: str, name: str) -> RecipeError:
    """The sentence for a PyYAML error in `text`: where, what it probably is, and the remedy."""
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return RecipeError(f"character U+{ord(text[error.position]):04X} is not allowed", where=f"{name}:{line}")
    if not isinstance(error, yaml.MarkedYAMLError):
        return RecipeError(f"not valid YAML: {error}", where=name)
    detail = " ".join(part for part in (error.context, error.problem) if part)
    line = _line(error.problem_mark)
    if _indented_by_tab(text, line):
        return RecipeError("a tab indents this line", where=f"{name}:{line}", hint="YAML indents with spaces")
    for advice in _ADVICE:
        if re.search(advice.pattern, detail):
            began = _line(error.context_mark)
            hint = advice.hint.format(line=began) if advice.hint else None
            place = f"{name}:{began if advice.opened else line}"
            return RecipeError(f"not valid YAML: {advice.message}", where=place, hint=hint)
    return RecipeError(f"not valid YAML: {detail}", where=f"{name}:{line}")


def _line(mark: yaml.Mark | None) -> int:
    return mark.line + 1 if mark else 1


def _indented_by_tab(text: str, line: int) -> bool:
    lines = text.splitlines()
    return line <= len(lines) and re.match(r" *\t", lines[line - 1]) is not None
