"""Train the demo's teacher: a small open_clip model of the embedded world.

It learns from train scenes only, rendered and captioned afresh. A batch is of families: a scene and
relatives with a few attributes changed, or with places or colours exchanged, so that what is whose
and where matters to the contrastive loss, not only which colours and shapes are there.

Places need lessons of their own. As long as one tower ignores them, the other gains nothing by
telling them apart, and forgets to; so pictures learn them first, from two pictures of a scene, then
captions from these pictures, and both together last.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import open_clip
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import BertTokenizer

from pipeline.core.files import write_json
from pipeline.core.progress import progress
from pipeline.download.scenes.demo.tokenizer import save_half, save_tokenizer
from pipeline.download.scenes.render import SIDE, render
from pipeline.download.scenes.sentence_pairs import change, exchange, is_scene_of
from pipeline.download.scenes.wording import caption
from pipeline.download.scenes.world import Scene, draw_scene, generator

_CONTEXT = 40
"""Tokens of a text; no caption or sentence of the world is longer."""
_LESSONS = 100
"""Random stream; those of the corpora are below it."""
_MEAN_AND_STD = 0.5

Relation = Literal["change", "place", "colour"]
"""A few attributes changed; places or colours exchanged."""
Near = Literal["caption", "picture"]
_EVERY: tuple[Relation, ...] = get_args(Relation)


@dataclass(frozen=True)
class Lesson:
    """A part of the training, by AdamW in a one-cycle schedule."""

    steps: int
    families: int
    """Of a batch."""
    relatives: tuple[Relation, ...]
    """Of each scene: how they differ from it."""
    near: tuple[Near, ...]
    """What a picture is to be nearest to: the caption, or a second picture, of its scene."""
    frozen: bool = False
    """Whether pictures stay as they are, and captions alone learn."""
    learning_rate: float = 1e-3
    """The highest of the schedule."""


@dataclass(frozen=True)
class TeacherRecipe:
    """How the teacher is trained."""

    lessons: tuple[Lesson, ...] = (
        Lesson(800, 96, ("change",), ("caption",), learning_rate=2e-3),
        Lesson(120, 24, _EVERY, ("picture",)),
        Lesson(500, 32, _EVERY, ("caption",), frozen=True),
        Lesson(500, 40, _EVERY, ("caption", "picture")),
    )
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


def draw_families(
    number: int, relatives: Iterable[Relation], rng: np.random.Generator
) -> list[Scene]:
    """Train scenes, each with its relatives behind it."""
    scenes: list[Scene] = []
    for _ in range(number):
        scene = draw_scene("train", rng)
        scenes += [scene, *(_relative(scene, relation, rng) for relation in relatives)]
    return scenes


def _relative(scene: Scene, relation: Relation, rng: np.random.Generator) -> Scene:
    """A relative, by changes where nothing can be exchanged."""
    exchanged = relation != "change" and scene.relation is not None
    relative = exchange(scene, relation) if exchanged else scene
    while relative == scene or not is_scene_of(relative, "train"):
        relative = change(scene, int(rng.integers(1, 4)), rng)
    return relative


def train_teacher(tokenizer: BertTokenizer, recipe: TeacherRecipe) -> open_clip.CLIP:
    """Train the teacher on the CPU."""
    torch.manual_seed(recipe.seed)
    model = open_clip.CLIP(**_config(len(tokenizer))["model_cfg"])
    model = model.to(memory_format=torch.channels_last)
    for number, lesson in enumerate(recipe.lessons):
        rng = generator(recipe.seed, _LESSONS, number)
        learn(model, tokenizer, lesson, recipe.weight_decay, rng)
    return model.eval()


def learn(
    model: open_clip.CLIP,
    tokenizer: BertTokenizer,
    lesson: Lesson,
    weight_decay: float,
    rng: np.random.Generator,
) -> None:
    """Train a model by one lesson."""
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in model.parameters() if weight.ndim > 1]},
        {"params": [w for w in model.parameters() if w.ndim <= 1], "weight_decay": 0.0},
    ]
    rate, steps = lesson.learning_rate, lesson.steps
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps, pct_start=0.1
    )
    loss_of = open_clip.ClipLoss()
    model.train()
    model.visual.train(not lesson.frozen)
    for _ in progress(range(steps), total=steps, what="teacher", unit="step"):
        scenes = draw_families(lesson.families, lesson.relatives, rng)
        drawn = _draw([*scenes, *scenes] if "picture" in lesson.near else scenes, rng)
        # bfloat16 makes the convolutions faster on a CPU, but not the text transformer.
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(not lesson.frozen):
            seen = functional.normalize(model.encode_image(drawn).float())
        pictures, *others = torch.split(seen, len(scenes))
        if "caption" in lesson.near:
            texts = _tokenize(tokenizer, [caption(scene, rng) for scene in scenes])
            others.append(model.encode_text(texts, normalize=True))
        scale = model.logit_scale.exp()
        optimiser.zero_grad()
        loss = torch.stack([loss_of(pictures, other, scale) for other in others]).sum()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=math.log(100))


def _draw(scenes: list[Scene], rng: np.random.Generator) -> Float[Tensor, "scenes 3 height width"]:
    pixels = np.stack([np.array(render(scene, rng)) for scene in scenes])
    scaled = (torch.from_numpy(pixels) / 255 - _MEAN_AND_STD) / _MEAN_AND_STD
    return scaled.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _tokenize(tokenizer: BertTokenizer, captions: list[str]) -> Int[Tensor, "captions context"]:
    padded = tokenizer(captions, padding="max_length", truncation=True, max_length=_CONTEXT)
    return torch.tensor(padded["input_ids"])


def save_teacher(model: open_clip.CLIP, tokenizer: BertTokenizer, folder: Path) -> None:
    """Write what `open_clip` loads as `local-dir:<folder>`: config, float16 weights, tokenizer."""
    write_json(folder / "open_clip_config.json", _config(len(tokenizer)))
    save_tokenizer(tokenizer, folder)
    save_half(model.state_dict(), folder / "open_clip_model.safetensors")
