"""What a step of each method costs beside simcse, by batch size and length, in one run.

    python benchmarks/method_cost.py --json
        {"64 x 32": {"simcse": {"ms": ..., "over_simcse": 1.0, "peak_gib": ...}, ...}, ...}

It trains as `train_speed.py` does, without evaluations: each method in a process of its own, once a
round, in turning order. `ms` is the median over the rounds of a mean step, `over_simcse` the median
of the ratio within a round. Every second step is paired, for simcse too, so that all read the same
sentences.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train_speed import SHARED, Job, run

SIBLINGS = {"loss.positives": "sibling"}
ROWS = {"loss.distillation.weight": 1.0}
METHODS: dict[str, dict[str, Any]] = {
    "simcse": {"train.objective": "simcse"},
    "simcse + siblings": {"train.objective": "simcse", **SIBLINGS},
    "simcse + siblings + rows": {"train.objective": "simcse", **SIBLINGS, **ROWS},
    "mcse": {"train.objective": "mcse"},
    "kdmcse": {},
    "kdmcse + siblings": SIBLINGS,
    "kdmcse + siblings + rows": {**SIBLINGS, **ROWS},
    "kdmcse, both views and siblings": {"loss.positives": "both"},
}


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model: Annotated[str, typer.Option(help="A transformers directory.")] = str(
        SHARED / "models/minilm-l3"
    ),
    mirror: Path = SHARED / "mirror",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps a round.")] = 20,
    sizes: Annotated[
        str, typer.Option(help="Batch size x tokens, with commas.")
    ] = "64x32,64x64,256x32",
) -> None:
    """Time all methods, and print a table for each size."""
    found = {}
    with tempfile.TemporaryDirectory() as tokens:
        for size in sizes.split(","):
            batch_size, length = map(int, size.split("x"))
            job = Job(model, str(mirror), batch_size, 4, steps, 1, 3e-5, tokens)
            changes = {"train.pair_every": 2, "student.max_length": length, **_DEFAULTS}
            found[size] = _time(replace(job, changes=changes), rounds)
            if not as_json:
                typer.echo(_as_table(size, found[size]))
    if as_json:
        typer.echo(json.dumps(found))


_DEFAULTS = {
    "train.objective": "kdmcse",
    "loss.positives": "dropout",
    "loss.distillation.weight": 0.0,
}
"""So that the table does not change with params.yaml."""


def _time(job: Job, rounds: int) -> dict[str, dict[str, float]]:
    accounts: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for turn in range(rounds):
        first = turn % len(METHODS)
        for name in [*METHODS][first:] + [*METHODS][:first]:
            of_method = replace(job, seed=turn, changes={**job.changes, **METHODS[name]})
            accounts[name].append(run("ours", of_method))
    times = {
        name: [1e3 * one["steps_s"] / job.steps for one in runs] for name, runs in accounts.items()
    }
    return {
        name: {
            "ms": statistics.median(times[name]),
            "over_simcse": statistics.median(
                own / base for own, base in zip(times[name], times["simcse"], strict=True)
            ),
            "peak_gib": max(one["peak_gib"] for one in runs),
        }
        for name, runs in accounts.items()
    }


def _as_table(size: str, found: dict[str, dict[str, float]]) -> str:
    rows = [f"| {size} | ms a step | x simcse | peak GiB |", "|---|--:|--:|--:|"]
    for name, one in found.items():
        rows.append(
            f"| {name} | {one['ms']:.0f} | {one['over_simcse']:.2f} | {one['peak_gib']:.2f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    typer.run(main)
