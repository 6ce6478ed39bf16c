"""Histograms and the filter's effect, recomputed pair by pair."""

import itertools
import logging

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.params.loss import FilterParams, LossParams
from pipeline.train.diagnostics import (
    FilterEffect,
    Sample,
    angles_and_margins,
    draw_sample,
    filter_effects,
    masked_pairs,
    similarity_histograms,
    warn_of_useless_filter,
)
from pipeline.train.loop import TrainingRun
from tests.train.test_batches import make_pairs
from tests.train.test_loop import data as data  # noqa: PLC0414  # the fixture
from tests.train.test_loop import run_params


def make_filter(**settings: object) -> FilterParams:
    similarity = {"image": "cross-modal", "caption": "caption"}
    base = {"kind": "cosine", "similarity": similarity, "drop": "above", "threshold": 0.9}
    return FilterParams(**base | settings)


def filter_effect(sample: Sample, noise: FilterParams) -> FilterEffect:
    """On the caption loss, where captions are compared."""
    return filter_effects(sample, LossParams(filter=noise))["caption"]


@pytest.fixture(scope="module")
def pairs():
    return make_pairs([3] * 20, seed=3)


@pytest.fixture(scope="module")
def sample(pairs):
    return draw_sample(pairs, 0)


def caption_cosine(pairs, i: int, j: int) -> float:
    u, v = pairs.features.captions[[i, j]].astype(np.float64)
    return float(u @ v / np.sqrt((u @ u) * (v @ v)))


def test_histograms_are_shares_of_every_relation(sample):
    table = similarity_histograms(sample)
    sums = table.groupby(["similarity", "relation"])["share"].sum()
    assert list(sums.index) == [
        ("caption", "different images"), ("caption", "same image"),
        ("cross-modal", "different images"), ("cross-modal", "same image"),
        ("image", "different images"),
    ]  # fmt: skip
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    means = (
        (table["cosine"] * table["share"]).groupby([table["similarity"], table["relation"]]).sum()
    )
    assert means["caption", "same image"] > means["caption", "different images"] + 0.5


def test_a_histogram_counts_its_pairs(pairs, sample):
    table = similarity_histograms(sample)
    found = table[(table["similarity"] == "caption") & (table["relation"] == "same image")]
    cosines = [
        caption_cosine(pairs, i, j)
        for i, j in itertools.permutations(range(60), 2)
        if pairs.image_rows[i] == pairs.image_rows[j]
    ]
    above = found.loc[found["cosine"] > 0.9, "share"].sum()
    assert above == pytest.approx(np.mean(np.array(cosines) >= 0.9), abs=1e-6)


@pytest.mark.parametrize("drop", ["above", "below"])
def test_the_filters_effect_is_counted_pair_by_pair(pairs, sample, drop):
    effect = filter_effect(sample, make_filter(threshold=0.7, drop=drop))
    masked = {True: [], False: []}
    for i, j in itertools.permutations(range(60), 2):
        is_masked = (caption_cosine(pairs, i, j) > 0.7) == (drop == "above")
        masked[bool(pairs.image_rows[i] == pairs.image_rows[j])].append(is_masked)
    assert effect.recall == pytest.approx(np.mean(masked[True]))
    assert effect.share == pytest.approx(np.mean(masked[False]))
    hits = sum(masked[True])  # the sample is the whole split, so its own precision is the split's
    assert effect.precision == pytest.approx(hits / (hits + sum(masked[False])))
    names = {"filter_caption_share", "filter_caption_recall", "filter_caption_precision"}
    assert set(effect.metrics("caption")) == names


@pytest.mark.parametrize("kind", ["cosine", "dot"])
@pytest.mark.parametrize("drop", ["above", "below"])
def test_the_suggested_threshold_masks_five_percent(sample, kind, drop):
    effect = filter_effect(sample, make_filter(kind=kind, drop=drop, threshold=0.5))
    suggested = make_filter(kind=kind, drop=drop, threshold=effect.suggestion)
    assert filter_effect(sample, suggested).share == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"threshold": 1.0}, True),
        ({"threshold": -1.0}, True),
        ({"threshold": 0.7}, False),
        ({"kind": "percentile", "threshold": 95.0}, False),
        ({"kind": "none"}, False),
    ],
)
def test_a_useless_filter_warns_once(sample, settings, warns, caplog):
    caplog.set_level(logging.WARNING, "kdmcse")
    noise = make_filter(**settings)
    loss = LossParams(terms=["caption"], filter=noise)
    warn_of_useless_filter(filter_effects(sample, loss), noise)
    assert len(caplog.records) == warns
    if warns:
        assert "of the caption loss; loss.filter.threshold" in caplog.text
        assert "would mask 5 %" in caplog.text


def test_the_table_of_masked_pairs_can_be_read(pairs, sample):
    noise = make_filter(threshold=0.7)
    table = masked_pairs(sample, {"caption": filter_effect(sample, noise)}, noise, {7: "seven.jpg"})
    assert 10 < len(table) <= 100
    assert table["score"].is_monotonic_decreasing
    assert set(table["loss"]) == {"caption"}
    for row in table.itertuples():
        first, second = (int(text.split()[1]) for text in (row.caption_1, row.caption_2))
        assert row.score > 0.7
        assert row.score == pytest.approx(caption_cosine(pairs, first, second), abs=1e-3)
        images = [int(pairs.image_rows[caption]) for caption in (first, second)]
        assert row.same_image == (images[0] == images[1])
        names = ["seven.jpg" if image == 7 else str(image) for image in images]
        assert [row.image_1, row.image_2] == names
    assert masked_pairs(sample, {}, make_filter(kind="none"), {}).empty


@pytest.mark.slow
def test_angles_before_are_those_of_the_start_and_training_moves_them(data):
    params = run_params(
        train={"steps": 30, "evaluate_every": 30, "pair_every": 1}, loss={"grounding_weight": 1.0}
    )
    run = TrainingRun(data, params, 0)
    states, look = [], {"max_length": params.student.max_length, "seed": 0}
    for when in ("before", "after"):
        state = torch.get_rng_state()
        states.append(angles_and_margins(run.model, data.pairs, **look, when=when))
        assert torch.equal(state, torch.get_rng_state())
        again, _ = angles_and_margins(run.model, data.pairs, **look, when=when)
        pd.testing.assert_frame_equal(states[-1][0], again)
        if when == "before":
            run.train(lambda _: {"sts_dev": 0.0})
    angles, margins = (pd.concat(tables) for tables in zip(*states, strict=True))
    groups = angles.groupby(["term", "relation", "when"])["share"].sum()
    assert len(groups) == 3 * 2 * 2
    np.testing.assert_allclose(groups, 1, atol=1e-5)
    weighted = angles.assign(sum=angles["angle"] * angles["share"])
    means = weighted.groupby(["term", "relation", "when"])["sum"].sum()
    for term in ("image", "caption"):
        gap = {when: means[term, "negative", when] - means[term, "positive", when]
               for when in ("before", "after")}  # fmt: skip
        assert gap["before"] == pytest.approx(0, abs=0.1)
        assert gap["after"] > gap["before"] + 0.1
    text = margins[margins["term"] == "text"]
    assert (text["margin"] < 0.01).all()
    grounded = margins[(margins["term"] == "image") & (margins["when"] == "after")]
    assert float((grounded["margin"] * grounded["share"]).sum()) == pytest.approx(0.15, abs=0.05)
