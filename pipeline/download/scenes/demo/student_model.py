"""Pretrain the student start: a small BERT that knows the words, not yet the meanings.

Masked language modelling (arXiv 1810.04805) on the text-only sentences of the embedded world
gives what a BERT checkpoint gives on real data: a fair start that is not yet a sentence encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer

from pipeline.core.progress import progress
from pipeline.download.scenes.demo.tokenizer import LONGEST, SPECIALS, save_half, save_tokenizer


@dataclass(frozen=True)
class StudentRecipe:
    """How the student start is pretrained, by AdamW at a rate that falls linearly to zero."""

    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 1e-3
    masked: float = 0.15
    """Fraction of the tokens that are to be guessed."""
    seed: int = 0
    """Of weights, order and masks."""


def pretrain_student(
    tokenizer: BertTokenizer, sentences: Sequence[str], recipe: StudentRecipe
) -> BertModel:
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
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=recipe.steps)
    for _ in progress(range(recipe.steps), total=recipe.steps, what="student", unit="step"):
        rows = torch.randint(len(sentences), (recipe.batch_size,)).tolist()
        tokens = tokenizer([sentences[row] for row in rows], padding=True, return_tensors="pt")
        inputs, labels = _mask(tokens["input_ids"], len(tokenizer), recipe.masked)
        optimiser.zero_grad()
        model(inputs, attention_mask=tokens["attention_mask"], labels=labels).loss.backward()
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
