"""What noise filters would do to the training pairs in the working folder, without training.

    python -m benchmarks.filters

Prints a Markdown table: for each similarity and threshold the share of pairs of different images
that is masked, the share of pairs of captions of one image (known false negatives), and the share
of what is masked that are such pairs, at their rate in the whole training split.
"""

from pathlib import Path
from typing import get_args

from pipeline.download.records import read_pairs
from pipeline.features.store import read_features
from pipeline.features.teacher_rows import pairs_of_split
from pipeline.params.block import load_params
from pipeline.params.loss import FilterParams, LossParams, Similarity, TermSimilarity
from pipeline.params.schema import Params
from pipeline.train.diagnostics import draw_sample, filter_effects
from stages import paths

PERCENTILES = (80, 95, 99, 99.9)
COSINES = (0.5, 0.9)


def main() -> None:
    """Print the table for seed 0."""
    params = load_params(Path("params.yaml"), Params)
    corpus = read_pairs(paths.PAIRS)
    features = read_features(paths.FEATURES, params.teacher, corpus.fingerprint())
    sample = draw_sample(pairs_of_split(corpus, features, "train"), seed=0)
    print("| similarity | masks above | masked | recall | precision |\n|---|---|---|---|---|")
    settings = [("percentile", value) for value in PERCENTILES]
    settings += [("cosine", value) for value in COSINES]
    for similarity in get_args(Similarity):
        for kind, threshold in settings:
            both = TermSimilarity(image=similarity, caption=similarity)
            noise = FilterParams(kind=kind, similarity=both, drop="above", threshold=threshold)
            effect = filter_effects(sample, LossParams(filter=noise))["image"]
            numbers = (effect.share, effect.recall, effect.precision)
            cells = " | ".join(f"{100 * number:.3g} %" for number in numbers)
            print(f"| {similarity} | {kind} {threshold:g} | {cells} |")


if __name__ == "__main__":
    main()
