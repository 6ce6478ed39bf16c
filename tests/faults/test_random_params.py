"""Any params.yaml that can run does: the whole pipeline, tiny, ends well.

Values that the schema allows and these few data do not are in a test of their own: they end in one
line that says why.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import Result

from pipeline.index.faiss_index import LEAST_ROWS
from pipeline.index.format import TARGET_OF
from pipeline.params.schema import Params
from tests.conftest import (
    TINY,
    assert_clear_error,
    invoke,
    merge,
    read_default_params,
    write_params,
)
from tests.faults.ledger import record, times
from tests.params.test_json_schema import LEAVES

RUNS = times(2, 25)
FIXED = {
    *(key for key in LEAVES if key.startswith(("download.", "teacher.", "features.import."))),
    "student.encoder",
    "features.engine",  # a cluster takes half a minute to start
    "train.compile",  # takes a minute
}
"""Keys that name what a run reads, or that cost more than they can show here."""

WIDTH = 128
"""Of the demo student."""
MOST_IN_A_BATCH = 100
"""The train split has more images than this."""
BYTES_OF_VECTORS = 1 << 22
"""More than any index of the tiny world takes."""
TEXTS = "texts.txt"
TINY_VALUES: dict[str, st.SearchStrategy] = {
    "features.batch_size": st.integers(1, 128),
    "features.shard_rows": st.integers(16, 700),
    "features.workers": st.integers(0, 4),
    "student.max_length": st.integers(4, 64),
    "student.grounding_dim": st.integers(2, 300),
    "student.matryoshka": st.lists(st.integers(2, WIDTH - 1), max_size=2, unique=True).map(
        lambda dimensions: sorted(dimensions, reverse=True)
    ),
    "loss.temperature": st.floats(0.01, 10),
    "loss.distillation.temperature": st.floats(0.01, 10),
    "loss.distillation.teacher_temperature": st.floats(0.01, 10),
    "loss.distillation.target": st.sampled_from(["caption", "image", "cross-modal", "mean"]),
    "loss.grounding_weight": st.one_of(st.floats(0, 1), st.floats(0, 1000)),
    "train.seeds": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=2, unique=True),
    "train.steps": st.integers(1, 6),
    "train.batch_size": st.one_of(st.integers(2, 32), st.integers(2, MOST_IN_A_BATCH)),
    "train.gradient_accumulation_steps": st.integers(1, 3),
    "train.length_buckets": st.integers(1, 40),
    "train.mini_batch_size": st.one_of(st.none(), st.integers(1, 40)),
    "train.pair_every": st.one_of(st.just("auto"), st.integers(1, 8)),
    "train.evaluate_every": st.integers(1, 9),
    "train.report_to": st.sampled_from([[], ["tensorboard"]]),
    "train.learning_rate": st.floats(1e-6, 1e-2),
    "train.adam_epsilon": st.floats(1e-12, 1),
    "train.head_learning_rate": st.one_of(st.none(), st.floats(1e-6, 1e-1)),
    "train.pairs.hard_negatives": st.one_of(st.just(0), st.integers(0, 40)),
    "train.pairs.pool": st.integers(2, 16),
    "evaluate.resamples": st.integers(100, 200),
    "index.texts": st.one_of(st.none(), st.just(TEXTS)),
    "index.exact_until": st.integers(0, 1000),
    "index.max_bytes": st.one_of(st.none(), st.integers(BYTES_OF_VECTORS, 10**8)),
}
"""What fits the few data and keeps a run short, by dotted key; all other keys take any value of the
schema."""


def anything(field: dict) -> st.SearchStrategy:
    """Every value that the schema allows at a key; lists hold no value twice."""
    if "anyOf" in field:
        kinds = [kind for kind in field["anyOf"] if "pattern" not in kind]
        return st.one_of(*map(anything, kinds))
    if "enum" in field:
        return st.sampled_from(field["enum"])
    if field["type"] == "array":
        size = field.get("minItems", 0)
        return st.lists(anything(field["items"]), min_size=size, max_size=4, unique=True)
    return _plain(field)


def _plain(field: dict) -> st.SearchStrategy:
    low, high = field.get("minimum"), field.get("maximum")
    if field["type"] == "number":
        above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
        return st.floats(
            above if low is None else low,
            below if high is None else high,
            exclude_min=low is None,
            exclude_max=high is None,
        )
    if field["type"] == "integer":
        return st.integers(low, field["exclusiveMaximum"] - 1 if high is None else high)
    return {"boolean": st.booleans(), "null": st.none(), "string": st.just(field.get("const"))}[
        field["type"]
    ]


LEAST_SHARE = 0.8
"""Of runs that must end well, so that the rest cannot hide what is wrong."""

UNFIT: dict[str, tuple[dict, str]] = {
    "more in a batch than there are": (
        {"train": {"batch_size": 1000}},
        "train.batch_size is 1000, but there are only",
    ),
    "dimensions that the student lacks": (
        {"student": {"matryoshka": [WIDTH]}},
        f"student.matryoshka names {WIDTH} dimensions",
    ),
    "a loss that overflows": ({"loss": {"temperature": 1e-300}}, "the loss is "),
    "no room for vectors": ({"index": {"max_bytes": 1}}, "within index.max_bytes 1"),
    "images for a student of text": (
        {"train": {"objective": "simcse"}, "index": {"items": ["images"]}},
        "nothing to index",
    ),
    "retrieval by a student of text": (
        {"train": {"objective": "simcse"}, "evaluate": {"tasks": ["retrieval"]}},
        "no grounding heads",
    ),
}
"""Params that are valid, and what the line says of them."""

THRESHOLDS = {
    "none": st.floats(-1e6, 1e6),
    "cosine": st.floats(-1, 1),
    "dot": st.floats(-1e6, 1e6),
    "percentile": st.floats(0, 100),
}


@st.composite
def params_that_run(draw: st.DrawFn) -> dict:
    """Changes of the tiny run's params that leave them valid, and that its data allow."""
    changes: dict = {}
    for key in sorted(set(LEAVES) - FIXED):
        set_value(changes, key, draw(TINY_VALUES.get(key, anything(LEAVES[key])), label=key))
    noise = changes["loss"]["filter"]
    noise["threshold"] = draw(THRESHOLDS[noise["kind"]], label="threshold")
    index = changes["index"]
    if index["kind"] not in {"auto", "flat"}:  # which alone find all of the nearest rows
        index["target_recall"] = min(index["target_recall"], 0.9)
    if changes["train"]["objective"] == "simcse":  # knows no images
        changes["loss"]["distillation"]["cross_weight"] = 0.0
        changes["loss"]["consistency"]["kind"] = "views"
        add(index["items"], "captions")
        add(changes["evaluate"]["tasks"], "sts")
    index["texts"] = TEXTS if "texts" in index["items"] else None
    return changes


