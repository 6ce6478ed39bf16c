"""Make captions and images searchable."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.download.records import read_pairs
from pipeline.encoder import load_student
from pipeline.features.store import read_features
from pipeline.index import build_index
from pipeline.runtime import choose_device, write_json
from stages import paths
from stages._cli import read_params, run_stage


def main(
    pairs: Path = paths.PAIRS,
    features: Path = paths.FEATURES,
    model: Annotated[Path | None, typer.Option(help="Default: the first seed's student.")] = None,
    out: Path = paths.INDEX,
    metrics: Path = paths.REPORTS / "index.json",
) -> None:
    """Make captions and images searchable."""
    params = read_params()
    model = model or paths.first_model(params)
    corpus = read_pairs(pairs)
    cached = read_features(features, params.teacher, corpus.fingerprint())
    student = load_student(model, choose_device())
    write_json(metrics, build_index(out, student, model, corpus, cached, params.index))


app = run_stage(main)

if __name__ == "__main__":
    app()
