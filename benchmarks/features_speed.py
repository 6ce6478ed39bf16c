"""Teacher features: ours against a plain loop and sentence-transformers, side by side in one run.

    python benchmarks/features_speed.py --json       {"images": ratio, "captions": ratio, ...}

A ratio is the time of the other over ours, on the same images, captions and weights, each system in
a process of its own, in turn, round by round; it is the median over the rounds of the ratio within
a round. `images` and `captions` compare with (a) a plain loop over open_clip with a DataLoader;
`sentence_transformers` with (b) its `encode`, on a CLIP of ViT-B/32's size with random weights that
both load from the same folder. `read` is how fast a file of COCO's size comes into memory.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.clip_directory import save_random_clip
from pipeline.core.device import keep_freed_memory
from pipeline.features.identity import TeacherIdentity
from pipeline.features.store import Features, read_features, write_features
from pipeline.params.teacher import TeacherParams

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
COCO = (414_000, 768)
"""Rows and width of a feature file of COCO's training captions."""

Seconds = tuple[float, float]


@dataclass(frozen=True)
class Race:
    """What every system is timed on."""

    archive: Path
    texts: Path
    images: int
    captions: int
    rounds: int

    def run(self, systems: list[str], model: str) -> dict[str, list[Seconds]]:
        """Seconds of each system for images and captions, round by round; the order turns."""
        seconds: dict[str, list[Seconds]] = {system: [] for system in systems}
        for turn in range(self.rounds):
            first = turn % len(systems)
            for system in systems[first:] + systems[:first]:
                seconds[system].append(self._time(system, model))
        return seconds

    def _time(self, system: str, model: str) -> Seconds:
        """One system in a process of its own."""
        files = (str(self.archive), str(self.texts))
        output = run(
            "plain_features.py", system, model, *files, str(self.images), str(self.captions)
        )
        images, captions = json.loads(output.splitlines()[-1])
        return images, captions

    def compare(self, seconds: dict[str, list[Seconds]], other: str) -> dict[str, Any]:
        """Ratios of `other` to ours, with their range, and the rates of every system."""
        result: dict[str, Any] = {}
        for place, what in enumerate(("images", "captions")):
            pairs = zip(seconds[other], seconds["ours"], strict=True)
            ratios = [theirs[place] / ours[place] for theirs, ours in pairs]
            result[what] = round(statistics.median(ratios), 2)
            result[f"{what}_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
            result[f"{what}_per_second"] = {
                system: round(getattr(self, what) / statistics.median(t[place] for t in times), 1)
                for system, times in seconds.items()
            }
        return result


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print on one line.")] = False,
    teacher: str = f"local-dir:{SHARED / 'models' / 'flickr8k-clip'}",
    mirror: Path = SHARED / "mirror",
    images: int = 1024,
    captions: int = 4096,
    rounds: int = 5,
    clip: Annotated[bool, typer.Option(help="Compare with sentence-transformers too.")] = True,
) -> None:
    """Time all systems, and print the ratios."""
    with tempfile.TemporaryDirectory() as name:
        texts = write_captions(Path(name) / "captions.txt", mirror / "caption_datasets.zip")
        race = Race(mirror / "Flickr8k_Dataset.zip", texts, images, captions, rounds)
        seconds = {"open_clip": race.run(["ours", "ours_bf16", "open_clip"], teacher)}
        result = race.compare(seconds["open_clip"], "open_clip")
        if clip:
            model = f"transformers:{save_random_clip(Path(name) / 'clip')}"
            few = replace(race, images=images // 8, captions=captions // 4)
            seconds["sentence_transformers"] = few.run(["ours", "sentence_transformers"], model)
            result["sentence_transformers"] = few.compare(
                seconds["sentence_transformers"], "sentence_transformers"
            )
        result["read"] = time_reading(Path(name) / "features.h5", rounds)
    typer.echo(json.dumps(result | {"seconds": seconds}, indent=None if as_json else 2))


def write_captions(path: Path, splits: Path) -> Path:
    """The captions of Flickr8k, one a line."""
    with zipfile.ZipFile(splits) as file:
        content = json.loads(file.read("dataset_flickr8k.json"))
    raw = [one["raw"] for image in content["images"] for one in image["sentences"]]
    path.write_text("\n".join(" ".join(text.split()) for text in raw) + "\n", encoding="utf-8")
    return path


def run(script: str, *arguments: str) -> str:
    """What a script of this folder prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    quiet = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=quiet)  # noqa: S603
    return done.stdout


def time_reading(path: Path, rounds: int) -> dict[str, Any]:
    """GB/s of reading a file of COCO's size, in fresh processes; the page cache holds it."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 0x7000, COCO, dtype=np.uint16).view(np.float16)
    ids = np.arange(len(rows))
    fields = dict.fromkeys(TeacherIdentity.__dataclass_fields__, "x")
    identity = TeacherIdentity(**fields | {"source": ""})
    write_features(path, Features(rows[:1], ids[:1], rows, ids, ids * 0), identity, "corpus")
    rates = [float(run("features_speed.py", "read", str(path))) for _ in range(rounds)]
    return {
        "gb_per_second": round(statistics.median(rates), 2),
        "range": [round(min(rates), 2), round(max(rates), 2)],
    }


def read_once(path: Path) -> float:
    """GB/s of one reading in this process."""
    keep_freed_memory()
    started = time.perf_counter()
    features = read_features(path, TeacherParams(model="x", pretrained="x"), "corpus")
    return features.captions[:].nbytes / 1e9 / (time.perf_counter() - started)


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        print(read_once(Path(sys.argv[2])))
    else:
        typer.run(main)
