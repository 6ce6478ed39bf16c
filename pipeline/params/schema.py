"""The whole of params.yaml: one field a block, in the order of the pipeline."""

from typing import Any

from pydantic import model_validator

from pipeline.params.block import NUMBER_TEXT, Block
from pipeline.params.download import DownloadParams
from pipeline.params.evaluate import EvaluateParams
from pipeline.params.features import FeaturesParams
from pipeline.params.index import IndexParams
from pipeline.params.loss import LossParams
from pipeline.params.student import StudentParams
from pipeline.params.teacher import IMPORTED_PREFIX, TeacherParams
from pipeline.params.train import TrainParams


class Params(Block):
    """All blocks; every stage checks the whole file, so that all faults come at once."""

    download: DownloadParams = DownloadParams()
    teacher: TeacherParams = TeacherParams()
    features: FeaturesParams = FeaturesParams()
    student: StudentParams = StudentParams()
    loss: LossParams = LossParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    index: IndexParams = IndexParams()

    @model_validator(mode="after")
    def _text_is_there(self) -> "Params":
        if self.download.text == "none" and self.train.pair_every not in {"auto", 1}:
            msg = "download.text none has no text-only steps; set train.pair_every to 1"
            raise ValueError(msg)
        if self.download.text == "none" and "sentences" in self.index.items:
            msg = "download.text none has no sentences; take them out of index.items"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _rows_have_a_teacher(self) -> "Params":
        rows, consistency = self.loss.distillation, self.loss.consistency
        if rows.weight and rows.target == "text" and not self.teacher.text.encoders:
            msg = "loss.distillation.target text needs encoders in teacher.text.encoders"
            raise ValueError(msg)
        is_grounded = rows.cross_weight or (consistency.weight and consistency.kind == "pairs")
        if self.train.objective == "simcse" and is_grounded:
            msg = (
                "train.objective simcse has no use for loss.distillation.cross_weight and for "
                "loss.consistency.kind pairs, which compare sentences with pictures"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _evaluation_is_there(self) -> "Params":
        scored = self.evaluate
        if self.download.evaluation == "mteb-sts" and (
            scored.convention != "mteb" or "transfer" in scored.tasks
        ):
            msg = (
                "download.evaluation mteb-sts has STS tasks alone, as mteb scores them: it needs "
                "evaluate.convention mteb, and evaluate.tasks without transfer"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _import_has_a_teacher(self) -> "Params":
        if bool(self.features.import_.images) != self.teacher.is_imported:
            msg = (
                f"features.import.images and a teacher.model that begins with {IMPORTED_PREFIX} go "
                f"together: name the model that made the vectors, such as "
                f"{IMPORTED_PREFIX}ViT-L-14, or set both keys of the vectors to null"
            )
            raise ValueError(msg)
        return self


def params_schema() -> dict[str, Any]:
    """The blocks as JSON schema (draft 2020-12), by which editors check and explain every key.

    It refuses no file that the pipeline reads. Rules over several keys, such as the threshold of a
    kind of filter, are only checked by the pipeline.
    """
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **_tidy(Params.model_json_schema()), "title": "params.yaml"}


def _tidy(node: Any) -> Any:
    """A part of pydantic's schema in the words of params.yaml, whose blocks name every key."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {key: _tidy(value) for key, value in node.items() if not _is_noise(node, key)}
    if isinstance(tidy.get("description"), str):
        tidy["description"] = " ".join(tidy["description"].split())
    if "properties" in tidy:
        tidy["required"] = list(tidy["properties"])
    if tidy.get("type") != "number":
        return tidy
    about = {key: tidy.pop(key) for key in ("default", "description") if key in tidy}
    number = {"type": "string", "pattern": f"^{NUMBER_TEXT}$"}  # `1e-5` is text in YAML 1.1
    return {"anyOf": [tidy, number], **about}


def _is_noise(node: dict[str, Any], key: str) -> bool:
    """Titles repeat the key, defaults of blocks those of their keys."""
    return (key == "title" and isinstance(node[key], str)) or (key == "default" and "$ref" in node)
