"""What every settings class shares: frozen, no unknown keys; and the canonical form that cache keys are made of."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Set
from enum import Enum
from pathlib import PurePath

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of every settings class: immutable, refuses unknown keys, holds no infinities and no NaN.

    Give defaults in the field's own type (a tuple for a tuple field): defaults are not validated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def canonical_json(obj: object) -> str:
    """One JSON text for one meaning: sorted keys, no spaces, ASCII; values that compare equal give the same text.

    Takes models, dataclasses, mappings, sequences, sets, enum members, paths, text, numbers, booleans and None. A float
    without a fraction is written as an integer, as RFC 8785 does (1.0 and 1 are the same setting, so are -0.0 and 0);
    every other float is written in the shortest form that reads back equal. Sets are sorted by their members' text.

    Raises:
        TypeError: something else is inside, for example a tensor.
        ValueError: NaN or an infinity, or two keys of a mapping that become the same text (1 and "1").
    """
    return json.dumps(_plain(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_hash(obj: object) -> str:
    """SHA-256 of `canonical_json(obj)`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(obj).encode("ascii")).hexdigest()


def suggest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None.

    Case does not count. Besides near misses, a word stands for the shortest known word that begins with it (two letters
    or more: `fp8` finds `fp8_e4m3`) or else has it inside (three or more: `rate` finds `learning_rate`).
    """
    by_folded = {candidate.casefold(): candidate for candidate in known}
    folded = word.casefold()
    close = difflib.get_close_matches(folded, by_folded, n=1, cutoff=0.6)
    if close:
        return by_folded[close[0]]
    longer = [candidate for candidate in by_folded if len(folded) >= 2 and candidate.startswith(folded)]
    longer = longer or [candidate for candidate in by_folded if len(folded) >= 3 and folded in candidate]
    return by_folded[min(longer, key=len)] if longer else None


def _plain(obj: object) -> object:
    """The same value in JSON's own types."""
    if isinstance(obj, Enum):
        return _plain(obj.value)
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, float):
        return _plain_float(obj)
    if isinstance(obj, BaseModel):
        return _plain(obj.model_dump(mode="python", round_trip=True))
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: _plain(getattr(obj, field.name)) for field in dataclasses.fields(obj)}
    if isinstance(obj, PurePath):
        return obj.as_posix()
    if isinstance(obj, Mapping):
        return _plain_mapping(obj)
    if isinstance(obj, Set):
        return sorted((_plain(item) for item in obj), key=canonical_json)
    if isinstance(obj, list | tuple):
        return [_plain(item) for item in obj]
    raise TypeError(f"{type(obj).__name__} has no canonical JSON; turn it into numbers, text or lists first")


def _plain_float(value: float) -> float | int:
    if not math.isfinite(value):
        raise ValueError(f"{value} has no canonical JSON; use None or a finite number")
    return int(value) if value.is_integer() else float(value)


def _plain_mapping(mapping: Mapping[object, object]) -> dict[str, object]:
    plain: dict[str, object] = {}
    for key, value in mapping.items():
        inner = _plain(key)
        text = inner if isinstance(inner, str) else canonical_json(inner)
        if text in plain:
            raise ValueError(f"two keys of a mapping become the same text {text!r}; rename one")
        plain[text] = _plain(value)
    return plain
