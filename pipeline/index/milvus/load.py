"""Loading an index into Milvus: all of it, or nothing that a search would see."""

import contextlib
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.core.errors import InputError, ResourceError, StaleArtifactError
from pipeline.core.files import atomic_folder
from pipeline.core.progress import counter, log
from pipeline.download.records import Pairs
from pipeline.index.build import describe
from pipeline.index.documents import Items
from pipeline.index.embed import Parts
from pipeline.index.layout import ROWS, SCHEMA, TARGET_OF, Space, read_manifest, write_manifest
from pipeline.index.milvus.collection import (
    PROPERTY,
    ROW,
    VECTOR,
    About,
    Address,
    MilvusKind,
    connect,
    reports_refusals,
    require_rows,
)
from pipeline.index.queries import export_queries

if TYPE_CHECKING:
    from pymilvus import CollectionSchema, MilvusClient

LONGEST = 65_535
"""Bytes of a text that Milvus keeps."""
_BATCH_ROWS = 2_000
_BATCH_BYTES = 16 << 20
"""A server takes messages of 64 MiB at most."""
_PATIENCE = 600.0
"""Seconds that a server may build without getting any further."""
_SEGMENT_BYTES = 1 << 30
"""Of vectors that Milvus puts into one segment, which has an index of its own."""
_LINKS = 32
_CANDIDATES = 128
_NAMES: dict[MilvusKind, str] = {
    "flat": "FLAT",
    "hnsw": "HNSW",
    "ivf-sq8": "IVF_SQ8",
    "autoindex": "AUTOINDEX",
}


def check_target(address: Address, folder: Path, model: Path, pairs: Pairs) -> None:
    """Find out before the long work whether an index could be loaded at its end.

    Args:
        address: where it is to go.
        folder: the index that queries are embedded with, which may be absent.
        model: the student.
        pairs: the corpus.

    Raises:
        StaleArtifactError: the folder is of another student or corpus.
        PipelineError: as `connect`.
    """
    if folder.exists():
        manifest = read_manifest(folder, model)
        if manifest.get("corpus") != pairs.fingerprint():
            raise StaleArtifactError(
                f"{folder} was built from another corpus.", "run `dvc repro index`."
            )
    with connect(address, create=True) as client, reports_refusals(address):
        used_load(client, address)


def ensure_queries(folder: Path, model: Path, pairs: Pairs, kept: Path) -> dict[str, Any]:
    """The manifest of the index that queries are embedded with.

    Args:
        folder: left as it is where it is there; made, without rows, where it is not.
        model: the student.
        pairs: the corpus.
        kept: where the exported student is kept.

    Raises:
        PipelineError: as `read_manifest`, or the folder cannot be written.
    """
    if not folder.exists():
        with atomic_folder(folder) as target:
            exported = export_queries(model, kept, target)
            write_manifest(target, describe(model, pairs, {}, exported=exported))
    return read_manifest(folder, model)


def load_items(
    address: Address,
    manifest: Mapping[str, Any],
    items: Items,
    spaces: Mapping[Space, Parts],
    kind: MilvusKind,
) -> About:
    """Load rows and vectors, and put them in the place of what was there.

    Args:
        address: where they go.
        manifest: of the index that queries are embedded with.
        items: what the rows are.
        spaces: their vectors.
        kind: how Milvus is to find neighbours.

    Raises:
        ResourceError: the server does not answer, its rows are not those that were sent, or a disk
            is full.
    """
    if not spaces:
        raise InputError("there is nothing to index.", "add captions to index.items.")
    about = About(
        schema=SCHEMA,
        model=manifest["model"],
        corpus=manifest["corpus"],
        load=secrets.token_hex(8),
        kind=kind,
        rows={space: parts.rows for space, parts in spaces.items()},
        tuning={space: _tuning(kind, parts) for space, parts in spaces.items()},
    )
    try:
        with connect(address, create=True) as client, reports_refusals(address):
            _Load(client, address, about).run(items, spaces)
    except BaseException:
        with contextlib.suppress(Exception):  # the next load does it if this one cannot
            _drop_leftovers(address)
        raise
    return about


