"""The teacher's similarities, what the noise filter removes, and how training moves angles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.core.progress import log
from pipeline.features.teacher_rows import SplitPairs, TeacherRows
from pipeline.params.loss import FilterParams, LossParams, Term
from pipeline.train.batches import Rows
from pipeline.train.gradients import split_tokens
from pipeline.train.losses import applied_margins, cosines
from pipeline.train.noise import (
    TeacherScores,
    filter_limit,
    passes,
    teacher_cosines,
    teacher_dots,
)
from pipeline.train.objective import Distillation

SAMPLE_IMAGES = 400
"""Images whose captions are all looked at."""
TABLE_ROWS = 100
"""Masked pairs that the table shows."""

_ENCODED_TOGETHER = 64
_BINS = 100
_MOST_MASKED = 0.5
_SUGGESTED_SHARE = 0.05

When = Literal["before", "after"]
Square = Float[Tensor, "captions captions"]
Pairwise = Bool[Tensor, "captions captions"]


@dataclass(frozen=True)
class Sample:
    """Captions of the training pairs, all those of some images."""

    pairs: SplitPairs
    rows: Rows
    """Of the captions, in `pairs`."""
    cosines: TeacherScores
    dots: TeacherScores
    same_image: Pairwise
    other: Pairwise
    """Pairs of different captions."""

    def scores(self, params: FilterParams, term: Term) -> Square:
        """What a filter compares with its threshold in a grounded loss."""
        scored = self.dots if params.kind == "dot" else self.cosines
        return scored.of_term(term, params.similarity)


@dataclass(frozen=True)
class FilterEffect:
    """What a noise filter does to the pairs of a sample."""

    masked: Pairwise
    """Pairs of different captions that it removes."""
    share: float
    """Share of the pairs of different images that it removes, 0 to 1."""
    recall: float
    """Share of the pairs of one image, known false negatives, that it removes, 0 to 1."""
    precision: float
    """Share of what it removes that are pairs of one image, 0 to 1, at their rate in the whole
    training split; pairs that are alike without sharing an image count against it."""
    suggestion: float
    """The threshold that would mask 5 %, on the scale of the filter's kind."""

    def metrics(self, term: Term) -> dict[str, float]:
        """The numbers, as rows of a report."""
        names = ("share", "recall", "precision")
        return {f"filter_{term}_{name}": round(getattr(self, name), 6) for name in names}


def draw_sample(pairs: SplitPairs, seed: int) -> Sample:
    """All captions of up to SAMPLE_IMAGES images, drawn at random."""
    images = np.unique(pairs.image_rows)
    rng = np.random.default_rng([seed, 2])
    drawn = rng.permutation(images)[:SAMPLE_IMAGES]
    rows = np.flatnonzero(np.isin(pairs.image_rows, drawn))
    features = TeacherRows(pairs, torch.device("cpu"))(rows)[:2]
    image = torch.from_numpy(pairs.image_rows[rows])
    return Sample(
        pairs,
        rows,
        teacher_cosines(*features),
        teacher_dots(*features),
        same_image=image[:, None] == image[None],
        other=~torch.eye(len(rows), dtype=torch.bool),
    )


def similarity_histograms(sample: Sample) -> pd.DataFrame:
    """The teacher's cosines between captions and images of one image and of different ones.

    Returns:
        similarity (cross-modal, image, caption), relation (same image, different images), cosine
        (the middle of a bin) and share (of the relation's pairs). An image with itself is left out.
    """
    tables = []
    for similarity, scores in sample.cosines.by_name().items():
        relations = {"different images": ~sample.same_image}
        if similarity != "image":
            own = sample.same_image & (sample.other | (similarity == "cross-modal"))
            relations["same image"] = own
        for relation, where in relations.items():
            table = _histogram(scores[where].clamp(-1, 1), low=-1.0, high=1.0, name="cosine")
            tables.append(table.assign(similarity=similarity, relation=relation))
    return _together(tables, ["similarity", "relation", "cosine", "share"])


def filter_effects(sample: Sample, params: LossParams) -> dict[Term, FilterEffect]:
    """What the filter would remove from the sample, by grounded loss; empty where it is off."""
    if params.filter.kind == "none":
        return {}
    return {term: _filter_effect(sample, params.filter, term) for term in params.terms}


def _filter_effect(sample: Sample, params: FilterParams, term: Term) -> FilterEffect:
    scores = sample.scores(params, term)
    negatives = scores[~sample.same_image]
    masked = ~passes(scores, filter_limit(negatives, params), params) & sample.other
    share = float(masked[~sample.same_image].float().mean())
    known = sample.same_image & sample.other
    recall = float(masked[known].float().mean()) if known.any() else 0.0
    percentile = 100 * (_SUGGESTED_SHARE if params.drop == "below" else 1 - _SUGGESTED_SHARE)
    suggestion = percentile
    if params.kind != "percentile":
        suggestion = float(np.percentile(negatives.numpy(), percentile))
    return FilterEffect(masked, share, recall, _precision(sample.pairs, share, recall), suggestion)


def warn_of_useless_filter(effects: Mapping[Term, FilterEffect], params: FilterParams) -> None:
    """Warn where a filter masks nothing, or more than half of the negatives (METHOD)."""
    for term, effect in effects.items():
        if not 0 < effect.share <= _MOST_MASKED:
            log.warning(
                "loss.filter masks %.1f %% of the negatives of the %s loss; loss.filter.threshold "
                "%.4g would mask 5 %% (kind %s, similarity %s, drop %s)",
                100 * effect.share,
                term,
                effect.suggestion,
                params.kind,
                getattr(params.similarity, term),
                params.drop,
            )


