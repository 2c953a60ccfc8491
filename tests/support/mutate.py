"""Seeded damage to bytes and to JSON values."""

import random
from typing import Any

HUGE: list[Any] = [
    0, -1, 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**30, 1e308, -1e308, 5e-324, float("inf"), float("-inf"),
    float("nan"), "", "\0", "\x1b[2J", "\u2028", "a" * 5000, None, True, [], {}, [[]], {"": ""}, "../../x", "1e999",
]  # fmt: skip
"""Values that a field seldom means."""


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Damage bytes in one to three ways."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(_DAMAGES)(bytearray(data), rng)
    return data


def _flip(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 2, 8, 64))):
        if data:
            # Half of the flips hit the first bytes, where headers are.
            at = rng.randrange(min(len(data), 64) if rng.random() < 0.5 else len(data))
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data) + 1)])


def _splice(data: bytearray, rng: random.Random) -> bytes:
    if not data:
        return b""
    begin, length, target = rng.randrange(len(data)), rng.choice((1, 4, 64, 1024)), rng.randrange(len(data))
    return bytes(data[:target] + data[begin : begin + length] + data[target:])


def _drop(data: bytearray, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data) + 1)
    return bytes(data[:begin] + data[begin + rng.choice((1, 4, 64, 1024)) :])


def _nulls(data: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return bytes(data[:at] + bytes(rng.choice((1, 16, 4096))) + data[at:])


def _number(data: bytearray, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), rng.randrange(2 ** (8 * size))))
    return bytes(data[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :])


def _append(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data + (rng.randbytes(rng.choice((1, 100, 5000))) if rng.random() < 0.5 else data))


_DAMAGES = (_flip, _flip, _cut, _splice, _drop, _nulls, _number, _append)


def damage_value(value: Any, rng: random.Random) -> Any:
    """Damage one place of a JSON value: another value, a missing or swapped field, or nesting without end."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        changed = dict(value)
        key, other = rng.choice(list(changed)), rng.choice(list(changed))
        how = rng.random()
        if how < 0.7:
            changed[key] = damage_value(changed[key], rng)
        elif how < 0.8:
            del changed[key]
        elif how < 0.9:
            changed[key], changed[other] = changed[other], changed[key]
        else:
            changed[str(rng.choice(HUGE))[:40]] = changed[key]
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], damage_value(value[at], rng), *value[at + rng.choice((0, 1)) :]]
    if rng.random() < 0.05:
        for _ in range(rng.choice((5, 100, 3000))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return rng.choice(HUGE)
