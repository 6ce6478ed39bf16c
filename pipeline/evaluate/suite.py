"""Everything an encoder is scored on, read once; and the scoring of an encoder on all of it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float16, Int64

from pipeline.core.checksums import hash_strings
from pipeline.core.errors import InputError, MissingArtifactError
from pipeline.core.progress import log
from pipeline.download.records import Pairs, read_pairs, read_sentences, read_sts, read_transfer
from pipeline.evaluate.correlation import Bootstrap
from pipeline.evaluate.embeddings import Encoder, embed
from pipeline.evaluate.retrieval import SPLIT, Gallery, Pairing, score_retrieval
from pipeline.evaluate.score import Score
from pipeline.evaluate.sts import StsTask, normalise, score_sts, sts_tasks
from pipeline.evaluate.transfer import score_transfer
from pipeline.features.rows import Features
from pipeline.features.store import read_features
from pipeline.features.teacher_rows import pairs_of_split
from pipeline.params.evaluate import EvaluateParams, Part
from pipeline.params.teacher import TeacherParams
from pipeline.student.encoder import Student


@dataclass(frozen=True)
class RunPaths:
    """The artefacts that an evaluation reads."""

    evaluation: Path
    pairs: Path
    text: Path
    features: Path


@dataclass(frozen=True)
class HeldOutPairs:
    """The images of the pairs' test split and their captions, with the teacher's features."""

    captions: list[str]
    caption_features: Float16[np.ndarray, "captions dim"]
    image_features: Float16[np.ndarray, "images dim"]
    caption_image: Int64[np.ndarray, " captions"]
    """The row of each caption's image."""
    teacher: str = ""
    """sha256 over the weights that made the features."""

    @cached_property
    def pairing(self) -> Pairing:
        """Which of them belong together; images are equal where their features are."""
        images = [row.tobytes() for row in self.image_features]
        return Pairing.of(self.captions, images, self.caption_image)


@dataclass(frozen=True)
class Suite:
    """What to score on; a part that is None is left out."""

    sts: list[StsTask] | None
    transfer: pd.DataFrame | None
    retrieval: HeldOutPairs | None
    seen: frozenset[str] | None
    """Normalised sentences of the training text; None where it is not at hand."""
    data: dict[str, str]
    """A fingerprint of each part's data, and of the training text that is at hand."""
    params: EvaluateParams

    def texts(self, *, grounded: bool) -> list[pd.Series]:
        """All columns of sentences that a system needs."""
        tables = [task.pairs for task in self.sts or []]
        tables += [self.transfer] if self.transfer is not None else []
        columns = [table[f"sentence{side}"] for table in tables for side in (1, 2)]
        if grounded and self.retrieval is not None:
            columns.append(pd.Series(self.retrieval.captions))
        return columns


def read_suite(run: RunPaths, teacher: TeacherParams, params: EvaluateParams) -> Suite:
    """Read what `params.tasks` names, and the training text that is at hand.

    Args:
        run: where the artefacts are.
        teacher: the teacher whose features retrieval starts from.
        params: the evaluate block.

    Raises:
        MissingArtifactError: an artefact is missing that a task needs.
        InputError, StaleArtifactError: as the readers of the artefacts.
    """
    pairs = functools.cache(lambda: read_pairs(run.pairs))
    readers: dict[Part, Callable[[], Any]] = {
        "sts": lambda: sts_tasks(read_sts(run.evaluation), params.convention),
        "transfer": lambda: read_transfer(run.evaluation),
        "retrieval": lambda: _held_out(
            pairs(), read_features(run.features, teacher, pairs().fingerprint())
        ),
    }
    found = {part: read() if part in params.tasks else None for part, read in readers.items()}
    seen = None
    try:
        sentences = (*pairs().captions_of("train")["caption"], *read_sentences(run.text))
        seen = frozenset(map(normalise, sentences))
    except MissingArtifactError as error:
        if "sts" in params.tasks:
            log.warning("no unseen scores: %s", error.what)
    return Suite(**found, seen=seen, data=_fingerprints(found, seen), params=params)


def evaluate(
    encoder: Encoder,
    suite: Suite,
    student: Student | None = None,
    *,
    dimensions: Sequence[int] = (),
) -> list[Score]:
    """Score an encoder on everything, each distinct sentence embedded once.

    Args:
        encoder: what to score.
        suite: what to score it on.
        student: whose grounding heads retrieve; retrieval is left out where this is None.
        dimensions: shorter embeddings, by their first dimensions, to score on STS as well.

    Raises:
        InputError, ModelError: as `score_sts`, `score_transfer` and `score_retrieval`.
        StaleArtifactError: the features are of another teacher than the student's.
    """
    params, pairs = suite.params, suite.retrieval
    if student and pairs:
        student.require_teacher(pairs.teacher)
    texts = suite.texts(grounded=student is not None)
    if not texts:
        return []
    embeddings = embed(encoder, texts, batch_size=params.batch_size)
    scores: list[Score] = []
    if suite.sts is not None:
        bootstrap = Bootstrap(params.resamples, params.seed)
        scores += score_sts(embeddings, suite.sts, bootstrap, seen=suite.seen)
        scores += [
            replace(score, dimensions=size)
            for size in dimensions
            for score in score_sts(embeddings.first(size), suite.sts, bootstrap, seen=suite.seen)
        ]
    if suite.transfer is not None:
        scores += score_transfer(embeddings, suite.transfer, seed=params.seed)
    if student and pairs:
        captions = student.ground_sentences(embeddings.of(pairs.captions))
        images = student.ground_images(pairs.image_features)
        scores += score_retrieval(Gallery(captions, images, pairs.pairing))
    return scores


def teacher_retrieval(suite: Suite) -> list[Score]:
    """How well the teacher's own features retrieve; nothing where the suite has no retrieval."""
    if (pairs := suite.retrieval) is None:
        return []
    captions, images = (
        features.astype(np.float32) for features in (pairs.caption_features, pairs.image_features)
    )
    return score_retrieval(Gallery(captions, images, pairs.pairing))


def _held_out(pairs: Pairs, features: Features) -> HeldOutPairs:
    """The test split of what the teacher could read."""
    ids = pairs.images.loc[pairs.images["split"] == SPLIT, "image_id"]
    images = np.flatnonzero(np.isin(features.image_ids, ids))
    if len(images) == 0:
        raise InputError("the pairs have no test split to retrieve from.", "choose other pairs.")
    split = pairs_of_split(pairs, features, SPLIT)
    return HeldOutPairs(
        captions=split.captions,
        caption_features=features.captions[split.caption_rows],
        image_features=features.images[images],
        caption_image=np.searchsorted(images, split.image_rows),
        teacher=features.teacher,
    )


def _fingerprints(found: dict[Part, Any], seen: frozenset[str] | None) -> dict[str, str]:
    """What each part is measured on; retrieval by its captions and which of them share an image.

    The teacher's features do not count: students of two teachers retrieve from the same pairs.
    """
    prints = {} if seen is None else {"training_text": hash_strings(sorted(seen))}
    tables = {
        "sts": [task.pairs for task in found["sts"] or ()],
        "transfer": [] if found["transfer"] is None else [found["transfer"]],
    }
    for part, parts in tables.items():
        columns = [table[name] for table in parts for name in table]
        if columns:  # every cell as text, a null as nothing, however pandas holds it
            cells = (str(one) for column in columns for one in column.where(column.notna(), ""))
            prints[part] = hash_strings(cells)
    if (held_out := found["retrieval"]) is not None:
        prints["retrieval"] = hash_strings(
            (*held_out.captions, *held_out.caption_image.astype(str))
        )
    return prints
