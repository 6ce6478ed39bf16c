"""Training in the field's own way: what `train_speed.py` measures ours against.

`train_plain` is METHOD's loop without a thought for speed: the tokenizer runs in the collate
function and pads to the longest, everything is float32, each sentence stands in its batch twice,
teacher vectors are Python lists until they are collated, the loss is read at every step, and STS-B
dev is tokenised and encoded afresh at every evaluation, batch by batch in the order of its file.
`train_sentence_transformers` is that library's trainer, on the text alone.
"""

import copy
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks.watch import Watch
from pipeline.core.device import choose_device
from pipeline.train.run_params import RunParams

EVALUATED_TOGETHER = 128
"""Pairs that SentEval encodes at a time."""

Vector = list[float]
Pair = tuple[str, Vector, Vector]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class World:
    """What every system is trained and evaluated on."""

    sentences: list[str]
    """Text only."""
    images: pd.DataFrame
    """Rows of images.parquet."""
    captions: pd.DataFrame
    """Rows of captions.parquet."""
    image_features: np.ndarray
    """(images, D_teacher) float16, by row of `images`."""
    caption_features: np.ndarray
    """(captions, D_teacher) float16, by row of `captions`."""
    dev: pd.DataFrame
    """STS-B dev, rows of sts.parquet."""
    tokens: Path | None = None
    """Folder in which ours keeps tokenised text."""

    @property
    def caption_image(self) -> np.ndarray:
        """The row of each caption's image."""
        return pd.Index(self.images["image_id"]).get_indexer(pd.Index(self.captions["image_id"]))


class PlainPairs(Dataset[Pair]):
    """The captions of the train split with the features of their image and of their own."""

    def __init__(self, world: World) -> None:
        images, captions = world.image_features.tolist(), world.caption_features.tolist()
        is_train = (world.images["split"] == "train").to_numpy()
        self._pairs = [
            (caption, images[image], captions[row])
            for row, (caption, image) in enumerate(
                zip(world.captions["caption"], world.caption_image, strict=True)
            )
            if is_train[image]
        ]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, row: int) -> Pair:
        return self._pairs[row]