def _drop_leftovers(address: Address) -> None:
    """Over a new connection: the work of the old one, at which milvus-lite still was, has ended."""
    with connect(address) as client:
        _drop_all_but(used_load(client, address), client, address)


@dataclass(frozen=True)
class _Load:
    """One load into one database."""

    client: "MilvusClient"
    address: Address
    about: About

    def run(self, items: Items, spaces: Mapping[Space, Parts]) -> None:
        _drop_all_but(used_load(self.client, self.address), self.client, self.address)
        tables = {"texts": items.texts, "images": items.images}
        for space, parts in spaces.items():
            self._fill(space, tables[TARGET_OF[space]], parts)
        self._switch()
        _drop_all_but(self.about.load, self.client, self.address)

    def _fill(self, space: Space, rows: pd.DataFrame, parts: Parts) -> None:
        """Make one collection, whole and ready to be searched."""
        name = self._name(space)
        self.client.create_collection(
            name,
            schema=_columns(self.client, parts.dim),
            properties={PROPERTY: self.about.write()},
            consistency_level="Bounded",
            timeout=self._seconds,
        )
        with counter(f"loading {space}", "row", parts.rows) as bar:
            for batch in _batches(rows, parts):
                self.client.insert(name, batch, timeout=self._seconds)
                bar.update(len(batch))
        self._build(name, parts)
        require_rows(self.client, self.address, name, parts.rows)

    def _build(self, name: str, parts: Parts) -> None:
        self._flush(name)
        wanted = self.client.prepare_index_params()
        wanted.add_index(
            VECTOR,
            index_type=_NAMES[self.about.kind],
            index_name=VECTOR,
            metric_type="IP",
            params=_structure(self.about.kind, parts),
        )
        self.client.create_index(name, wanted, timeout=self._seconds, sync=False)
        self._wait(f"{name} to be indexed", lambda: self._indexed(name))
        self.client.load_collection(name, timeout=self._seconds, _async=True)
        self._wait(f"{name} to be loaded", lambda: self._loaded(name))

    def _flush(self, name: str) -> None:
        self.client.flush(name, timeout=self._seconds and _PATIENCE)

    def _indexed(self, name: str) -> tuple[bool, Any]:
        state = self.client.describe_index(name, VECTOR, timeout=self._seconds) or {}
        if state.get("state") == "Failed":
            raise ResourceError(
                f"{self.address.uri} could not build the index.", "look into Milvus' log."
            )
        return state.get("state") == "Finished", state.get("indexed_rows")

    def _loaded(self, name: str) -> tuple[bool, Any]:
        state = self.client.get_load_state(name, timeout=self._seconds)
        return state["state"].name == "Loaded", state.get("progress")

    def _wait(self, what: str, ask: Callable[[], tuple[bool, Any]]) -> None:
        """Ask until it is done; give up when it gets no further."""
        last, since = None, time.monotonic()
        while True:
            done, progress = ask()
            if done:
                return
            if progress != last:
                log.info("waiting for %s: %s", what, progress)
                last, since = progress, time.monotonic()
            if time.monotonic() - since > _PATIENCE:
                raise ResourceError(
                    f"{self.address.uri}: waited {_PATIENCE:.0f} s for {what}.",
                    "look into Milvus' log, and run the same command again.",
                )
            time.sleep(1.0)

    def _switch(self) -> None:
        """Let searches find this load: one step for all its spaces."""
        first = self._name(next(iter(self.about.rows)))
        alias = self.address.prefix
        exists = self.client.has_collection(alias, timeout=self._seconds)
        change = self.client.alter_alias if exists else self.client.create_alias
        change(first, alias, timeout=self._seconds)

    def _name(self, space: Space) -> str:
        return self.about.collection(self.address.prefix, space)

    @property
    def _seconds(self) -> float | None:
        return self.address.seconds


