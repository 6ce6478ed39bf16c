"""mteb's own evaluators on the data at hand, and where their numbers differ from ours.

Every STS task and both directions of retrieval become tasks of mteb's own classes: the task that
mteb itself has, with the pairs that it takes from the hub, where there is one and the hub gives
them; else one that is made of our table, called NAME-local. mteb encodes, scores and writes its
result files. Our number beside mteb's is that of our evaluator on the same pairs.

Transfer is left to ours: a classifier of mteb's is fitted on other samples, and is another measure.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi, is_offline_mode
from jaxtyping import Float32
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.checksums import hash_strings, hash_weights
from pipeline.core.files import reports_unwritable
from pipeline.core.progress import log
from pipeline.core.redact import first_line
from pipeline.evaluate.correlation import Bootstrap
from pipeline.evaluate.embeddings import Encoder, embed
from pipeline.evaluate.mteb_names import RETRIEVAL_NAMES, STS_NAMES
from pipeline.evaluate.retrieval import scored_captions
from pipeline.evaluate.score import Score
from pipeline.evaluate.sts import StsTask, score_sts
from pipeline.evaluate.suite import HeldOutPairs, Suite
from pipeline.features.teacher import Teacher
from pipeline.student.encoder import Student

LIMIT = 0.01
"""Scores x100 that differ by more are logged."""
_OURS = "our table"
_PATIENCE = 10
"""Seconds to wait for the hub's answer."""
_MEASURES = {
    "ndcg@10": "ndcg_at_10",
    **{f"recall@{k}": f"hit_rate_at_{k}" for k in (1, 5, 10)},
}
"""mteb's names of our measures of retrieval; its `recall_at_k` is the share of right answers."""


@dataclass(frozen=True)
class Comparison:
    """A number of mteb's, and ours of the same pairs, x100."""

    task: str
    """As mteb's result file is called."""
    data: str
    """`our table`, or the hub's data set."""
    measure: str
    count: int
    """Pairs or queries."""
    ours: float
    mteb: float
    difference: float
    """mteb's less ours."""


@dataclass
class MtebModel:
    """A sentence encoder, with a student's shared space if it has one, as a model of mteb.

    Pictures come as such from the hub, and from our tables as the teacher's features of them.
    """

    mteb_model_meta: ModelMeta
    encoder: Encoder
    student: Student | None
    load_teacher: Callable[[], Teacher]

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher that the student's heads belong to, loaded when pictures come."""
        teacher = self.load_teacher()
        self._grounds().require_teacher(teacher.identity.weights)
        return teacher

    def encode(
        self, inputs: Any, *, task_metadata: Any, batch_size: int = 32, **_: Any
    ) -> Float32[np.ndarray, "rows dim"]:
        """One row a text, or a picture, of the batches; as mteb calls it."""
        texts: list[str] = []
        features: list[NDArray[np.float32]] = []
        for batch in inputs:
            if "image" in batch:
                features.append(self._image_features(batch["image"]))
            else:
                texts += batch["text"]
        if features:
            return self._grounds().ground_images(np.concatenate(features))
        vectors = self.encoder.encode(texts, batch_size=batch_size, show_progress=True)
        has_images = "image" in task_metadata.modalities
        return self._grounds().ground_sentences(vectors) if has_images else vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The cosine of every row with every other."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The cosine of each row with its partner."""
        return pairwise_cos_sim(embeddings1, embeddings2)

    def _grounds(self) -> Student:
        assert self.student is not None
        return self.student

    def _image_features(self, images: Sequence[Any]) -> Float32[np.ndarray, "images dim"]:
        if not isinstance(images[0], Image.Image):
            return np.asarray(images, dtype=np.float32)
        pixels = [self.teacher.decode.transform(image.convert("RGB")) for image in images]
        return self.teacher.encode_images(torch.stack(pixels)).numpy()


