"""The whole of params.yaml: one field a block, in the order of the pipeline."""

from pipeline.params.block import Block
from pipeline.params.download import DownloadParams
from pipeline.params.evaluate import EvaluateParams
from pipeline.params.features import FeaturesParams
from pipeline.params.index import IndexParams
from pipeline.params.loss import LossParams
from pipeline.params.student import StudentParams
from pipeline.params.teacher import TeacherParams
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
