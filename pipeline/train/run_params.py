"""The blocks of params.yaml that training reads, the loss as its objective has it."""

from dataclasses import dataclass

from pipeline.params.loss import LossParams
from pipeline.params.student import StudentParams
from pipeline.params.train import TrainParams


@dataclass(frozen=True)
class RunParams:
    """What one configuration of training depends on besides its data and its seed.

    `loss` becomes what `train.objective` makes of it, all special cases of kdmcse: mcse is the
    text and image losses without margins or filter (arXiv 2204.10931); simcse is the text loss
    alone, without its margin. Positives, similarity rows and consistency stay as they are set.
    """

    student: StudentParams
    loss: LossParams
    train: TrainParams

    def __post_init__(self) -> None:
        if (objective := self.train.objective) == "kdmcse":
            return
        changes = {
            "margin_kind": "none",
            "text_margin": 0.0,
            "terms": ["image"] if objective == "mcse" else [],
            "filter": self.loss.filter.model_copy(update={"kind": "none"}),
        }
        object.__setattr__(self, "loss", self.loss.model_copy(update=changes))
