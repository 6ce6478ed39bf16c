"""Loading an index into Milvus: all of it, or nothing that a search would see."""

import contextlib
import json
import math
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.core.errors import InputError, PipelineError, StaleArtifactError
from pipeline.core.files import atomic_folder
from pipeline.core.progress import counter, log
from pipeline.download.records import Pairs
from pipeline.index.build import describe
from pipeline.index.documents import Items
from pipeline.index.embed import Parts
from pipeline.index.format import ROWS, SCHEMA, TARGET_OF, Space, read_manifest, write_manifest
from pipeline.index.milvus.collection import (
    PROPERTY,
    ROW,
    VECTOR,
    About,
    Address,
    MilvusKind,
    connect,
    not_an_index,
    require_rows,
)
from pipeline.index.queries import export_queries

if TYPE_CHECKING:
    from pymilvus import MilvusClient

LONGEST = 65_535
"""Bytes of a text that Milvus keeps."""
_BATCH_ROWS = 2_000
_BATCH_BYTES = 16 << 20
"""A server takes messages of 64 MiB at most."""
_SEGMENT_BYTES = 1 << 30
"""Of vectors that Milvus puts into one segment, which has its own index."""
_TYPES: dict[MilvusKind, str] = {
    "flat": "FLAT",
    "hnsw": "HNSW",
    "ivf-sq8": "IVF_SQ8",
    "autoindex": "AUTOINDEX",
}
_STRINGS = [one.name for one in ROWS if one.type == "string"]


def check_target(address: Address, folder: Path, model: Path, pairs: Pairs) -> None:
    """Find out, before the long work, whether an index could be loaded at its end.

    Raises:
        StaleArtifactError: the folder, which may be absent, is of another student or corpus.
        PipelineError: as `connect`.
    """
    if folder.exists() and read_manifest(folder, model).get("corpus") != pairs.fingerprint():
        raise StaleArtifactError(
            f"{folder} was built from another corpus.", "run `dvc repro index`."
        )
    with connect(address, create=True) as client:
        used_load(client, address)


def ensure_queries(folder: Path, model: Path, pairs: Pairs, kept: Path) -> dict[str, Any]:
    """The manifest of the index that queries are embedded with; made, without rows, if absent.

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
    """Load rows and vectors, and put them in the place of the former load.

    The alias moves in one step for all spaces. A load that fails or is killed is never found; what
    it left is dropped, at the latest by the next load.

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
        rows={space: parts.rows for space, parts in spaces.items()},
        tuning={space: _index_params(kind, parts)[1] for space, parts in spaces.items()},
    )
    tables = {"texts": items.texts, "images": items.images}
    with connect(address, create=True) as client:
        _drop_unused(client, address)
        names = {space: about.collection(address.prefix, space) for space in spaces}
        try:
            for space, parts in spaces.items():
                _fill(client, names[space], about, tables[TARGET_OF[space]], parts, kind)
                require_rows(client, address, names[space], parts.rows)
            is_taken = client.has_collection(address.prefix)
            switch = client.alter_alias if is_taken else client.create_alias
            switch(next(iter(names.values())), address.prefix)  # one step for all spaces
        finally:
            with contextlib.suppress(PipelineError):  # the next load tries it again
                _drop_unused(client, address)
    return about


def _fill(
    client: "MilvusClient",
    name: str,
    about: About,
    rows: pd.DataFrame,
    parts: Parts,
    kind: MilvusKind,
) -> None:
    """Make one collection, complete and ready to be searched."""
    from pymilvus import DataType, MilvusClient

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field(ROW, DataType.INT64, is_primary=True)
    schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=parts.dim)
    for one in ROWS:
        options = {"max_length": LONGEST} if one.name in _STRINGS else {}
        schema.add_field(one.name, DataType.VARCHAR if options else DataType.INT64, **options)
    properties = {PROPERTY: json.dumps(asdict(about))}
    client.create_collection(
        name, schema=schema, properties=properties, consistency_level="Bounded"
    )
    with counter(f"loading {name.rpartition('_')[2]}", "row", parts.rows) as bar:
        for batch in _batches(rows, parts):
            client.insert(name, batch)
            bar.update(len(batch))
    log.info("waiting for Milvus to index %s rows", f"{parts.rows:,}")
    client.flush(name, timeout=None)
    index = MilvusClient.prepare_index_params()
    structure = _index_params(kind, parts)[0]
    index.add_index(
        VECTOR, index_type=_TYPES[kind], index_name=VECTOR, metric_type="IP", params=structure
    )
    client.create_index(name, index, timeout=None)
    client.load_collection(name, timeout=None)


def used_load(client: "MilvusClient", address: Address) -> str | None:
    """The load that searches find; None: there is none.

    Raises:
        InputError: the name belongs to something else.
    """
    if not client.has_collection(address.prefix):
        return None
    described = client.describe_collection(address.prefix)
    name = _loads_of(address.prefix).fullmatch(described["collection_name"])
    if name is None:
        raise not_an_index(address)
    return name["load"]


def _drop_unused(client: "MilvusClient", address: Address) -> None:
    """Drop the collections of all other loads, those that were killed included."""
    used = used_load(client, address)
    for name in client.list_collections():
        own = _loads_of(address.prefix).fullmatch(name)
        if own and own["load"] != used:
            client.drop_collection(name)


def _loads_of(prefix: str) -> re.Pattern[str]:
    return re.compile(f"{re.escape(prefix)}_(?P<load>[0-9a-f]{{16}})_({'|'.join(TARGET_OF)})")


def _batches(rows: pd.DataFrame, parts: Parts) -> Iterator[list[dict[str, Any]]]:
    """Rows with their vectors, as many at a time as fit one message.

    A text that is too long for Milvus is cut; its vector is of all that the student reads.
    """
    batch: list[dict[str, Any]] = []
    size = cut = start = 0
    for block in parts.blocks():
        records = rows.iloc[start : start + len(block)].to_dict("records")
        for number, (record, vector) in enumerate(zip(records, block, strict=True), start=start):
            row = {str(name): value for name, value in record.items()}
            text = row["text"].encode()
            cut += len(text) > LONGEST
            row |= {"text": text[:LONGEST].decode(errors="ignore"), ROW: number, VECTOR: vector}
            more = vector.nbytes + sum(len(row[name].encode()) for name in _STRINGS)
            if batch and (len(batch) == _BATCH_ROWS or size + more > _BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(row)
            size += more
        start += len(block)
    yield batch
    if cut:
        log.warning("%s texts were cut to the %s bytes that Milvus keeps", f"{cut:,}", LONGEST)


def _index_params(kind: MilvusKind, parts: Parts) -> tuple[dict[str, int], dict[str, int]]:
    """What an index is built with, and what a search is told beside the number of rows.

    IVF has 4 sqrt(rows) clusters a segment, as `faiss_index.clusters_of`.
    """
    if kind == "hnsw":
        return {"M": 32, "efConstruction": 256}, {"ef": 128}
    if kind != "ivf-sq8":
        return {}, {}
    rows = min(parts.rows, _SEGMENT_BYTES // (4 * parts.dim))
    clusters = max(1, min(int(4 * math.sqrt(rows)), rows // 39, 65_536))
    return {"nlist": clusters}, {"nprobe": max(min(16, clusters), clusters // 8)}
