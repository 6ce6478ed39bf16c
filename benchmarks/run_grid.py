"""Train and score the configurations of a grid in one process, without DVC.

    python -m benchmarks.run_grid GRID.yaml --out runs/NAME
    python -m benchmarks.run_grid GRID.yaml --out runs/NAME --dev           # dev scores alone
    python -m benchmarks.run_grid GRID.yaml --out runs/NAME --captions 1    # one caption an image
    python -m benchmarks.run_grid GRID.yaml --out runs/NAME --part 0/2      # half of the images
    python -m benchmarks.run_grid GRID.yaml --out runs/NAME --text-pairs caption_datasets.zip
                                        # Flickr30k's captions, which have no teacher here
    python -m benchmarks.run_grid GRID.yaml --out runs/NAME -S train.steps=360  # over the grid's

It reads params.yaml and the artefacts of `download` and `features` in the working folder, and
writes one report a configuration and seed, `OUT/CONFIGURATION/SEED.json`, as `stages.evaluate`
does; those that are there are kept. `stages.table GRID.yaml --reports OUT` makes the table. The
corpora are read once, which saves about half a minute a run against `dvc exp run`.
"""

import argparse
import json
import operator
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from pipeline.core.device import keep_freed_memory
from pipeline.core.files import write_json
from pipeline.download.karpathy import read_karpathy
from pipeline.download.records import Pairs, read_pairs, read_sentences, read_sts
from pipeline.evaluate.report import System, describe, describe_encoder, write_report
from pipeline.evaluate.selection import DevScorer
from pipeline.evaluate.suite import RunPaths, Suite, evaluate, read_suite
from pipeline.features.store import Features, read_features
from pipeline.features.teacher_rows import SplitPairs, pairs_of_split
from pipeline.params.changes import Changes, apply_changes
from pipeline.params.schema import Params
from pipeline.results.grid import read_grid
from pipeline.student.encoder import SentenceEncoder, Student
from pipeline.train.batches import TrainingData
from pipeline.train.loop import TrainingRun
from pipeline.train.run_params import RunParams
from stages import paths


def main() -> None:
    """Run what is missing, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="configurations; default: all")
    parser.add_argument("--dev", action="store_true", help="train and keep the dev scores alone")
    parser.add_argument("--captions", type=int, help="training captions an image; default: all")
    parser.add_argument("--part", help="K/N: every N-th training image from the K-th; default: all")
    parser.add_argument("--text-pairs", type=Path, help="caption_datasets.zip")
    parser.add_argument("-S", dest="settings", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    keep_freed_memory()
    settings = (setting.split("=", 1) for setting in arguments.settings)
    over = {key: YAML(typ="safe", pure=True).load(value) for key, value in settings}
    runs = read_configurations(arguments.grid, arguments.only, over)
    _require_one_world(runs)
    first = next(iter(runs.values()))
    if arguments.text_pairs:
        _require_no_teacher(runs)
        data = TrainingData(read_sentences(paths.TEXT), read_text_pairs(arguments.text_pairs))
    else:
        data = read_training_data(first, arguments.captions, arguments.part)
    world = _World(data, first)
    for seed in sorted({seed for params in runs.values() for seed in params.train.seeds}):
        for name, params in runs.items():
            out = arguments.out / name / f"{seed}.json"
            done = out.with_suffix(".train") if arguments.dev else out
            if seed in params.train.seeds and not done.exists():
                world.run(name, params, seed, out, scores=not arguments.dev)


def read_configurations(
    path: Path, names: Sequence[str] | None, over: Changes
) -> dict[str, Params]:
    """The params of a grid's configurations, of all where no names are given, with `over` last."""
    grid = read_grid(path)
    base = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text(encoding="utf-8"))
    return {
        name: Params.model_validate(apply_changes(base, {**grid.changes(name), **over}))
        for name in names or grid.configurations
    }


