"""The vectors of an index, embedded part by part and kept: a kill loses one part at most.

    <kept>/<key>/<space>-00000.npy          float32, ROWS_A_PART rows, as the student gives them
    <kept>/query-<schema>-<model hash>      the student exported for queries (queries.py)

The key is a hash of the student, the texts and the features, so that another kind of index, or
another machine, finds the parts that exist. Deleting the folder costs nothing but time.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from pipeline.core.checksums import add_checksum, hash_strings, is_whole
from pipeline.core.errors import InputError
from pipeline.core.files import atomic_file, save_array
from pipeline.core.progress import counter
from pipeline.features.rows import Features
from pipeline.index.documents import Items
from pipeline.index.format import SCHEMA, Space, Vectors, normalise
from pipeline.student.encoder import Student

ROWS_A_PART = 1 << 14


@dataclass(frozen=True)
class Partition:
    """Which parts one of several machines embeds."""

    number: int
    """Of the machine, from 1."""
    of: int
    """Machines."""

    @classmethod
    def read(cls, text: str) -> "Partition":
        """Read `3/16`; anything else is an InputError."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise InputError(f"--share is {text!r}.", "name a share such as 3/16, from 1/16 on.")
        return cls(int(number), int(of))


@dataclass(frozen=True)
class Parts:
    """The vectors of one space, memory-mapped; all are given L2-normalised."""

    files: list[Path]
    rows: int

    @property
    def name(self) -> str:
        """The space."""
        return self.files[0].stem.partition("-")[0]

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._map(0).shape[1])

    def blocks(self, parts: range | None = None) -> Iterator[Vectors]:
        """The rows of some parts, or of all, in order, a part at a time."""
        every = range(len(self.files))
        for part in every if parts is None else every[parts.start : parts.stop]:
            yield normalise(self._map(part))

    def take(self, rows: Int64[np.ndarray, " wanted"]) -> Vectors:
        """The named rows, in the given order."""
        taken = np.empty((len(rows), self.dim), dtype=np.float32)
        parts = rows // ROWS_A_PART
        for part in np.unique(parts).tolist():
            here = parts == part
            taken[here] = self._map(part)[rows[here] % ROWS_A_PART]
        return normalise(taken)

    def draw(self, most: int, seed: int) -> Int64[np.ndarray, " drawn"]:
        """Numbers of different rows, in ascending order."""
        drawn = np.random.default_rng(seed).choice(self.rows, min(most, self.rows), replace=False)
        return np.sort(drawn).astype(np.int64)

    def beside(self, name: str) -> Path:
        """Where an index of these rows is kept."""
        return self.files[0].with_name(f"{self.name}-{name}.faiss")

    def missing(self) -> list[int]:
        """The parts that do not exist, or are damaged."""
        return [part for part, path in enumerate(self.files) if not is_whole(path)]

    def _map(self, part: int) -> Vectors:
        vectors: Vectors = np.load(self.files[part], mmap_mode="r")
        return vectors


def embed_items(
    kept: Path,
    student: Student,
    model_hash: str,
    items: Items,
    features: Features,
    batch_size: int,
    machine: Partition | None = None,
) -> dict[Space, Parts]:
    """Embed all items whose vectors do not exist yet; gives the spaces that have vectors.

    Args:
        kept: where parts are kept.
        student: on the device that embeds.
        model_hash: its hash.
        items: what to embed.
        features: of the images.
        batch_size: texts a forward pass.
        machine: the one whose parts are embedded; None: all parts are.

    Raises:
        InputError: there is nothing to embed.
        ModelError: the student gave a value that is not finite.
        ResourceError: the disk is full, or the place cannot be written.
    """
    texts = items.texts["text"].tolist()
    folder = kept / _key(model_hash, items, features)

    def embed_texts(rows: slice) -> Vectors:
        return student.encoder.encode(texts[rows], batch_size=batch_size)

    def ground_texts(rows: slice) -> Vectors:
        return student.ground_sentences(np.load(spaces["texts"].files[rows.start // ROWS_A_PART]))

    def ground_images(rows: slice) -> Vectors:
        return student.ground_images(np.asarray(features.images[items.features[rows]]))

    spaces: dict[Space, Parts] = {"texts": _fill(folder, "texts", len(texts), embed_texts, machine)}
    if student.sees_images:
        spaces["grounded"] = _fill(folder, "grounded", len(texts), ground_texts, machine)
        spaces["images"] = _fill(folder, "images", len(items.images), ground_images, machine)
    found = {space: parts for space, parts in spaces.items() if parts.rows}
    if not found:
        raise InputError("there is nothing to index.", "add captions to index.items.")
    return found


def _fill(
    folder: Path,
    space: Space,
    rows: int,
    embed: Callable[[slice], Vectors],
    machine: Partition | None,
) -> Parts:
    """Embed the missing parts that are this machine's."""
    starts = range(0, rows, ROWS_A_PART)
    parts = Parts([folder / f"{space}-{part:05d}.npy" for part in range(len(starts))], rows)
    missing = parts.missing()
    done = len(starts) - len(missing)
    with counter(f"embedding {space}", "part", len(starts), done=done) as bar:
        for part in missing:
            if machine is not None and part % machine.of != machine.number - 1:
                continue
            vectors = embed(slice(starts[part], min(starts[part] + ROWS_A_PART, rows)))
            with atomic_file(parts.files[part]) as temporary:
                save_array(temporary, vectors)
                add_checksum(temporary)
            bar.update()
    return parts


def _key(model_hash: str, items: Items, features: Features) -> str:
    """A name for the vectors of one student, its texts and its images."""
    digest = hashlib.sha256(f"{SCHEMA} {ROWS_A_PART} {model_hash} {features.digest}".encode())
    digest.update(items.features.tobytes())
    digest.update(hash_strings(items.texts["text"]).encode())
    return digest.hexdigest()[:32]
