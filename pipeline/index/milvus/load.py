"""Loading an index into Milvus: all of it, or nothing that a search would see."""

import contextlib
import json
import math
import re
import secrets
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.core.errors import PipelineError, StaleArtifactError
from pipeline.core.files import atomic_folder
from pipeline.core.progress import counter, log
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
"""Of texts and vectors in a message, about; a server takes messages of 64 MiB at most."""
_SEGMENT_BYTES = 1 << 30
"""Of vectors that Milvus puts into one segment, which has its own index."""


def prepare(address: Address, folder: Path, model: Path, corpus: str, kept: Path) -> dict[str, Any]:
    """Find out, before the long work, whether an index could be loaded at its end.

    The folder is the index that embeds queries; it is made, without rows, if it does not exist. Its
    manifest is returned.

    Raises:
        StaleArtifactError: the folder is of another student or corpus.
        PipelineError: as `connect`, or the folder cannot be written.
    """
    if folder.exists() and read_manifest(folder, model).get("corpus") != corpus:
        raise StaleArtifactError(
            f"{folder} was built from another corpus.", "run `dvc repro index`."
        )
    with connect(address, create=True) as client:
        _drop_unused(client, address)
    if not folder.exists():
        with atomic_folder(folder) as made:
            exported = export_queries(model, kept, made)
            write_manifest(made, model, corpus, {}, exported=exported)
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
    about = About(
        schema=SCHEMA,
        model=manifest["model"],
        corpus=manifest["corpus"],
        load=secrets.token_hex(8),
        rows={space: parts.rows for space, parts in spaces.items()},
        tuning={space: _index_of(kind, parts)[2] for space, parts in spaces.items()},
    )
    with connect(address, create=True) as client:
        _drop_unused(client, address)
        names = {space: about.collection(address.prefix, space) for space in spaces}
        try:
            for space, parts in spaces.items():
                rows: pd.DataFrame = getattr(items, TARGET_OF[space])
                _fill(client, names[space], about, rows, parts, kind)
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
        options = {"max_length": LONGEST} if one.type == "string" else {}
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
    index_type, params, _ = _index_of(kind, parts)
    index.add_index(
        VECTOR, index_type=index_type, index_name=VECTOR, metric_type="IP", params=params
    )
    client.create_index(name, index, timeout=None)
    client.load_collection(name, timeout=None)


def _drop_unused(client: "MilvusClient", address: Address) -> None:
    """Drop the collections of all loads that no search finds, those that were killed included.

    Raises:
        InputError: the prefix is the name of something else.
    """
    name = f"{re.escape(address.prefix)}_(?P<load>[0-9a-f]{{16}})_({'|'.join(TARGET_OF)})"
    used = None
    if client.has_collection(address.prefix):
        described = client.describe_collection(address.prefix)
        found = re.fullmatch(name, described["collection_name"])
        if found is None:
            raise not_an_index(address)
        used = found["load"]
    for other in client.list_collections():
        found = re.fullmatch(name, other)
        if found and found["load"] != used:
            client.drop_collection(other)


def _batches(rows: pd.DataFrame, parts: Parts) -> Iterator[list[dict[Hashable, Any]]]:
    """Rows with their vectors, as many at a time as fit one message.

    A text that is too long for Milvus is cut; its vector is of all that the student reads.
    """
    start = cut = 0
    for block in parts.blocks():
        numbers = range(start, start + len(block))
        texts = [text.encode() for text in rows["text"].iloc[start : numbers.stop]]
        cut += sum(len(text) > LONGEST for text in texts)
        kept = [text[:LONGEST].decode(errors="ignore") for text in texts]
        added: dict[str, Any] = {"text": kept, ROW: numbers, VECTOR: list(block)}
        table = rows.iloc[start : numbers.stop].assign(**added)
        sizes = np.cumsum([min(len(text), LONGEST) + block[0].nbytes for text in texts])
        full = [np.arange(len(block)) // _BATCH_ROWS, sizes // _BATCH_BYTES]
        for _, batch in table.groupby(full):
            yield batch.to_dict("records")
        start = numbers.stop
    if cut:
        log.warning("%s texts were cut to the %s bytes that Milvus keeps", f"{cut:,}", LONGEST)


def _index_of(kind: MilvusKind, parts: Parts) -> tuple[str, dict[str, int], dict[str, int]]:
    """Milvus' name of an index, what it is built with, and what a search is told.

    IVF has 4 sqrt(rows) clusters a segment, as `faiss_index.clusters_of`.
    """
    if kind == "hnsw":
        return "HNSW", {"M": 32, "efConstruction": 256}, {"ef": 128}
    if kind != "ivf-sq8":
        return kind.upper(), {}, {}
    rows = min(parts.rows, _SEGMENT_BYTES // (4 * parts.dim))
    clusters = max(1, min(int(4 * math.sqrt(rows)), rows // 39, 65_536))
    return "IVF_SQ8", {"nlist": clusters}, {"nprobe": max(min(16, clusters), clusters // 8)}
