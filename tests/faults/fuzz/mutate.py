"""Case number -> bytes: seeds, broken in ways that depend on the number alone."""

import random
import struct
from collections.abc import Callable, Sequence

BOUNDARIES = [0, 1, -1, 127, 255, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 63]
_FORMATS = ("B", "<H", ">H", "<I", ">I", "<Q", ">Q")
_MOST = 4
"""Mutations of one case."""

Mutator = Callable[[random.Random, bytearray, Sequence[bytes], Sequence[bytes]], None]


def mutate(seeds: Sequence[bytes], tokens: Sequence[bytes], case: int) -> bytes:
    """The bytes of a case: one of the seeds, broken one to four times."""
    chance = random.Random(case)  # noqa: S311  # no secret
    content = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, _MOST)):
        chance.choice(MUTATORS)(chance, content, seeds, tokens)
    return bytes(content)


def _place(chance: random.Random, content: bytearray) -> int:
    """Anywhere; half of the time near an end, where headers and directories are."""
    if chance.random() < 0.5:
        return chance.randrange(len(content) + 1)
    near = chance.randrange(min(64, len(content)) + 1)
    return near if chance.random() < 0.5 else len(content) - near


def _flip(chance, content, seeds, tokens):
    for _ in range(chance.choice((1, 1, 1, 8))):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _overwrite(chance, content, seeds, tokens):
    start = _place(chance, content)
    size = min(chance.randint(1, 32), len(content) - start)
    content[start : start + size] = chance.choice(
        (bytes(size), b"\xff" * size, chance.randbytes(size))
    )


def _truncate(chance, content, seeds, tokens):
    del content[_place(chance, content) :]


def _splice(chance, content, seeds, tokens):
    other = chance.choice(seeds)
    content[_place(chance, content) :] = other[chance.randrange(len(other) + 1) :]


def _duplicate(chance, content, seeds, tokens):
    start, size = _place(chance, content), chance.randint(1, 512)
    content[start:start] = content[start : start + size] * chance.choice((1, 1, 20))


def _delete(chance, content, seeds, tokens):
    start = _place(chance, content)
    del content[start : start + chance.choice((1, 4, 64, 512))]


def _number(chance, content, seeds, tokens):
    kind = chance.choice(_FORMATS)
    size = struct.calcsize(kind)
    start = _place(chance, content) // size * size
    value = chance.choice(BOUNDARIES) % (1 << (8 * size))
    if start + size <= len(content):
        struct.pack_into(kind, content, start, value)


def _token(chance, content, seeds, tokens):
    if tokens:
        token, start = chance.choice(tokens), _place(chance, content)
        stop = start + (len(token) if chance.random() < 0.5 else 0)
        content[start:stop] = token


MUTATORS: tuple[Mutator, ...] = (
    _flip,
    _overwrite,
    _truncate,
    _splice,
    _duplicate,
    _delete,
    _number,
    _token,
)
