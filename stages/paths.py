"""Where the artefacts are: the defaults of all commands; a test compares them with dvc.yaml."""

from pathlib import Path

from pipeline.params.schema import Params

DATA = Path("data")
REPORTS = Path("reports")

DOWNLOADS = DATA / "downloads"
PAIRS = DATA / "pairs"
TEXT = DATA / "text"
EVALUATION = DATA / "evaluation"
FEATURES = DATA / "features.h5"
STORE = DATA / "store"
MODELS = DATA / "models"
CHECKPOINTS = DATA / "checkpoints"
CHECKPOINTS_VARIABLE = "KDMCSE_CHECKPOINTS"
STORE_VARIABLE = "KDMCSE_STORE"
TOKENS = DATA / "tokens"
TOKENS_VARIABLE = "KDMCSE_TOKENS"
VECTORS = DATA / "vectors"
VECTORS_VARIABLE = "KDMCSE_VECTORS"
DOWNLOADS_VARIABLE = "KDMCSE_DOWNLOADS"
KEPT = {
    DOWNLOADS_VARIABLE: DOWNLOADS,
    CHECKPOINTS_VARIABLE: CHECKPOINTS,
    STORE_VARIABLE: STORE,
    TOKENS_VARIABLE: TOKENS,
    VECTORS_VARIABLE: VECTORS,
}
"""Folders that stages keep between runs outside of DVC, by the variable that moves them."""
TRACKING = DATA / "tracking"
INDEX = DATA / "index"
TRAIN_REPORTS = REPORTS / "train"
EVALUATE_REPORTS = REPORTS / "evaluate"
OTHER_REPORTS = REPORTS / "others"
SUMMARY = REPORTS / "summary.json"


def first_model(params: Params) -> Path:
    """The student that is indexed and searched with: that of the first seed."""
    return model(params.train.seeds[0])


def model(seed: int) -> Path:
    """The student of one seed."""
    return MODELS / str(seed)
