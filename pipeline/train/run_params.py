"""The blocks of params.yaml that training reads."""

from dataclasses import dataclass

from pipeline.params.loss import LossParams
from pipeline.params.student import StudentParams
from pipeline.params.train import TrainParams


@dataclass(frozen=True)
class RunParams:
    """What one configuration of training depends on besides its data and its seed."""

    student: StudentParams
    loss: LossParams
    train: TrainParams
