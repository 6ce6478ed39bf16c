"""What a step of each method costs beside simcse, by batch size and length, in one run.

    python -m benchmarks.method_cost grids/family.yaml simcse mcse kdmcse best --sizes 64x32 256x32

It reads params.yaml and the artefacts of `download` and `features` in the working folder. Every run
is a process of its own that shares the corpora; the order turns from round to round. Times are of a
mean step after a warm-up, without evaluations; memory is what a run takes beyond the corpora.
"""

import argparse
import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd

from benchmarks.run_grid import read_configurations, read_training_data
from benchmarks.watch import Watch
from pipeline.core.device import keep_freed_memory
from pipeline.params.schema import Params
from pipeline.train.batches import TrainingData
from pipeline.train.loop import TrainingRun
from pipeline.train.run_params import RunParams
from stages import paths

WARMUP = 4
"""Steps before the timed ones."""
BASE = "simcse"
"""The configuration whose time is 1."""


def main() -> None:
    """Time all configurations at each size, round by round, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path)
    parser.add_argument("names", nargs="+", help=f"configurations; {BASE} is added")
    parser.add_argument("--sizes", nargs="+", default=["64x32"], help="batch size x tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="timed steps a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = list(dict.fromkeys([BASE, *arguments.names]))
    data, rows = None, []
    for size in arguments.sizes:
        batch_size, length = map(int, size.split("x"))
        over = {
            "train.batch_size": batch_size,
            "student.max_length": length,
            "train.steps": WARMUP + arguments.steps,
            "train.evaluate_every": WARMUP + arguments.steps,
        }
        runs = read_configurations(arguments.grid, names, over)
        data = data or read_training_data(runs[BASE])
        for turn in range(arguments.rounds):
            for name in [*names[turn:], *names[:turn]]:
                found = in_a_fork(data, runs[name], arguments.steps)
                rows.append({"size": size, "round": turn, "name": name, **found})
    table = summarise(pd.DataFrame(rows))
    print(table.to_json(orient="records") if arguments.json else table.to_string(index=False))


def in_a_fork(data: TrainingData, params: Params, steps: int) -> dict[str, float]:
    """What a run costs in a process of its own, which has the corpora from this one."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(data, params, steps, theirs))
    process.start()
    theirs.close()
    found: dict[str, float] = ours.recv()
    process.join()
    return found


def _measure(data: TrainingData, params: Params, steps: int, answer: Connection) -> None:
    keep_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch = Watch(WARMUP, steps)
    run = TrainingRun(data, RunParams(params.student, params.loss, params.train), seed=0)
    run.train(lambda _encoder: {"sts_dev": 0.0}, tokens=paths.TOKENS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.send({"ms": 1e3 * watch.finish()["steps_s"] / steps, "gib": (peak - before) / (1 << 20)})


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each size and configuration: ms, the ratio to the base within a round, GiB at most."""
    base = rows[rows["name"] == BASE].set_index(["size", "round"])["ms"]
    ratio = rows["ms"].to_numpy() / base.loc[[*zip(rows["size"], rows["round"], strict=True)]]
    groups = rows.assign(over=ratio.to_numpy()).groupby(["size", "name"], sort=False)
    return groups.agg(
        ms=("ms", "median"),
        over_simcse=("over", "median"),
        lowest=("over", "min"),
        highest=("over", "max"),
        gib=("gib", "max"),
    ).reset_index()


if __name__ == "__main__":
    main()
