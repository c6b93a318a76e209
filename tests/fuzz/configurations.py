"""Configurations in JSON that say what no optimizer and no model is."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.fuzz.mangling import pick

__all__ = ["strange_json"]


def strange_json(text: str, rng: np.random.RandomState) -> str:
    """A configuration with one value changed, or none at all."""
    whole = ["[" * 100_000, '{"a":' * 100_000, "[" + "[]," * 100_000 + "[]]", "null", "3", '""', ""]
    whole += ['{"class_name":1}', "[1e999]", '{"a": "\\ud800"}', "9" * 5000, text[: len(text) // 2]]
    if rng.rand() < 0.4:
        return pick(rng, whole)
    try:
        described = json.loads(text)
    except ValueError:
        return text[::-1]
    slots = list(_slots(described))
    if slots:
        container, key = pick(rng, slots)
        values = [None, -1, 0.5, 1e400, float("nan"), 10**400, "x", "x" * 100_000, [], {}]
        values += [[[[]]], {"a": {"b": 1}}, True, "\x1b[2J", "\ud800", [0] * 50_000]
        container[key] = pick(rng, values)
    return json.dumps(described)


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _slots(value[key])
