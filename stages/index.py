"""Make texts and images searchable."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.core.device import choose_device
from pipeline.core.errors import InputError
from pipeline.core.files import write_csv, write_json
from pipeline.core.progress import log
from pipeline.download.records import read_pairs, read_sentences
from pipeline.features.store import read_features
from pipeline.index.build import build_index
from pipeline.index.documents import find_items
from pipeline.index.embed import Partition, embed_items
from pipeline.index.milvus.collection import DEFAULT_PREFIX, Address, MilvusKind
from pipeline.index.milvus.load import load_items, prepare
from pipeline.index.shards import make_shards
from pipeline.params.places import expanded
from pipeline.student.directory import hash_student
from pipeline.student.encoder import Student
from stages import paths
from stages._cli import note_times, read_params, run_stage


def main(
    pairs: Path = paths.PAIRS,
    text: Path = paths.TEXT,
    features: Path = paths.FEATURES,
    model: Annotated[Path | None, typer.Option(help="Default: the first seed's student.")] = None,
    out: Path = paths.INDEX,
    metrics: Path = paths.REPORTS / "index.json",
    vectors: Annotated[
        Path, typer.Option(envvar=paths.VECTORS_VARIABLE, help="Where vectors are kept.")
    ] = paths.VECTORS,
    share: Annotated[
        str | None, typer.Option(help="Do only one machine's share, such as 3/16.")
    ] = None,
    to: Annotated[
        Literal["files", "milvus"], typer.Option(help="Where rows and vectors are written.")
    ] = "files",
    uri: Annotated[str | None, typer.Option(help="Of Milvus: http://host:port or x.db.")] = None,
    token_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds Milvus' token.")
    ] = None,
    collection_prefix: Annotated[
        str, typer.Option(help="Prefix of the names of Milvus' collections.")
    ] = DEFAULT_PREFIX,
    milvus_index: Annotated[
        MilvusKind, typer.Option(help="How Milvus finds neighbours; flat is exact.")
    ] = "flat",
) -> None:
    """Make texts and images searchable.

    Vectors are kept, so that a run that was stopped or killed resumes, and another kind of index
    embeds nothing again.
    """
    if (to == "milvus") != (uri is not None):
        raise InputError(
            "--to milvus and --uri go together.", "use both, such as --uri data/index.milvus.db."
        )
    address = None if uri is None else Address(expanded(uri), token_env, collection_prefix)
    params = read_params()
    model = model or paths.first_model(params)
    machine = None if share is None else Partition.read(share)
    corpus = read_pairs(pairs)
    fingerprint = corpus.fingerprint()
    if address is not None and machine is None:
        manifest = prepare(address, out, model, fingerprint, vectors)
    cached = read_features(features, params.teacher, fingerprint)
    sentences = read_sentences(text) if "sentences" in params.index.items else []
    items = find_items(params.index, corpus, cached, sentences)
    student = Student.load(model, choose_device())
    student.require_teacher(cached.teacher)
    spaces = embed_items(
        vectors, student, hash_student(model), items, cached, params.index.batch_size, machine
    )
    if machine is not None:
        made = address is None and make_shards(spaces, params.index, machine)
        log.info("share %s is %s", share, "embedded and indexed" if made else "embedded")
    elif address is not None:
        load_items(address, manifest, items, spaces, milvus_index)
    else:
        built = build_index(out, model, fingerprint, items, spaces, params.index, vectors)
        write_csv(metrics.with_suffix(".csv"), built.curve)
        write_json(metrics, built.metrics)
        note_times(metrics, spaces=built.times)


app = run_stage(main)

if __name__ == "__main__":
    app()
