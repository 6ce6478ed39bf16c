"""Teachers of random weights, small enough to make in a test, in the folders of both libraries."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from pipeline.features.identity import TeacherIdentity

IDENTITY = TeacherIdentity(
    model="ViT-B-32",
    pretrained="openai",
    source="",
    architecture="a" * 64,
    weights="w" * 64,
    preprocessing="Resize",
    tokenizer="t" * 64,
    library="open_clip 3",
    dtype="float32",
)
CONTEXT = 16
SIDE = 32
VISION = {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
WORDS = ["[PAD]", "[UNK]", "<s>", "</s>", "a", "cat", "dog", "and", "the", "of", "photo", "two"]


def save_open_clip(
    folder: Path, *, text: dict | None = None, preprocess: dict | None = None, **cfg: Any
) -> str:
    """Write a random open_clip model; equal arguments give equal weights. Returns its name."""
    model_cfg = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT | (text or {}), **cfg}
    kind = open_clip.CustomTextCLIP if cfg.get("custom_text") else open_clip.CLIP
    torch.manual_seed(0)
    model = kind(**{key: value for key, value in model_cfg.items() if key != "custom_text"})
    for name, weight in model.named_parameters():
        if name.endswith(("bias", "gamma")):
            torch.nn.init.normal_(weight, std=0.2)  # fresh ones are 0 or 1, and hide mistakes
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": model_cfg, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def make_tokenizer(*, lower: bool = False) -> PreTrainedTokenizerFast:
    """Words as tokens, between <s> and </s>."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=WORDS[1]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lower:
        core.normalizer = normalizers.Lowercase()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=CONTEXT,
        **dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), WORDS, strict=False)),
    )


def save_clip(folder: Path, *, eos: int = 3, heads: int = 4, act: str = "quick_gelu") -> str:
    """Write a random CLIP of transformers, whole; returns its folder."""
    config = CLIPConfig(
        text_config=_text(eos_token_id=eos, num_attention_heads=heads, hidden_act=act),
        vision_config=_vision(),
        projection_dim=24,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    crop = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop).save_pretrained(folder)
    return str(folder)


def save_siglip(folder: Path) -> str:
    """Write a random SigLIP of transformers, whole; returns its folder."""
    config = SiglipConfig(text_config=_text(projection_size=32), vision_config=_vision())
    torch.manual_seed(0)
    SiglipModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


def _text(**more: Any) -> dict[str, Any]:
    return _layers() | {
        "vocab_size": len(WORDS),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
        **more,
    }


def _vision() -> dict[str, Any]:
    return _layers() | {"image_size": SIDE, "patch_size": 8}


def _layers() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