def masked_pairs(
    sample: Sample,
    effects: Mapping[Term, FilterEffect],
    params: FilterParams,
    names: Mapping[int, str],
) -> pd.DataFrame:
    """A table for people: pairs that the filter removes, the most similar first.

    Args:
        sample: where they are from.
        effects: of the filter.
        params: the filter.
        names: what images are called, by image_id.

    Returns:
        loss (image or caption), score (the teacher's, that decides), same_image, caption_1,
        caption_2, image_1, image_2: TABLE_ROWS pairs a loss, drawn at random; none where the filter
        is off.
    """
    columns = ["loss", "score", "same_image", "caption_1", "caption_2", "image_1", "image_2"]
    pairs, rows = sample.pairs, list[list[object]]()
    for term, effect in effects.items():
        scores = sample.scores(params, term)
        found = effect.masked.triu().nonzero().numpy()
        for first, second in np.random.default_rng(0).permutation(found)[:TABLE_ROWS].tolist():
            captions = [int(sample.rows[index]) for index in (first, second)]
            images = [int(pairs.features.image_ids[pairs.image_rows[row]]) for row in captions]
            score, same = float(scores[first, second]), bool(sample.same_image[first, second])
            texts = [pairs.captions[row] for row in captions]
            shown = [names.get(image, str(image)) for image in images]
            rows.append([term, round(score, 4), same, *texts, *shown])
    return pd.DataFrame(rows, columns=columns).sort_values("score", ascending=False)


def angles_and_margins(
    model: Distillation, pairs: SplitPairs, *, max_length: int, seed: int, when: When
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Angles and margins as the losses see them, for one state of a model.

    A sample of captions of different images, under dropout; torch's random state stays as it was.

    Args:
        model: the model, which is in eval mode afterwards.
        pairs: the training pairs.
        max_length: tokens that a caption is cut to.
        seed: of the sample.
        when: whether the model is that of before training or of after.

    Returns:
        Angles: term (text, image, caption), relation (positive, negative), when, angle (radians,
        the middle of a bin) and share. Margins: term, when, margin (radians) and share of all
        negatives, also of those that the filter would remove; 0 where the gate is closed.
    """
    _, first = np.unique(pairs.image_rows, return_index=True)
    rows = np.random.default_rng([seed, 3]).permutation(first)[:SAMPLE_IMAGES]
    angles, margins = [], []
    for term, cosine, alpha in _terms(model, pairs, rows, max_length):
        angle = cosine.clamp(-1, 1).acos().cpu()
        positive = torch.eye(len(angle), dtype=torch.bool)
        for relation, values in {"positive": angle[positive], "negative": angle[~positive]}.items():
            table = _histogram(values, low=0.0, high=np.pi, name="angle")
            angles.append(table.assign(term=term, relation=relation, when=when))
        is_text = term == "text"
        margin = model.loss.text_margin if is_text else model.margin
        gate = "margin" if is_text else model.loss.gate
        shift = applied_margins(cosine, alpha, margin=margin, gate=gate).cpu()
        table = _histogram(shift[~positive], low=0.0, high=max(2 * margin, 0.01), name="margin")
        margins.append(table.assign(term=term, when=when))
    return (
        _together(angles, ["term", "relation", "when", "angle", "share"]),
        _together(margins, ["term", "when", "margin", "share"]),
    )


@torch.no_grad()
def _terms(
    model: Distillation, pairs: SplitPairs, rows: Rows, max_length: int
) -> list[tuple[str, Square, Square]]:
    """Of each term: name, cosines of anchors and candidates, the teacher's in its margins."""
    tokens = model.encoder.tokenize([pairs.captions[row] for row in rows], max_length)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.train()
        parts = split_tokens(tokens, _ENCODED_TOGETHER)
        views = [model.encode_views([part, part]) for part in parts]
        model.eval()
    first, second = (torch.cat(side) for side in zip(*views, strict=True))
    text = cosines(model.heads.text(first), model.heads.text(second))
    host = TeacherRows(pairs, torch.device("cpu"))(rows)[:2]
    images, captions = (side.to(first.device) for side in host)
    alphas = teacher_cosines(images, captions)
    grounded = model.heads.ground_sentences(first)
    targets = {
        "image": model.heads.ground_images(images),
        "caption": model.heads.ground_captions(captions),
    }
    terms = [("text", text, torch.zeros_like(text))]
    for term in model.loss.terms:
        alpha = model.margin_cosines(alphas, term)
        terms.append((term, cosines(grounded, targets[term]), alpha))
    return terms


def _precision(pairs: SplitPairs, share: float, recall: float) -> float:
    """Of what a filter masks in the whole split, the share that are pairs of one image."""
    counts = np.unique(pairs.image_rows, return_counts=True)[1].astype(float)
    same = (counts * (counts - 1)).sum()
    different = counts.sum() ** 2 - (counts**2).sum()
    masked = recall * same + share * different
    return float(recall * same / masked) if masked else 0.0


def _histogram(
    values: Float[Tensor, " values"], *, low: float, high: float, name: str
) -> pd.DataFrame:
    counts, edges = np.histogram(values.numpy(), bins=_BINS, range=(low, high))
    middles = (edges[:-1] + edges[1:]) / 2
    share = counts / max(1, values.numel())
    filled = np.flatnonzero(counts)
    inside = slice(max(0, filled[0] - 1), filled[-1] + 2) if len(filled) else slice(0)
    return pd.DataFrame({name: middles.round(6), "share": share.round(8)})[inside]


def _together(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)[columns]