def set_value(params: dict, key: str, value: object) -> None:
    """Set a dotted key."""
    *blocks, name = key.split(".")
    for block in blocks:
        params = params.setdefault(block, {})
    params[name] = value


def add(values: list, value: str) -> None:
    if value not in values:
        values.append(value)


def finite_numbers(content: Any) -> Iterator[float]:
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from finite_numbers(value)
    elif isinstance(content, int | float):
        assert math.isfinite(content)
        yield content


def check_training(path: Path, params: dict) -> None:
    metrics = json.loads(path.read_text())
    list(finite_numbers(metrics))
    assert metrics["steps"] == params["train"]["steps"]
    assert -100 <= metrics["dev_best"] <= 100
    assert 1 <= metrics["best_step"] <= metrics["steps"]
    assert 0 <= metrics["masked_share"] <= 1
    assert 0 <= metrics["applied_margin"] <= math.pi


def check_scores(path: Path) -> None:
    report = json.loads(path.read_text())
    list(finite_numbers(report))
    for system in report["systems"]:
        for score in system["scores"]:
            if score["measure"] != "median_rank":
                assert -100 <= score["value"] <= 100
            if score["low"] is not None:
                assert score["low"] <= score["high"]


def check_index(path: Path, params: dict) -> None:
    metrics = json.loads(path.read_text())
    list(finite_numbers(metrics))
    for name, space in metrics["spaces"].items():
        assert 0 <= space["recall"] <= 1
        rows = metrics[TARGET_OF[name]]["rows"]
        wanted = params["index"]["kind"] if rows >= LEAST_ROWS else "flat"
        assert wanted in {"auto", space["kind"]}


def run_all(params: dict) -> Iterator[Result]:
    """Run the stages one by one and look at what each wrote; the reader ends at the first error."""
    yield invoke("features")
    for seed in params["train"]["seeds"]:
        yield invoke("train", "--seed", str(seed))
        check_training(Path(f"reports/train/{seed}/metrics.json"), params)
    yield invoke("baselines")
    check_scores(Path("reports/baselines.json"))
    for seed in params["train"]["seeds"]:
        yield invoke("evaluate", "--model", f"data/models/{seed}")
        check_scores(Path(f"reports/evaluate/{seed}.json"))
    yield invoke("summary")
    list(finite_numbers(json.loads(Path("reports/summary.json").read_text())))
    yield invoke("index")
    check_index(Path("reports/index.json"), params)
    if set(params["index"]["items"]) - {"images"}:
        yield invoke("search", "a small red circle", "--json")


def run_with(folder: Path, changes: dict) -> Result | None:
    """Run all stages anew; returns the result of the one that failed, which said why."""
    params = merge(merge(read_default_params(), TINY), changes)
    Params.model_validate(params)
    write_params(folder, TINY, changes)
    for made in ("data/models", "data/index", "reports"):
        shutil.rmtree(folder / made, ignore_errors=True)
    for result in run_all(params):
        if result.exit_code != 0:
            assert_clear_error(result)
            assert "this is a bug" not in result.stderr, result.stderr
            assert "was stopped by" not in result.stderr, result.stderr
            return result
    return None


@pytest.fixture
def scratch(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny run's corpora and features."""
    for name in ("pairs", "text", "evaluation", "store", "tokens"):
        shutil.copytree(tiny_run / "data" / name, tmp_path / "data" / name)
    (tmp_path / TEXTS).write_text("a red circle\nblue squares\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(120 * RUNS)
def test_params_that_fit_the_data_end_well(scratch):
    outcomes: list[str] = []

    @settings(
        max_examples=RUNS,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
        report_multiple_bugs=False,
    )
    @given(params_that_run())
    def run(changes: dict) -> None:
        failed = run_with(scratch, changes)
        if failed:
            sys.stderr.write(failed.stderr)
        outcomes.append("one clear line" if failed else "right result")

    run()
    for kind in sorted(set(outcomes)):
        record("random params that fit the data", "all stages", kind, outcomes.count(kind))
    assert outcomes.count("right result") >= int(LEAST_SHARE * RUNS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_params_that_do_not_fit_end_in_one_line(scratch):
    assert run_with(scratch, {}) is None
    for name, (changes, words) in UNFIT.items():
        failed = run_with(scratch, changes)
        assert failed is not None, name
        assert words in failed.stderr.splitlines()[-2]
        record("params that do not fit the data", "all stages", "one clear line")