def describe_model(name: str, about: Mapping[str, Any], student: Student | None) -> ModelMeta:
    """What mteb keeps results under: a name, and as revision a hash of all that changes a vector.

    Args:
        name: what the model is called.
        about: the facts of its encoder.
        student: whose heads retrieve.
    """
    heads = hash_weights(student.heads) if student else ""
    facts = {key: value for key, value in about.items() if key != "truncated"}
    revision = hash_strings([json.dumps(facts, sort_keys=True, default=str), heads])[:40]
    return ModelMeta.create_empty(
        {
            "name": f"kdmcse/{name}",
            "revision": revision,
            "modalities": ["text", "image"] if student else ["text"],
            "framework": ["PyTorch"],
            "max_tokens": about["max_length"],
            "similarity_fn_name": ScoringFunction.COSINE,
        }
    )


class MtebRun:
    """One model on one suite.

    Args:
        model: what is scored.
        suite: what it is scored on.
        scores: ours.
        out: mteb's folder of results; those of the same model, data and mteb are not made again.
    """

    def __init__(self, model: MtebModel, suite: Suite, scores: Sequence[Score], out: Path) -> None:
        self._model = model
        self._suite = suite
        self._scores = scores
        self._has_hub = True
        with reports_unwritable(out):
            self._cache = mteb.ResultCache(out)

    def compare(self) -> list[Comparison]:
        """Score all STS tasks but the dev splits, and retrieval of a student that sees images.

        Raises:
            ResourceError: a result cannot be written.
        """
        with reports_unwritable(self._cache.cache_path), warnings.catch_warnings(action="ignore"):
            found = [*self._sts(), *self._retrieval()]
        for one in found:
            if abs(one.difference) > LIMIT:
                text = "%s (%s): mteb's %s is %.4f, ours %.4f"
                log.warning(text, one.task, one.data, one.measure, one.mteb, one.ours)
        return found

    def _sts(self) -> Iterator[Comparison]:
        for own in (one for one in self._suite.sts or [] if one.split != "dev"):
            its = self._from_hub(STS_NAMES.get(own.name))
            if its is None:
                its = _local_sts(own, self._suite.data["sts"])
                data, task, ours = _OURS, own, _sts_score(self._scores, own)
            else:
                data, task = _named(its), _with_pairs_of(its, own)
                ours = self._ours_of(task)
            theirs = self._score(its)["cosine_spearman"]
            yield _compared(its, data, "spearman", len(task.pairs), ours, theirs)

    def _ours_of(self, task: StsTask) -> float | None:
        """Our Spearman correlation of the pairs of a task."""
        texts = [task.pairs[f"sentence{side}"] for side in (1, 2)]
        params = self._suite.params
        embeddings = embed(self._model.encoder, texts, batch_size=params.batch_size)
        bootstrap = Bootstrap(params.resamples, params.seed)
        return _sts_score(score_sts(embeddings, [task], bootstrap, seen=None), task)

    def _retrieval(self) -> Iterator[Comparison]:
        pairs = self._suite.retrieval
        if self._model.student is None or pairs is None:
            return
        for direction in ("text_to_image", "image_to_text"):
            scores = [one for one in self._scores if one.task == direction]
            its = self._from_hub(RETRIEVAL_NAMES[pairs.convention].get(direction))
            data = _OURS if its is None else _named(its)
            its = its or _local_retrieval(direction, pairs, self._suite.data["retrieval"])
            theirs = self._score(its)
            for one in (one for one in scores if one.measure in _MEASURES):
                value = theirs[_MEASURES[one.measure]]
                yield _compared(its, data, one.measure, one.count, one.value, value)

    def _from_hub(self, name: str | None) -> mteb.AbsTask | None:
        """A task of mteb's own with its data; None where there is none, or no data from the hub."""
        if name is None or not self._has_hub:
            return None
        task = mteb.get_task(name)
        about = task.metadata.dataset
        try:
            if not is_offline_mode():  # where it is not there, load_data retries half a minute
                HfApi().dataset_info(about["path"], revision=about["revision"], timeout=_PATIENCE)
            task.load_data()
        except Exception as error:  # noqa: BLE001  # the hub's transport raises what it likes
            self._has_hub = False
            why = first_line(error)
            log.warning("%s: no data from the hub (%s); our tables are used from here", name, why)
            return None
        return task

    def _score(self, task: mteb.AbsTask) -> Mapping[str, Any]:
        """The scores of its test split, from 0 to 1; mteb writes its result file."""
        log.info("mteb: %s", task.metadata.name)
        result = mteb.evaluate(
            self._model,
            task,
            cache=self._cache,
            co2_tracker=False,
            encode_kwargs={"batch_size": self._suite.params.batch_size},
            overwrite_strategy="only-missing" if self._is_known(task) else "always",
            show_progress_bar=False,
        )
        return result.task_results[0].scores["test"][0]

    def _is_known(self, task: mteb.AbsTask) -> bool:
        """Whether there is a whole result of this data by this mteb; it looks at no more itself."""
        meta, wanted = self._model.mteb_model_meta, (task.metadata.revision, mteb.__version__)
        try:
            found = self._cache.load_task_result(task.metadata.name, meta)
        except (ValueError, KeyError):  # it was cut off
            return False
        return found is not None and (found.dataset_revision, found.mteb_version) == wanted


