"""Everything an encoder is scored on, read once; and the scoring of an encoder on all of it."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float16, Int64

from pipeline.core.checksums import hash_strings
from pipeline.core.errors import InputError, MissingArtifactError
from pipeline.core.progress import log
from pipeline.download.records import Pairs, read_pairs, read_sentences, read_sts, read_transfer
from pipeline.evaluate.correlation import Bootstrap
from pipeline.evaluate.embeddings import Encoder, embed
from pipeline.evaluate.retrieval import (
    SPLIT,
    Gallery,
    Pairing,
    kept_captions,
    score_retrieval,
)
from pipeline.evaluate.score import Score
from pipeline.evaluate.sts import StsTask, normalise, score_sts, sts_tasks
from pipeline.evaluate.transfer import score_transfer
from pipeline.features.rows import Features
from pipeline.features.store import read_features
from pipeline.features.teacher_rows import pairs_of_split
from pipeline.params.evaluate import EvaluateParams, Retrieval
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
    """Hash of the weights that made the features."""
    convention: Retrieval = "karpathy"

    @cached_property
    def pairing(self) -> Pairing:
        """Which of them belong together; in `karpathy` images are equal where their features are.

        MIEB tells images apart by their names, and those of Flickr30k its captions too.
        """
        images: Sequence[Hashable] = range(len(self.image_features))
        if self.convention == "karpathy":
            images = [row.tobytes() for row in self.image_features]
        is_by_row = self.convention == "mieb-flickr30k"
        captions = range(len(self.captions)) if is_by_row else self.captions
        return Pairing.of(captions, images, self.caption_image)


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

    Raises:
        MissingArtifactError: an artefact is missing that a task needs.
        InputError, StaleArtifactError: as the readers of the artefacts.
    """
    tasks, pairs, seen, retrieval = params.tasks, None, None, None
    try:
        pairs = read_pairs(run.pairs)
        sentences = (*pairs.captions_of("train")["caption"], *read_sentences(run.text))
        seen = frozenset(map(normalise, sentences))
    except MissingArtifactError as error:
        if pairs is None and "retrieval" in tasks:
            raise
        if "sts" in tasks:
            log.warning("no unseen scores: %s", error.what)
    sts = sts_tasks(read_sts(run.evaluation), params.convention) if "sts" in tasks else None
    transfer = read_transfer(run.evaluation) if "transfer" in tasks else None
    if pairs is not None and "retrieval" in tasks:
        features = read_features(run.features, teacher, pairs.fingerprint())
        retrieval = _held_out(pairs, features, params.retrieval)
    found = Suite(sts, transfer, retrieval, seen, {}, params)
    return replace(found, data=_fingerprints(found))


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
        scores += score_retrieval(Gallery(captions, images, pairs.pairing), pairs.convention)
    return scores


def teacher_retrieval(suite: Suite) -> list[Score]:
    """How well the teacher's own features retrieve; nothing where the suite has no retrieval."""
    if (pairs := suite.retrieval) is None:
        return []
    features = (pairs.caption_features, pairs.image_features)
    captions, images = (one.astype(np.float32) for one in features)
    return score_retrieval(Gallery(captions, images, pairs.pairing), pairs.convention)


def _held_out(pairs: Pairs, features: Features, convention: Retrieval) -> HeldOutPairs:
    """The test split of what the teacher could read."""
    ids = pairs.images.loc[pairs.images["split"] == SPLIT, "image_id"]
    images = np.flatnonzero(np.isin(features.image_ids, ids))
    if len(images) == 0:
        raise InputError("the pairs have no test split to retrieve from.", "choose other pairs.")
    split = pairs_of_split(pairs, features, SPLIT)
    caption_image = np.searchsorted(images, split.image_rows)
    kept = kept_captions(caption_image, convention)
    return HeldOutPairs(
        captions=[split.captions[row] for row in kept],
        caption_features=features.captions[split.caption_rows[kept]],
        image_features=features.images[images],
        caption_image=caption_image[kept],
        teacher=features.teacher,
        convention=convention,
    )


def _fingerprints(suite: Suite) -> dict[str, str]:
    """What each part is measured on; retrieval by its captions and which of them share an image.

    The teacher's features do not count: students of two teachers retrieve from the same pairs.
    """
    prints = {}
    if suite.seen is not None:
        prints["training_text"] = hash_strings(sorted(suite.seen))
    if suite.sts is not None:
        prints["sts"] = _hash_tables(task.pairs for task in suite.sts)
    if suite.transfer is not None:
        prints["transfer"] = _hash_tables([suite.transfer])
    if (pairs := suite.retrieval) is not None:
        own = () if pairs.convention == "karpathy" else (pairs.convention,)
        parts = (*own, *pairs.captions, *pairs.caption_image.astype(str))
        prints["retrieval"] = hash_strings(parts)
    return prints


def _hash_tables(tables: Iterable[pd.DataFrame]) -> str:
    """Of every cell as text, a null as nothing, however pandas holds it."""
    columns = (table[name] for table in tables for name in table)
    return hash_strings(str(one) for column in columns for one in column.where(column.notna(), ""))
