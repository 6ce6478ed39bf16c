"""Train and score the configurations of a grid in one process, without DVC.

    python -m benchmarks.run_grid GRID.yaml --out runs/NAME

It reads params.yaml and the artefacts of `download` and `features` in the working folder, and
writes one report a configuration and seed, `OUT/CONFIGURATION/SEED.json`, as `stages.evaluate`
does; those that are there are kept. `stages.table GRID.yaml --reports OUT` makes the table. The
corpora are read once, which saves about half a minute a run against `dvc exp run`.
"""

import argparse
import json
import operator
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.core.device import keep_freed_memory
from pipeline.core.files import write_json
from pipeline.download.records import read_pairs, read_sentences, read_sts
from pipeline.evaluate.report import System, describe, describe_encoder, write_report
from pipeline.evaluate.selection import DevScorer
from pipeline.evaluate.suite import RunPaths, Suite, evaluate, read_suite
from pipeline.features.store import read_features
from pipeline.features.teacher_rows import pairs_of_split
from pipeline.params.changes import apply_changes
from pipeline.params.schema import Params
from pipeline.results.grid import Grid, read_grid
from pipeline.student.encoder import SentenceEncoder
from pipeline.train.batches import TrainingData
from pipeline.train.loop import TrainingRun
from pipeline.train.run_params import RunParams
from stages import paths

UNTRAINED = "untrained"


def main() -> None:
    """Run what is missing, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="configurations; default: all")
    arguments = parser.parse_args()
    keep_freed_memory()
    grid = read_grid(arguments.grid)
    base = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text(encoding="utf-8"))
    names = arguments.only or list(grid.configurations)
    runs = {name: _params(base, grid, name) for name in names}
    _require_one_world(runs)
    world = _World(next(iter(runs.values())))
    for seed in sorted({seed for params in runs.values() for seed in params.train.seeds}):
        for name, params in runs.items():
            out = arguments.out / name / f"{seed}.json"
            if seed in params.train.seeds and not out.exists():
                world.run(name, params, seed, out)


def _params(base: Mapping[str, Any], grid: Grid, name: str) -> Params:
    return Params.model_validate(apply_changes(base, grid.changes(name)))


def _require_one_world(runs: Mapping[str, Params]) -> None:
    """One process reads one teacher, one encoder and one evaluation."""
    for what in ("teacher", "evaluate", "student.encoder", "train.batch_size"):
        values = {str(operator.attrgetter(what)(params)) for params in runs.values()}
        if len(values) > 1:
            raise SystemExit(f"{what} differs between configurations: run each with --only")


class _World:
    """Data and tasks, read once."""

    def __init__(self, params: Params) -> None:
        corpus = read_pairs(paths.PAIRS)
        features = read_features(paths.FEATURES, params.teacher, corpus.fingerprint())
        self._data = TrainingData(
            read_sentences(paths.TEXT), pairs_of_split(corpus, features, "train")
        )
        self._score_dev = DevScorer(read_sts(paths.EVALUATION), params.train.batch_size)
        places = RunPaths(paths.EVALUATION, paths.PAIRS, paths.TEXT, paths.FEATURES)
        self._suite = read_suite(places, params.teacher, params.evaluate)
        self._seconds: dict[str, float] = {}

    def run(self, name: str, params: Params, seed: int, out: Path) -> None:
        """Train and score one configuration with one seed."""
        started = time.perf_counter()
        run = TrainingRun(self._data, RunParams(params.student, params.loss, params.train), seed)
        training = run.train(self._score_dev)
        student, suite = training.student, self._suite
        heads = student if student.sees_images else None
        scores = evaluate(student.encoder, suite, heads, dimensions=student.matryoshka)
        about = _about(suite, student.encoder, seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_report(out, [System(name, about, scores)])
        write_json(out.with_suffix(".train"), training.metrics)
        sts = json.loads(out.read_text(encoding="utf-8")).get("sts", {})
        took = time.perf_counter() - started
        print(
            name,
            seed,
            sts.get("avg"),
            sts.get("avg_unseen"),
            training.metrics,
            f"{took:.0f} s",
            flush=True,
        )


def _about(suite: Suite, encoder: SentenceEncoder, seed: int) -> dict[str, Any]:
    return describe(suite, str(encoder.device), model="", seed=seed, **describe_encoder(encoder))


if __name__ == "__main__":
    main()
