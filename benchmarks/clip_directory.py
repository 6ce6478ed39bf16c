"""A CLIP of ViT-B/32's size with random weights, as a transformers directory."""

import json
from pathlib import Path

import torch
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

_NAMES = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
"""What transformers calls the tokens that open_clip names otherwise."""


def save_random_clip(folder: Path) -> Path:
    """Write model, tokenizer (CLIP's own vocabulary) and image processor; returns the folder."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    words = SimpleTokenizer()
    vocabulary = {_NAMES.get(word, word): number for word, number in words.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = [" ".join(pair) for pair in sorted(words.bpe_ranks, key=words.bpe_ranks.__getitem__)]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    config = CLIPConfig(
        text_config={"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return folder