@dataclass(frozen=True)
class Collate:
    """Makes a two-view batch: all sentences, and all of them again."""

    tokenizer: Any
    max_length: int

    def texts(self, sentences: Sequence[str]) -> Batch:
        """Of sentences alone."""
        tokens = self.tokenizer(
            list(sentences) * 2,
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return dict(tokens)

    def pairs(self, pairs: Sequence[Pair]) -> Batch:
        """Of captions with their teacher's vectors."""
        captions, images, own = zip(*pairs, strict=True)
        vectors = {"image": torch.tensor(images), "caption": torch.tensor(own)}
        return self.texts(captions) | vectors


class PlainStudent(nn.Module):
    """The encoder and its heads under the losses of kdmcse, without a noise filter.

    Args:
        params: student and loss blocks.
        teacher_dim: D_teacher.
    """

    def __init__(self, params: RunParams, teacher_dim: int) -> None:
        from transformers import AutoModel

        super().__init__()
        self.params = params
        self.backbone = AutoModel.from_pretrained(params.student.encoder, dtype=torch.float32)
        width, shared = self.backbone.config.hidden_size, params.student.grounding_dim
        self.text_head = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.grounding_head = nn.Sequential(nn.Linear(width, shared), nn.Tanh())
        self.image_head = nn.Sequential(nn.Linear(teacher_dim, shared), nn.Tanh())
        self.caption_head = nn.Sequential(nn.Linear(teacher_dim, shared), nn.Tanh())

    def embed(self, tokens: Batch) -> Tensor:
        """Sentence vectors (rows, H)."""
        hidden = self.backbone(**tokens).last_hidden_state
        if self.params.student.pooling == "cls":
            return hidden[:, 0]
        mask = tokens["attention_mask"].unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a two-view batch."""
        loss = self.params.loss
        teacher = {name: batch.pop(name) for name in ("image", "caption") if name in batch}
        vectors = self.embed(batch)
        first, second = self.text_head(vectors).chunk(2)
        fixed = torch.zeros(len(first), len(first), device=first.device)
        total = adap_acse(first, second, fixed, loss.text_margin, loss.temperature)
        if teacher:
            views = self.grounding_head(vectors).chunk(2)
            total = total + loss.grounding_weight * self._grounded(views, teacher)
        return total

    def _grounded(self, views: tuple[Tensor, ...], teacher: Batch) -> Tensor:
        heads = {"image": self.image_head, "caption": self.caption_head}
        total = torch.zeros((), device=views[0].device)
        for name, features in teacher.items():
            alpha = F.cosine_similarity(features.unsqueeze(1), features.unsqueeze(0), dim=-1)
            margin, tau = self.params.loss.margin, self.params.loss.temperature
            target = heads[name](features)
            total += sum(adap_acse(view, target, alpha, margin, tau) for view in views) / 2
        return total


def adap_acse(
    anchors: Tensor, candidates: Tensor, alpha: Tensor, margin: float, temperature: float
) -> Tensor:
    """AdapACSE by its definition, through the angles."""
    cosine = F.cosine_similarity(anchors.unsqueeze(1), candidates.unsqueeze(0), dim=-1)
    theta = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
    labels = torch.arange(len(anchors), device=anchors.device)
    is_negative = labels.unsqueeze(1) != labels.unsqueeze(0)
    harder = torch.cos(theta - margin * (1 - alpha).abs())
    logits = torch.where(is_negative & (theta > margin), harder, cosine) / temperature
    return F.cross_entropy(logits, labels)


def train_plain(world: World, params: RunParams, seed: int, watch: Watch) -> None:
    """Train, with the student that scores best on STS-B dev kept."""
    from transformers import AutoTokenizer, get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    device, steps = choose_device(), watch.warmup + watch.steps
    tokenizer = AutoTokenizer.from_pretrained(params.student.encoder)
    model = PlainStudent(params, world.image_features.shape[1]).to(device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=params.train.learning_rate, weight_decay=0.0
    )
    decay = get_linear_schedule_with_warmup(optimiser, 0, steps)
    evaluation = PlainEvaluation(model, tokenizer, world.dev, watch)
    evaluation.run()
    batches = mixed_batches(world, params, Collate(tokenizer, params.student.max_length))
    bar = tqdm(range(1, steps + 1))
    for step in bar:
        model.train()
        loss = model({key: value.to(device) for key, value in next(batches).items()})
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay.step()
        optimiser.zero_grad()
        bar.set_postfix(loss=loss.item())
        if step % params.train.evaluate_every == 0 or step == steps:
            evaluation.run()
    model.load_state_dict(evaluation.best)


def mixed_batches(world: World, params: RunParams, collate: Collate) -> Iterator[Batch]:
    """Both streams, each shuffled on its own; every k-th batch is of pairs."""
    size, every = params.train.batch_size, int(params.train.pair_every)
    text_loader = _loader(world.sentences, size, collate.texts)
    pair_loader = _loader(PlainPairs(world), size, collate.pairs)
    texts, captions, step = _endless(text_loader), _endless(pair_loader), 0
    while True:
        step += 1
        yield next(texts if step % every else captions)


def _loader(rows: Any, batch_size: int, collate: Any) -> DataLoader[Any]:
    return DataLoader(rows, batch_size, shuffle=True, collate_fn=collate, drop_last=True)


def _endless(loader: DataLoader[Any]) -> Iterator[Batch]:
    while True:
        yield from loader


class PlainEvaluation:
    """Spearman on STS-B dev, encoded as SentEval does, and the best weights so far."""

    def __init__(
        self, model: PlainStudent, tokenizer: Any, dev: pd.DataFrame, watch: Watch
    ) -> None:
        self._model, self._tokenizer, self._dev, self._watch = model, tokenizer, dev, watch
        self._highest = -math.inf
        self.best: dict[str, Tensor] = {}

    def run(self) -> None:
        """Score the model, and keep its weights where none scored higher."""
        with self._watch.evaluation():
            score = self._score()
        self._watch.scores.append(score)
        if score > self._highest and self._watch.taken:
            self._highest, self.best = score, copy.deepcopy(self._model.state_dict())

    @torch.no_grad()
    def _score(self) -> float:
        self._model.eval()
        cosines: list[float] = []
        for start in range(0, len(self._dev), EVALUATED_TOGETHER):
            rows = self._dev.iloc[start : start + EVALUATED_TOGETHER]
            first, second = (self._encode(list(rows[f"sentence{side}"])) for side in (1, 2))
            cosines += F.cosine_similarity(first, second).tolist()
        return 100 * float(spearmanr(cosines, self._dev["score"]).statistic)

    def _encode(self, sentences: list[str]) -> Tensor:
        tokens = self._tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        device = next(self._model.parameters()).device
        return self._model.embed({key: value.to(device) for key, value in tokens.items()}).cpu()


def train_sentence_transformers(world: World, params: RunParams, seed: int, watch: Watch) -> None:
    """Train on each sentence as its own positive; the score at the end is not part of the time."""
    from datasets import Dataset as Table
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(params.student.encoder, model_kwargs={"dtype": torch.float32})
    longest, model.max_seq_length = model.max_seq_length, params.student.max_length
    table = Table.from_dict({"anchor": world.sentences, "positive": world.sentences})
    with tempfile.TemporaryDirectory() as folder:
        settings = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=watch.warmup + watch.steps,
            per_device_train_batch_size=params.train.batch_size,
            learning_rate=params.train.learning_rate,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        loss = MultipleNegativesRankingLoss(model, scale=1 / params.loss.temperature)
        SentenceTransformerTrainer(model, settings, table, loss=loss).train()
    model.max_seq_length = longest
    sides = [model.encode(list(world.dev[f"sentence{side}"])) for side in (1, 2)]
    cosines = model.similarity_pairwise(*sides)
    watch.scores.append(100 * float(spearmanr(cosines, world.dev["score"]).statistic))
