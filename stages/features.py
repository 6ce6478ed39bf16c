"""Encode all images and captions with the frozen teacher, once."""

from pathlib import Path

from pipeline.download.records import read_pairs
from pipeline.features.extract import extract_features
from pipeline.features.store import write_features
from pipeline.features.teacher import Teacher
from pipeline.runtime import atomic_file, choose_device, write_json
from stages import paths
from stages._cli import read_params, run_stage


def main(
    pairs: Path = paths.PAIRS,
    out: Path = paths.FEATURES,
    metrics: Path = paths.REPORTS / "features.json",
    rejected: Path = paths.REPORTS / "rejected.csv",
) -> None:
    """Encode all images and captions with the frozen teacher, once."""
    params = read_params()
    corpus = read_pairs(pairs)
    teacher = Teacher(params.teacher, choose_device())
    extraction = extract_features(corpus, teacher, params.features)
    write_features(out, extraction.features, teacher.identity, corpus.fingerprint())
    with atomic_file(rejected) as temporary:
        extraction.rejected.to_csv(temporary, index=False)
    write_json(metrics, extraction.metrics)


app = run_stage(main)

if __name__ == "__main__":
    app()
