"""Where the artefacts are: the defaults of all commands; a test compares them with dvc.yaml."""

from pathlib import Path

from pipeline.params.schema import Params

DATA = Path("data")
REPORTS = Path("reports")

PAIRS = DATA / "pairs"
TEXT = DATA / "text"
EVALUATION = DATA / "evaluation"
FEATURES = DATA / "features.h5"
MODELS = DATA / "models"
TRACKING = DATA / "tracking"
INDEX = DATA / "index"
TRAIN_REPORTS = REPORTS / "train"
EVALUATE_REPORTS = REPORTS / "evaluate"
OTHER_REPORTS = REPORTS / "others"
MTEB_RESULTS = REPORTS / "mteb"
SUMMARY = REPORTS / "summary.json"

DOWNLOADS, DOWNLOADS_VARIABLE = DATA / "downloads", "KDMCSE_DOWNLOADS"
CHECKPOINTS, CHECKPOINTS_VARIABLE = DATA / "checkpoints", "KDMCSE_CHECKPOINTS"
STORE, STORE_VARIABLE = DATA / "store", "KDMCSE_STORE"
TOKENS, TOKENS_VARIABLE = DATA / "tokens", "KDMCSE_TOKENS"
VECTORS, VECTORS_VARIABLE = DATA / "vectors", "KDMCSE_VECTORS"
KEPT = {
    DOWNLOADS_VARIABLE: DOWNLOADS,
    CHECKPOINTS_VARIABLE: CHECKPOINTS,
    STORE_VARIABLE: STORE,
    TOKENS_VARIABLE: TOKENS,
    VECTORS_VARIABLE: VECTORS,
}
"""Folders that stages keep between runs outside of DVC, by the variable that moves them."""


def first_model(params: Params) -> Path:
    """The student that is indexed and searched with: that of the first seed."""
    return model(params.train.seeds[0])


def model(seed: int) -> Path:
    """The student of one seed."""
    return MODELS / str(seed)
