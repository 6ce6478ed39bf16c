"""Where the artefacts are: the defaults of all commands, held against dvc.yaml by a test."""

from pathlib import Path

DATA = Path("data")
REPORTS = Path("reports")

DOWNLOADS = DATA / "downloads"
PAIRS = DATA / "pairs"
TEXT = DATA / "text"
EVALUATION = DATA / "evaluation"
FEATURES = DATA / "features.h5"
MODEL = DATA / "model"
INDEX = DATA / "index"
