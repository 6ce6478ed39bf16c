"""Train the demo's teacher: a small open_clip model of the embedded world.

It learns from train scenes only, rendered and captioned afresh; half of each batch are near
relatives of the other half (same scene but for a few changed attributes), so that counts, sizes
and places matter to the contrastive loss, not only which colours and shapes are there.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional
from transformers import BertTokenizer

from pipeline.core.files import write_json
from pipeline.core.progress import progress
from pipeline.download.scenes.demo.lessons import draw_batches, render_lessons
from pipeline.download.scenes.demo.tokenizer import save_tokenizer
from pipeline.download.scenes.demo.weights import save_half
from pipeline.download.scenes.render import SIDE

_CONTEXT = 40
"""Tokens of a text; no caption or sentence of the world is longer."""

_MEAN_AND_STD = 0.5
_LARGEST_SCALE = math.log(100)


@dataclass(frozen=True)
class TeacherRecipe:
    """How the teacher is trained.

    Attributes:
        scenes: rendered train scenes; every use of one gets a new caption.
        steps: optimiser steps.
        batch_size: picture and caption pairs of a step.
        learning_rate: highest value of the one-cycle schedule.
        weight_decay: AdamW's decay of matrices.
        seed: seed of scenes, order and initial weights.
    """

    scenes: int = 24_000
    steps: int = 800
    batch_size: int = 192
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0


def teacher_config(vocabulary: int) -> dict[str, Any]:
    """The content of open_clip_config.json, for a vocabulary of so many tokens."""
    model = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": {
            "context_length": _CONTEXT,
            "vocab_size": vocabulary,
            "hf_tokenizer_name": "scenes-wordpiece",
            "width": 128,
            "heads": 4,
            "layers": 3,
            "pool_type": "eos",
            "pad_id": 0,
            "eos_id": 3,
        },
    }
    return {"model_cfg": model, "preprocess_cfg": _preprocessing()}


def _preprocessing() -> dict[str, Any]:
    return {
        "mean": [_MEAN_AND_STD] * 3,
        "std": [_MEAN_AND_STD] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }


def train_teacher(tokenizer: BertTokenizer, recipe: TeacherRecipe) -> open_clip.CLIP:
    """Train the teacher on the CPU.

    Args:
        tokenizer: the demo's tokenizer.
        recipe: size and seed of the training.

    Returns:
        The open_clip model, in evaluation mode.
    """
    config = teacher_config(len(tokenizer))["model_cfg"]
    torch.manual_seed(recipe.seed)
    model = open_clip.CLIP(**config).to(memory_format=torch.channels_last)
    lessons = render_lessons(recipe.scenes, recipe.seed)
    optimiser, schedule = _optimiser(model, recipe)
    loss_of = open_clip.ClipLoss()
    batches = draw_batches(
        lessons, steps=recipe.steps, batch_size=recipe.batch_size, seed=recipe.seed
    )
    for rows, captions in progress(batches, total=recipe.steps, what="teacher", unit="step"):
        features = _encode(model, _to_input(lessons.pictures[rows]), _tokenize(tokenizer, captions))
        optimiser.zero_grad()
        loss_of(*features, model.logit_scale.exp()).backward()
        optimiser.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=_LARGEST_SCALE)
    return model.eval()


def _encode(
    model: open_clip.CLIP,
    images: Float[Tensor, "batch 3 height width"],
    texts: Int[Tensor, "batch tokens"],
) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
    """Normalised float32 features of pictures and captions."""
    # bfloat16 makes the convolutions faster on a CPU, but not the text transformer.
    with torch.autocast("cpu", torch.bfloat16):
        seen = model.encode_image(images)
    return functional.normalize(seen.float()), model.encode_text(texts, normalize=True)


def _tokenize(tokenizer: BertTokenizer, texts: list[str]) -> Int[Tensor, "batch tokens"]:
    padded = tokenizer(texts, padding="max_length", truncation=True, max_length=_CONTEXT)
    return torch.tensor(padded["input_ids"])


def _optimiser(
    model: open_clip.CLIP, recipe: TeacherRecipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
    )
    return optimiser, schedule


def _to_input(
    pixels: UInt8[Tensor, "batch 3 height width"],
) -> Float[Tensor, "batch 3 height width"]:
    scaled = (pixels / 255 - _MEAN_AND_STD) / _MEAN_AND_STD
    return scaled.contiguous(memory_format=torch.channels_last)


def save_teacher(model: open_clip.CLIP, tokenizer: BertTokenizer, folder: Path) -> None:
    """Write what `open_clip` loads as `local-dir:<folder>`: config, float16 weights, tokenizer."""
    write_json(folder / "open_clip_config.json", teacher_config(len(tokenizer)))
    save_tokenizer(tokenizer, folder)
    save_half(model.state_dict(), folder / "open_clip_model.safetensors")
