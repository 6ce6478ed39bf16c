"""The stages on real photos, captions, sentences and STS pairs, with real models."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.download.records import read_pairs, read_sts, write_pairs, write_sts
from tests.conftest import SHARED, invoke, write_params

REAL = {
    "download": {"pairs": "flickr8k", "text": "wiki1m", "evaluation": "senteval"},
    "teacher": {"model": f"local-dir:{SHARED}/models/flickr8k-clip"},
    "features": {"batch_size": 32},
    "student": {"encoder": str(SHARED / "models/minilm-l3"), "pooling": "mean"},
    "train": {"steps": 4, "batch_size": 16, "pair_every": 2, "evaluate_every": 4},
}


def run(stage: str, *arguments: str) -> str:
    result = invoke(stage, *arguments)
    assert result.exit_code == 0, (stage, result.output, result.exception)
    return result.stdout


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_stages_run_on_real_input(tmp_path: Path, monkeypatch):
    write_params(tmp_path, REAL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_MIRROR", str(SHARED / "mirror"))
    run("download")
    counts = json.loads(Path("reports/download.json").read_text())
    assert counts["pairs"]["as_published"] == counts["evaluation"]["as_published"] == 1
    assert (counts["pairs"]["images"], counts["pairs"]["captions"]) == (8_000, 40_000)
    keep_few_images(Path("data/pairs"), per_split={"train": 40, "test": 10})
    keep_few_dev_pairs(Path("data/evaluation"), 60)
    for stage in ("features", "train", "index"):
        run(stage)
    metrics = json.loads(Path("reports/features.json").read_text())
    assert (metrics["images"], metrics["captions"], metrics["rejected"]) == (50, 250, 0)
    hits = json.loads(run("search", "a dog runs through the grass"))["hits"]
    assert len(hits) == 10
    assert any("dog" in hit["text"].lower() for hit in hits)
    assert hits[0]["member"].startswith("Flicker8k_Dataset/")


def keep_few_images(folder: Path, per_split: dict[str, int]) -> None:
    pairs = read_pairs(folder)
    images = pd.concat(
        pairs.images[pairs.images["split"] == split].head(count)
        for split, count in per_split.items()
    )
    captions = pairs.captions[pairs.captions["image_id"].isin(images["image_id"])]
    write_pairs(folder, images, captions)


def keep_few_dev_pairs(folder: Path, count: int) -> None:
    table = read_sts(folder)
    dev = table[(table["task"] == "STS-B") & (table["split"] == "dev")]
    write_sts(folder, dev.head(count))
