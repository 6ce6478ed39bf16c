"""Models with random weights, and made-up texts, features and pictures."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
)

from pipeline.features.rows import Features
from pipeline.features.teacher_rows import SplitPairs
from pipeline.params.loss import LossParams
from pipeline.params.student import StudentParams
from pipeline.params.train import TrainParams
from pipeline.train.batches import TrainingData
from pipeline.train.run_params import RunParams

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 32
"""Tokens that training cuts a sentence to."""
TEACHER_DIM = 768
TEXT_LENGTHS, CAPTION_LENGTHS = (10, 44), (8, 24)
"""Words of a sentence: from, to below. With both ends cut at 32 tokens, a fifth of a batch of text
and more of one of captions is padding, as in Wikipedia's sentences and Flickr30k's captions."""
NO_PAIRS = 10**9
TINY_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
VISION = {
    "ViT-B/32": ({"patch_size": 32}, {}, 512),
    "ViT-L/14": (
        {
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        768,
    ),
}
"""Settings of the image and text towers, and the width of the features."""
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def make_tokenizer(words: int, longest: int) -> PreTrainedTokenizerFast:
    """Of the words w0, w1, ..., each a token, between [CLS] and [SEP]."""
    names = [*_SPECIAL, *(f"w{number}" for number in range(words - len(_SPECIAL)))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=longest,
        pad_token="[PAD]",  # noqa: S106  # no password
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
        bos_token="[CLS]",  # noqa: S106
        eos_token="[SEP]",  # noqa: S106
    )


def save_bert(folder: Path, *, tiny: bool, **config: Any) -> str:
    """A BERT with random weights, of base size unless it is to be tiny."""
    torch.manual_seed(0)
    words = 200 if tiny else 30_522
    settings = BertConfig(vocab_size=words, pad_token_id=0, **(TINY_BERT if tiny else {}), **config)
    BertModel(settings).save_pretrained(folder)
    make_tokenizer(words, 512).save_pretrained(folder)
    return str(folder)


def save_clip(folder: Path, name: str, *, tiny: bool) -> str:
    """A CLIP of transformers with random weights; needs Pillow and torchvision."""
    from transformers import CLIPImageProcessor

    vision, text, width = VISION[name]
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    words = 200 if tiny else 49_408
    tokens = {"vocab_size": words, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**text, **tokens, **(small if tiny else {})},
        vision_config={**vision, **(small if tiny else {})},
        projection_dim=width,
    )
    CLIPModel(config).save_pretrained(folder)
    make_tokenizer(words, 77).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return f"transformers:{folder}"


def draw_sentences(count: int, lengths: tuple[int, int], *, tiny: bool, seed: int = 0) -> list[str]:
    """Sentences of random words."""
    rng = np.random.default_rng(seed)
    most = 196 if tiny else 30_000
    sizes = rng.integers(*lengths, count)
    words = np.char.add("w", rng.integers(0, most, sizes.sum()).astype(str))
    return [" ".join(part) for part in np.split(words, np.cumsum(sizes)[:-1])]


def draw_data(sentences: int, pairs: int, *, tiny: bool) -> TrainingData:
    """Both streams, with features drawn at random; one caption a picture."""
    rng = np.random.default_rng(1)
    images, captions = (
        rng.standard_normal((pairs, TEACHER_DIM)).astype(np.float16) for _ in range(2)
    )
    rows = np.arange(pairs)
    features = Features(images, rows, captions, rows, rows)
    texts = draw_sentences(pairs, CAPTION_LENGTHS, tiny=tiny, seed=2)
    return TrainingData(
        draw_sentences(sentences, TEXT_LENGTHS, tiny=tiny),
        SplitPairs(texts, rows, rows, features),
    )


def run_params(encoder: str, changes: Mapping[str, Any]) -> RunParams:
    """The paper's run of kdmcse, with `train` keys over it; the rest is params.yaml's."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    loss = content["loss"] | {
        "positives": "dropout",
        "grounding_weight": 0.01,
        "distillation": {"weight": 0.0},
    }
    student = content["student"] | {
        "encoder": encoder,
        "pooling": "cls",
        "max_length": LONGEST,
        "grounding_dim": 256,
    }
    train = (
        content["train"]
        | {"objective": "kdmcse", "pair_every": 6, "report_to": [], "head_learning_rate": None}
        | changes
    )
    return RunParams(
        StudentParams.model_validate(student),
        LossParams.model_validate(loss | {"margin_kind": "adaptive"}),
        TrainParams.model_validate(train),
    )


def draw_pictures(side: int, count: int) -> Iterator[bytes]:
    """JPEG files, all different: a few pictures, with a number behind the end of each."""
    from PIL import Image

    rng = np.random.default_rng(side)
    drawn = []
    for _ in range(min(count, 32)):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        picture = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-12, 13, picture.shape, np.int16)
        stream = io.BytesIO()
        Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8)).save(
            stream, "JPEG", quality=90
        )
        drawn.append(stream.getvalue())
    for number in range(count):
        yield drawn[number % len(drawn)] + number.to_bytes(4, "little")


def pack_pictures(path: Path, side: int, count: int) -> list[str]:
    """A zip of pictures; returns their names."""
    names = [f"{number}.jpg" for number in range(count)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, content in zip(names, draw_pictures(side, count), strict=True):
            file.writestr(name, content)
    return names