def read_training_data(
    params: Params, captions: int | None = None, part: str | None = None
) -> TrainingData:
    """The corpora of the working folder, of them some captions an image or a part of the images."""
    corpus = read_pairs(paths.PAIRS)
    features = read_features(paths.FEATURES, params.teacher, corpus.fingerprint())
    pairs = _choose(pairs_of_split(corpus, features, "train"), captions, part)
    return TrainingData(read_sentences(paths.TEXT), pairs)


def read_text_pairs(archive: Path) -> SplitPairs:
    """The captions of Flickr30k's training images, with empty features."""
    images, captions = read_karpathy(archive, "flickr30k", [])
    nothing = [np.zeros((len(rows), 1), np.float16) for rows in (images, captions)]
    ids = images["image_id"].to_numpy()
    rows = images["image_id"].reset_index().set_index("image_id")["index"]
    of_caption = rows.loc[captions["image_id"]].to_numpy()
    features = Features(nothing[0], ids, nothing[1], captions["caption_id"].to_numpy(), of_caption)
    return pairs_of_split(Pairs(Path(), images, captions), features, "train")


def _require_no_teacher(runs: Mapping[str, Params]) -> None:
    for name, params in runs.items():
        if params.train.objective != "simcse" or params.loss.distillation.weight:
            raise SystemExit(f"{name} needs a teacher, which --text-pairs has none of")


def _require_one_world(runs: Mapping[str, Params]) -> None:
    """One process reads one teacher, one encoder and one evaluation."""
    for what in ("teacher", "evaluate", "student.encoder", "train.batch_size"):
        values = {str(operator.attrgetter(what)(params)) for params in runs.values()}
        if len(values) > 1:
            raise SystemExit(f"{what} differs between configurations: run each with --only")


class _World:
    """Data and tasks, read once."""

    def __init__(self, data: TrainingData, params: Params) -> None:
        self._data = data
        self._score_dev = DevScorer(read_sts(paths.EVALUATION), params.train.batch_size)
        places = RunPaths(paths.EVALUATION, paths.PAIRS, paths.TEXT, paths.FEATURES)
        self._suite = read_suite(places, params.teacher, params.evaluate)

    def run(self, name: str, params: Params, seed: int, out: Path, *, scores: bool) -> None:
        """Train one configuration with one seed, and score it."""
        started = time.perf_counter()
        run = TrainingRun(self._data, RunParams(params.student, params.loss, params.train), seed)
        training = run.train(self._score_dev, tokens=paths.TOKENS)
        out.parent.mkdir(parents=True, exist_ok=True)
        if scores:
            self._score(name, training.student, seed, out)
        write_json(out.with_suffix(".train"), training.metrics)
        took = time.perf_counter() - started
        print(name, seed, training.metrics, f"{took:.0f} s", flush=True)

    def _score(self, name: str, student: Student, seed: int, out: Path) -> None:
        suite, heads = self._suite, student if student.sees_images else None
        scores = evaluate(student.encoder, suite, heads, dimensions=student.matryoshka)
        write_report(out, [System(name, _about(suite, student.encoder, seed), scores)])
        sts = json.loads(out.read_text(encoding="utf-8")).get("sts", {})
        print(name, seed, sts.get("avg"), sts.get("avg_unseen"), flush=True)


def _choose(pairs: SplitPairs, captions: int | None, part: str | None) -> SplitPairs:
    """The first captions of each image, and the images of a part."""
    rows = np.arange(len(pairs))
    if part is not None:
        first, step = map(int, part.split("/"))
        rows = rows[pairs.image_rows % step == first]
    if captions is not None:
        rank = pd.Series(pairs.image_rows[rows]).groupby(pairs.image_rows[rows]).cumcount()
        rows = rows[rank.to_numpy() < captions]
    return pairs.take(rows)


def _about(suite: Suite, encoder: SentenceEncoder, seed: int) -> dict[str, Any]:
    return describe(suite, str(encoder.device), model="", seed=seed, **describe_encoder(encoder))


if __name__ == "__main__":
    main()
