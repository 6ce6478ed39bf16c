"""Train the demo's teacher: a small open_clip model of the embedded world.

It learns from train scenes only, rendered and captioned afresh; half of each batch are near
relatives of the other half (same scene but for a few changed attributes), so that counts, sizes
and places matter to the contrastive loss, not only which colours and shapes are there.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional
from transformers import BertTokenizer

from pipeline.core.files import write_json
from pipeline.core.progress import progress
from pipeline.download.scenes.demo.tokenizer import save_half, save_tokenizer
from pipeline.download.scenes.render import SIDE, render
from pipeline.download.scenes.sentence_pairs import change, is_scene_of
from pipeline.download.scenes.wording import caption
from pipeline.download.scenes.world import Scene, draw_scene, generator

_CONTEXT = 40
"""Tokens of a text; no caption or sentence of the world is longer."""
_PICTURES, _BATCHES = 100, 101
"""Random streams; those of the corpora are below them."""
_MEAN_AND_STD = 0.5


@dataclass(frozen=True)
class TeacherRecipe:
    """How the teacher is trained, by AdamW in a one-cycle schedule."""

    scenes: int = 24_000
    """Rendered train scenes; every use of one gets a new caption."""
    steps: int = 800
    batch_size: int = 192
    """Pictures with a caption each."""
    learning_rate: float = 2e-3
    """The highest of the schedule."""
    weight_decay: float = 0.05
    """Of matrices."""
    seed: int = 0
    """Of scenes, order and initial weights."""


def _config(vocabulary: int) -> dict[str, Any]:
    """The content of open_clip_config.json, for a vocabulary of so many tokens."""
    vision = {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}
    text = {
        "context_length": _CONTEXT,
        "vocab_size": vocabulary,
        "hf_tokenizer_name": "scenes-wordpiece",
        "width": 128,
        "heads": 4,
        "layers": 3,
        "pool_type": "eos",
        "pad_id": 0,
        "eos_id": 3,
    }
    scaling = {"mean": [_MEAN_AND_STD] * 3, "std": [_MEAN_AND_STD] * 3}
    resizing = {"interpolation": "bicubic", "resize_mode": "squash"}
    model = {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": model, "preprocess_cfg": scaling | resizing}


def render_lessons(
    number: int, seed: int
) -> tuple[list[Scene], UInt8[Tensor, "scenes 3 height width"]]:
    """Draw `number` train scenes, every other one a relative of the one before, and render them."""
    scenes: list[Scene] = []
    pictures = torch.empty(number, 3, SIDE, SIDE, dtype=torch.uint8)
    for index in progress(range(number), total=number, what="train scenes", unit="scene"):
        rng = generator(seed, _PICTURES, index)
        scenes.append(_relative(scenes[-1], rng) if index % 2 else draw_scene("train", rng))
        pixels = torch.from_numpy(np.array(render(scenes[-1], rng)))
        pictures[index] = pixels.permute(2, 0, 1)
    return scenes, pictures


def _relative(scene: Scene, rng: np.random.Generator) -> Scene:
    while True:
        relative = change(scene, int(rng.integers(1, 4)), rng)
        if is_scene_of(relative, "train") and relative != scene:
            return relative


def train_teacher(tokenizer: BertTokenizer, recipe: TeacherRecipe) -> open_clip.CLIP:
    """Train the teacher on the CPU."""
    torch.manual_seed(recipe.seed)
    model = open_clip.CLIP(**_config(len(tokenizer))["model_cfg"])
    model = model.to(memory_format=torch.channels_last)
    scenes, pictures = render_lessons(recipe.scenes, recipe.seed)
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in model.parameters() if weight.ndim > 1]},
        {"params": [w for w in model.parameters() if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
    )
    loss_of = open_clip.ClipLoss()
    rng = generator(recipe.seed, _BATCHES, 0)
    for _ in progress(range(recipe.steps), total=recipe.steps, what="teacher", unit="step"):
        # random scenes, each with its relative
        firsts = 2 * rng.choice(recipe.scenes // 2, recipe.batch_size // 2, replace=False)
        rows = np.concatenate([firsts, firsts + 1])
        captions = [caption(scenes[row], rng) for row in rows]
        padded = tokenizer(captions, padding="max_length", truncation=True, max_length=_CONTEXT)
        texts = torch.tensor(padded["input_ids"])
        features = _encode(model, pictures[rows], texts)
        optimiser.zero_grad()
        loss_of(*features, model.logit_scale.exp()).backward()
        optimiser.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=math.log(100))
    return model.eval()


def _encode(
    model: open_clip.CLIP,
    pixels: UInt8[Tensor, "batch 3 height width"],
    texts: Int[Tensor, "batch tokens"],
) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
    """Normalised float32 features of pictures and captions."""
    scaled = (pixels / 255 - _MEAN_AND_STD) / _MEAN_AND_STD
    # bfloat16 makes the convolutions faster on a CPU, but not the text transformer.
    with torch.autocast("cpu", torch.bfloat16):
        seen = model.encode_image(scaled.contiguous(memory_format=torch.channels_last))
    return functional.normalize(seen.float()), model.encode_text(texts, normalize=True)


def save_teacher(model: open_clip.CLIP, tokenizer: BertTokenizer, folder: Path) -> None:
    """Write what `open_clip` loads as `local-dir:<folder>`: config, float16 weights, tokenizer."""
    write_json(folder / "open_clip_config.json", _config(len(tokenizer)))
    save_tokenizer(tokenizer, folder)
    save_half(model.state_dict(), folder / "open_clip_model.safetensors")