def used_load(client: "MilvusClient", address: Address) -> str | None:
    """The load that searches find; None: there is none.

    Raises:
        InputError: the name is taken by something else.
    """
    if not client.has_collection(address.prefix, timeout=address.seconds):
        return None
    described = client.describe_collection(address.prefix, timeout=address.seconds)
    name = _loads_of(address.prefix).fullmatch(described["collection_name"])
    if name is None:
        raise InputError(
            f"{address.prefix} in {address.uri} is no index of this project.",
            "name another --collection-prefix.",
        )
    return name["load"]


def _drop_all_but(load: str | None, client: "MilvusClient", address: Address) -> None:
    """Drop what other loads left, those that were killed included."""
    for name in client.list_collections(timeout=address.seconds):
        own = _loads_of(address.prefix).fullmatch(name)
        if own and own["load"] != load:
            client.drop_collection(name, timeout=address.seconds)


def _loads_of(prefix: str) -> re.Pattern[str]:
    return re.compile(f"{re.escape(prefix)}_(?P<load>[0-9a-f]{{16}})_({'|'.join(TARGET_OF)})")


def _columns(client: "MilvusClient", dim: int) -> "CollectionSchema":
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field(ROW, DataType.INT64, is_primary=True)
    schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dim)
    for one in ROWS:
        if one.type == "string":
            schema.add_field(one.name, DataType.VARCHAR, max_length=LONGEST)
        else:
            schema.add_field(one.name, DataType.INT64)
    return schema


def _batches(rows: pd.DataFrame, parts: Parts) -> Iterator[list[dict[str, Any]]]:
    """Rows with their vectors, as many at a time as fit one message."""
    batch: list[dict[str, Any]] = []
    size = cut = 0
    for row in _rows(rows, parts):
        cut += _fit(row)
        more = row[VECTOR].nbytes + sum(len(row[name].encode()) for name in _STRINGS)
        if batch and (len(batch) == _BATCH_ROWS or size + more > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += more
    if batch:
        yield batch
    if cut:
        log.warning("%s texts were cut to the %s bytes that Milvus keeps", f"{cut:,}", LONGEST)


_STRINGS = [one.name for one in ROWS if one.type == "string"]


def _rows(rows: pd.DataFrame, parts: Parts) -> Iterator[dict[str, Any]]:
    start = 0
    for block in parts.blocks():
        records = rows.iloc[start : start + len(block)].to_dict("records")
        for number, (row, vector) in enumerate(zip(records, block, strict=True), start=start):
            yield {str(name): value for name, value in row.items()} | {ROW: number, VECTOR: vector}
        start += len(block)


def _fit(row: dict[str, Any]) -> bool:
    """Cut a text that is too long for Milvus; its vector is of all that the student reads."""
    content = row["text"].encode()
    if len(content) <= LONGEST:
        return False
    row["text"] = content[:LONGEST].decode(errors="ignore")
    return True


def _clusters(parts: Parts) -> int:
    """Of IVF: 4 sqrt(rows) of a segment, as `kinds.clusters_of`."""
    rows = min(parts.rows, _SEGMENT_BYTES // (4 * parts.dim))
    return max(1, min(int(4 * math.sqrt(rows)), rows // 39, 65_536))


def _structure(kind: MilvusKind, parts: Parts) -> dict[str, int]:
    """What an index is built with."""
    if kind == "hnsw":
        return {"M": _LINKS, "efConstruction": 2 * _CANDIDATES}
    return {"nlist": _clusters(parts)} if kind == "ivf-sq8" else {}


def _tuning(kind: MilvusKind, parts: Parts) -> dict[str, int]:
    """What a search is told."""
    if kind == "hnsw":
        return {"ef": _CANDIDATES}
    clusters = _clusters(parts)
    return {"nprobe": max(min(16, clusters), clusters // 8)} if kind == "ivf-sq8" else {}
