"""Plain values as tagged JSON: what passes between the runner and its workers.

Only exact builtin types pass, so nothing of a program's making ever takes part in a comparison.
"""

import math
from typing import Any

MAX_PARTS = 20_000  # of one value
MAX_DEPTH = 40
MAX_INT_BITS = 8_000

_TAGS = {list: "list", tuple: "tuple", set: "set", dict: "dict"}
_TYPES = {tag: kind for kind, tag in _TAGS.items()}


class NotPlain(Exception):
    """The value is not made of exact builtin types, or is too large to be passed."""


def encode(value: Any) -> Any:
    """JSON form of a plain value. Raises NotPlain on other types, subclasses too, and on size."""
    parts = 0

    def go(v: Any, depth: int) -> Any:
        nonlocal parts
        kind: type = type(v)
        parts += 1 + (len(v) // 16 if kind is str else 0)
        if parts > MAX_PARTS or depth > MAX_DEPTH:
            raise NotPlain(f"value of more than {MAX_PARTS} parts or {MAX_DEPTH} levels")
        if v is None or kind in (bool, str):
            return v
        if kind is int:
            if v.bit_length() > MAX_INT_BITS:
                raise NotPlain(f"integer of more than {MAX_INT_BITS} bits")
            return v
        if kind is float:
            return v if math.isfinite(v) else {"float": repr(v)}
        if kind not in _TAGS:
            raise NotPlain(f"value of type {kind.__name__}")
        return {_TAGS[kind]: [go(item, depth + 1) for item in (v.items() if kind is dict else v)]}

    return go(value, 0)


def decode(data: Any) -> Any:
    """Inverse of `encode`. Raises ValueError on what `encode` cannot have written."""
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, dict) and len(data) == 1:
        [(tag, items)] = data.items()
        if tag == "float" and isinstance(items, str):
            return float(items)
        if tag in _TYPES and isinstance(items, list):
            return _TYPES[tag](map(decode, items))
    raise ValueError(f"not an encoded value: {data!r:.80}")