def _compared(
    task: mteb.AbsTask, data: str, measure: str, count: int, ours: float | None, theirs: float
) -> Comparison:
    numbers = (float("nan") if ours is None else ours, 100 * theirs)
    ours, theirs = (round(float(number), 4) for number in numbers)
    difference = round(theirs - ours, 4)
    return Comparison(task.metadata.name, data, measure, count, ours, theirs, difference)


def _named(task: mteb.AbsTask) -> str:
    return f"{task.metadata.dataset['path']}@{task.metadata.revision[:7]}"


def _sts_score(scores: Sequence[Score], task: StsTask) -> float | None:
    whole = Score("sts", task.name, task.split, "spearman", None, 0, "all")
    same = (replace(one, value=None, count=0, low=None, high=None) == whole for one in scores)
    return next(score.value for score, is_it in zip(scores, same, strict=True) if is_it)


def _with_pairs_of(its: mteb.AbsTask, task: StsTask) -> StsTask:
    assert its.dataset is not None
    pairs: Any = its.dataset
    return replace(task, pairs=pairs["test"].to_pandas().assign(subset=""))


def _local(base: type[mteb.AbsTask], name: str, revision: str, **about: Any) -> mteb.AbsTask:
    metadata = mteb.TaskMetadata(
        name=f"{name}-local",
        description="A table of this project.",
        dataset={"path": f"kdmcse/{name}", "revision": revision},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        **about,
    )
    task: mteb.AbsTask = type("LocalTask", (base,), {"metadata": metadata})()
    task.data_loaded = True
    return task


def _local_sts(task: StsTask, revision: str) -> mteb.AbsTask:
    about = {"type": "STS", "category": "t2t", "main_score": "cosine_spearman"}
    its = _local(AbsTaskSTS, task.name, revision, **about)
    columns = task.pairs[["sentence1", "sentence2", "score"]].to_dict("list")
    its.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
    return its


def _local_retrieval(direction: str, pairs: HeldOutPairs, revision: str) -> mteb.AbsTask:
    """Captions as text, pictures as the teacher's features of them."""
    rows, is_from_text = scored_captions(pairs.pairing, pairs.convention), direction[:4] == "text"
    texts = {"id": [f"c{row}" for row in rows], "text": [pairs.captions[row] for row in rows]}
    features = pairs.image_features.astype(np.float32)
    names = [f"i{row}" for row in range(len(features))]
    captions = Dataset.from_dict(texts)
    images = Dataset.from_dict({"id": names, "image": features})
    right = pairs.pairing.of_captions(rows)
    queries, corpus = captions, images
    if not is_from_text:
        queries, corpus, right = images, captions, right.T
    answers = np.array(corpus["id"])
    relevant = {
        query: dict.fromkeys(answers[row].tolist(), 1)
        for query, row in zip(queries["id"], right, strict=True)
    }
    about = {
        "type": "Any2AnyRetrieval",
        "main_score": "ndcg_at_10",
        "modalities": ["text", "image"],
    }
    category = "t2i" if is_from_text else "i2t"
    its = _local(AbsTaskRetrieval, f"pairs-{category}", revision, category=category, **about)
    split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
    its.dataset = {"default": {"test": split}}
    return its
