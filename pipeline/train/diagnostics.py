"""What the teacher's similarities are, what the noise filter removes, and how angles move."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pipeline.core.progress import log
from pipeline.params.loss import FilterParams, Similarity
from pipeline.student.encoder import Student
from pipeline.train.batches import Rows, TrainingPairs
from pipeline.train.gradients import split_tokens
from pipeline.train.loop import build_model
from pipeline.train.losses import applied_margins, cosines
from pipeline.train.noise import filter_limit, passes, teacher_cosines, teacher_dots
from pipeline.train.objective import Distillation
from pipeline.train.run_params import RunParams

SAMPLE_IMAGES = 400
"""Images whose captions, all of them, are looked at."""
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

    pairs: TrainingPairs
    rows: Rows
    """Of the captions, in `pairs`."""
    scores: Mapping[Similarity, Square]
    """Teacher cosines by similarity; the row of a cross-modal one is the caption, the column the
    image of a caption."""
    dots: Mapping[Similarity, Square]
    same_image: Pairwise
    other: Pairwise
    """Pairs of different captions."""


@dataclass(frozen=True)
class FilterEffect:
    """What a noise filter does to the pairs of a sample."""

    masked: Pairwise
    """Pairs of different captions that it removes."""
    share: float
    """Of pairs of different images, 0 to 1: what it takes from batches of different images."""
    recall: float
    """Share of the pairs of one image, known false negatives, that it removes, 0 to 1."""
    precision: float
    """Share of what it removes that are pairs of one image, 0 to 1, at their rate in the whole
    training split; pairs that are alike without sharing an image count against it."""
    suggestion: float
    """The threshold that would mask 5 %, on the scale of the filter's kind."""

    def metrics(self) -> dict[str, float]:
        """The numbers, as rows of a report."""
        names = ("share", "recall", "precision")
        return {f"filter_{name}": round(getattr(self, name), 6) for name in names}


