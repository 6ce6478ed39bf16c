"""Pretrain the student start: a small BERT that can read, not yet a sentence encoder.

Masked language modelling (arXiv 1810.04805) on two sentences about one scene gives what a BERT
checkpoint gives on real data. To guess a masked word from the other sentence, the model has to read
which colour is whose, as a BERT does from its documents. A start that has seen single sentences
does not learn it in a short distillation.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    get_linear_schedule_with_warmup,
)

from pipeline.core.progress import progress
from pipeline.download.scenes.demo.tokenizer import LONGEST, SPECIALS, save_half, save_tokenizer
from pipeline.download.scenes.statements import state
from pipeline.download.scenes.wording import caption
from pipeline.download.scenes.world import draw_scene, generator

_READING = 120
"""Random stream; those of the corpora, the teacher's lessons and benchmarks are below it."""


@dataclass(frozen=True)
class StudentRecipe:
    """How the student start is pretrained, by AdamW with a linear warm-up and decay."""

    steps: int = 4500
    warmup: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-3
    masked: float = 0.3
    """Fraction of the tokens that are to be guessed."""
    seed: int = 0
    """Of scenes, weights and masks."""


def pretrain_student(tokenizer: BertTokenizer, recipe: StudentRecipe) -> BertModel:
    """Pretrain the student start on the CPU; returned without its masked-language head."""
    torch.manual_seed(recipe.seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=LONGEST,
    )
    model: BertForMaskedLM = BertForMaskedLM(config)
    # A plain BertModel has a pooler; without one, whoever loads it would draw random weights.
    model.bert = BertModel(config)
    model.tie_weights()
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)
    schedule: LRScheduler = get_linear_schedule_with_warmup(  # type: ignore[no-untyped-call]
        optimiser, recipe.warmup, recipe.steps
    )
    rng = generator(recipe.seed, _READING, 0)
    for _ in progress(range(recipe.steps), total=recipe.steps, what="student", unit="step"):
        scenes = [draw_scene("train", rng) for _ in range(recipe.batch_size)]
        captions = [caption(scene, rng) for scene in scenes]
        statements = [state(scene, rng) for scene in scenes]
        tokens = tokenizer(captions, statements, padding=True, return_tensors="pt")
        inputs, labels = _mask(tokens.pop("input_ids"), len(tokenizer), recipe.masked)
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(inputs, labels=labels, **tokens).loss
        loss.backward()
        optimiser.step()
        schedule.step()
    encoder: BertModel = model.bert.train(mode=False)
    return encoder


def _mask(
    tokens: Int[Tensor, "batch tokens"], vocabulary: int, fraction: float
) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
    """Hide a fraction of the tokens: 8 of 10 as [MASK], one as a random token, one as it is.

    Returns the tokens to read, and the labels: the true token where hidden, else -100, which
    transformers' loss ignores.
    """
    hidden = (torch.rand(tokens.shape) < fraction) & (tokens >= len(SPECIALS))
    draw = torch.rand(tokens.shape)
    random_tokens = torch.randint(len(SPECIALS), vocabulary, tokens.shape)
    inputs = tokens.masked_fill(hidden & (draw < 0.8), SPECIALS.index("[MASK]"))  # noqa: PLR2004
    inputs = torch.where(hidden & (draw > 0.9), random_tokens, inputs)  # noqa: PLR2004
    return inputs, tokens.masked_fill(~hidden, -100)


def save_student(model: BertModel, tokenizer: BertTokenizer, folder: Path) -> None:
    """Write a plain transformers directory; the weights are stored as float16.

    The config keeps float32, so that everyone loads float32 weights.
    """
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    path = folder / "model.safetensors"
    save_half(load_file(path), path)