def draw_sample(pairs: TrainingPairs, seed: int) -> Sample:
    """All captions of up to SAMPLE_IMAGES images, drawn at random."""
    images = np.unique(pairs.image_rows)
    rng = np.random.default_rng([seed, 2])
    drawn = rng.permutation(images)[:SAMPLE_IMAGES]
    rows = np.flatnonzero(np.isin(pairs.image_rows, drawn))
    features = pairs.teacher(rows, torch.device("cpu"))
    image = torch.from_numpy(pairs.image_rows[rows])
    return Sample(
        pairs,
        rows,
        teacher_cosines(*features).by_name(),
        teacher_dots(*features).by_name(),
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
    for similarity, scores in sample.scores.items():
        relations = {"different images": ~sample.same_image}
        if similarity != "image":
            own = sample.same_image & (sample.other | (similarity == "cross-modal"))
            relations["same image"] = own
        for relation, where in relations.items():
            table = _histogram(scores[where].clamp(-1, 1), low=-1.0, high=1.0, name="cosine")
            tables.append(table.assign(similarity=similarity, relation=relation))
    return _together(tables, ["similarity", "relation", "cosine", "share"])


def filter_effect(sample: Sample, params: FilterParams) -> FilterEffect | None:
    """What the filter would remove from the sample; None where it is off."""
    if params.kind == "off":
        return None
    scores = (sample.dots if params.kind == "dot" else sample.scores)[params.similarity]
    negatives = scores[~sample.same_image]
    masked = ~passes(scores, filter_limit(negatives, params), params) & sample.other
    share = float(masked[~sample.same_image].float().mean())
    known = sample.same_image & sample.other
    recall = float(masked[known].float().mean()) if known.any() else 0.0
    return FilterEffect(
        masked, share, recall, _precision(sample.pairs, share, recall), _suggest(negatives, params)
    )


def warn_of_useless_filter(effect: FilterEffect | None, params: FilterParams) -> None:
    """Warn once where a filter masks nothing, or more than half of the negatives (METHOD)."""
    if effect is None or 0 < effect.share <= _MOST_MASKED:
        return
    log.warning(
        "loss.filter masks %.1f %% of the negatives; loss.filter.threshold %.4g would mask 5 %% "
        "(kind %s, similarity %s, drop %s)",
        100 * effect.share,
        effect.suggestion,
        params.kind,
        params.similarity,
        params.drop,
    )


def masked_pairs(
    sample: Sample, effect: FilterEffect | None, params: FilterParams, names: Mapping[int, str]
) -> pd.DataFrame:
    """A table for people: pairs that the filter removes, the most similar first.

    Args:
        sample: where they are from.
        effect: the filter's.
        params: the filter.
        names: what images are called, by image_id.

    Returns:
        score (the teacher's, that decides), same_image, caption_1, caption_2, image_1, image_2:
        TABLE_ROWS pairs drawn at random; none where the filter is off.
    """
    columns = ["score", "same_image", "caption_1", "caption_2", "image_1", "image_2"]
    if effect is None:
        return pd.DataFrame(columns=columns)
    scores = (sample.dots if params.kind == "dot" else sample.scores)[params.similarity]
    found = effect.masked.triu().nonzero().numpy()
    drawn = np.random.default_rng(0).permutation(found)[:TABLE_ROWS]
    rows = [_describe(sample, scores, pair, names) for pair in drawn]
    return pd.DataFrame(rows, columns=columns).sort_values("score", ascending=False)


def angles_and_margins(
    pairs: TrainingPairs, params: RunParams, seed: int, student: Student
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Angles and margins as the losses see them, before training and after.

    A sample of captions of different images, under dropout; the state of before is drawn again from
    the seed.

    Returns:
        Angles: term (text, image, caption), relation (positive, negative), when, angle (radians,
        the middle of a bin) and share. Margins: term, when, margin (radians) and share of all
        negatives, also of those that the filter would remove; 0 where the gate is closed.
    """
    _, first = np.unique(pairs.image_rows, return_index=True)
    rows = np.random.default_rng([seed, 3]).permutation(first)[:SAMPLE_IMAGES]
    angles, margins = [], []
    for when, model in _models(pairs, params, seed, student).items():
        for term, cosine, alpha in _terms(model, pairs, rows, params.student.max_length):
            about = {"term": term, "when": when}
            angles += [table.assign(**about) for table in _angles(cosine)]
            margins.append(_margins(model, term, cosine, alpha).assign(**about))
    return (
        _together(angles, ["term", "relation", "when", "angle", "share"]),
        _together(margins, ["term", "when", "margin", "share"]),
    )


def _models(
    pairs: TrainingPairs, params: RunParams, seed: int, student: Student
) -> dict[When, Distillation]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        before = build_model(params, pairs.features.dim).to(student.encoder.device)
    after = Distillation(student.encoder, student.heads, params.train.objective, params.loss)
    return {"before": before, "after": after}


@torch.no_grad()
def _terms(
    model: Distillation, pairs: TrainingPairs, rows: Rows, max_length: int
) -> list[tuple[str, Square, Square]]:
    """The terms of the objective: name, cosines of anchors and candidates, teacher cosines."""
    images, captions = pairs.teacher(rows, model.encoder.device)
    tokens = model.encoder.tokenize([pairs.captions[row] for row in rows], max_length)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.train()
        views = [model.two_views(part) for part in split_tokens(tokens, _ENCODED_TOGETHER)]
        model.eval()
    first, second = (torch.cat(side) for side in zip(*views, strict=True))
    alphas = teacher_cosines(images, captions)
    text = cosines(model.heads.text(first), model.heads.text(second))
    terms = [("text", text, torch.zeros_like(text))]
    if model.objective == "simcse":
        return terms
    grounded = model.heads.ground_sentences(first)
    targets = {
        "image": (model.heads.ground_images(images), alphas.image),
        "caption": (model.heads.ground_captions(captions), alphas.caption),
    }
    return terms + [
        (term, cosines(grounded, targets[term][0]), targets[term][1]) for term in model.loss.terms
    ]


def _angles(cosine: Square) -> list[pd.DataFrame]:
    angle = cosine.clamp(-1, 1).acos().cpu()
    positive = torch.eye(len(angle), dtype=torch.bool)
    relations = {"positive": angle[positive], "negative": angle[~positive]}
    return [
        _histogram(values, low=0.0, high=np.pi, name="angle").assign(relation=relation)
        for relation, values in relations.items()
    ]


def _margins(model: Distillation, term: str, cosine: Square, alpha: Square) -> pd.DataFrame:
    is_text = term == "text"
    margin = model.loss.text_margin if is_text else model.margin
    margin_similarity = alpha if is_text else model.margin_similarity(alpha)
    gate = "margin" if is_text else model.loss.gate
    shift = applied_margins(cosine, margin_similarity, margin=margin, gate=gate).cpu()
    others = ~torch.eye(len(shift), dtype=torch.bool)
    return _histogram(shift[others], low=0.0, high=max(2 * margin, 0.01), name="margin")


def _precision(pairs: TrainingPairs, share: float, recall: float) -> float:
    """Of what a filter masks in the whole split, the share that are pairs of one image."""
    counts = np.unique(pairs.image_rows, return_counts=True)[1].astype(float)
    same = (counts * (counts - 1)).sum()
    different = counts.sum() ** 2 - (counts**2).sum()
    masked = recall * same + share * different
    return float(recall * same / masked) if masked else 0.0


def _suggest(negatives: Float[Tensor, " pairs"], params: FilterParams) -> float:
    percentile = 100 * (_SUGGESTED_SHARE if params.drop == "below" else 1 - _SUGGESTED_SHARE)
    if params.kind == "percentile":
        return percentile
    return float(np.percentile(negatives.numpy(), percentile))


def _describe(
    sample: Sample, scores: Square, pair: Int64[np.ndarray, " 2"], names: Mapping[int, str]
) -> list[object]:
    first, second = map(int, pair)
    rows = [int(sample.rows[index]) for index in (first, second)]
    images = [int(sample.pairs.features.image_ids[sample.pairs.image_rows[row]]) for row in rows]
    captions = [sample.pairs.captions[row] for row in rows]
    same = bool(sample.same_image[first, second])
    score = round(float(scores[first, second]), 4)
    return [score, same, *captions, *(names.get(image, str(image)) for image in images)]


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
