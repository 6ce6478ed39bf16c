"""AdapACSE as a loss of sentence-transformers."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.params.loss import Gate
from pipeline.train.losses import adap_acse_loss, cosines


class AdapACSELoss(nn.Module):
    """Contrastive loss whose negatives get an angular margin by how unlike a teacher finds them.

    Sentence i and candidate j != i get the margin `margin` * (1 - alpha_ij), where alpha_ij is the
    cosine of the teacher's features of samples i and j; see `pipeline.adap_acse_loss`. It plugs
    into `SentenceTransformerTrainer`, alone or within `MatryoshkaLoss`.

    Inputs, in the order of the data set's columns:

        texts                  labels
        anchor, positive       as below; the positives of other anchors are the negatives
        sentence               as below; its second view differs by dropout (SimCSE)

        labels, with `teacher`      row numbers in it, (B,); or (B, 2) for anchor and positive
        labels, without `teacher`   the teacher's features, (B, D); or (B, 2, D)
        no labels                   every negative gets the whole margin

    Row numbers are the better choice: a data set holds one number a row instead of D, and
    `MatryoshkaLoss` shortens labels that are as wide as the model's embeddings, which is refused.

    Args:
        model: the `SentenceTransformer` that is trained.
        teacher: (N, D), features of any scale, such as `CachedTeacher.encode_captions` gives.
        margin: at alpha = 0, radians, 0 to below pi.
        temperature: divides cosines, above 0.
        gate: which negatives get their margin; see `pipeline.adap_acse_loss`.

    Source: AdapACSE, arXiv 2403.17486, section 3.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Float[np.ndarray, "rows dim"] | Float[Tensor, "rows dim"] | None = None,
        *,
        margin: float = 0.15,
        temperature: float = 0.05,
        gate: Gate = "margin",
    ) -> None:
        super().__init__()
        self.model = model
        self.margin = margin
        self.temperature = temperature
        self.gate: Gate = gate
        self.teacher: Tensor | None
        features = None if teacher is None else torch.as_tensor(teacher)
        self.register_buffer("teacher", features, persistent=False)

    def forward(
        self, sentence_features: Iterable[Mapping[str, Any]], labels: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch.

        Args:
            sentence_features: one or two columns of tokenised texts.
            labels: see the class.

        Raises:
            ValueError: there are more columns, or the labels have another form.
        """
        columns = list(sentence_features)
        if len(columns) not in {1, 2}:
            msg = f"AdapACSELoss takes one or two text columns, not {len(columns)}"
            raise ValueError(msg)
        if len(columns) == 1:
            columns.append(dict(columns[0]))  # the model writes its output into what it is given
        anchors, candidates = (self.model(column)["sentence_embedding"] for column in columns)
        return adap_acse_loss(
            anchors,
            candidates,
            self._teacher_cosine(labels, anchors),
            margin=self.margin,
            temperature=self.temperature,
            gate=self.gate,
        )

    def _teacher_cosine(
        self, labels: Tensor | None, anchors: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch batch"]:
        if labels is None and self.teacher is None:
            return anchors.new_zeros(len(anchors), len(anchors), dtype=torch.float32)
        features = self._features(labels)
        first, second = features.unbind(1) if features.ndim == _OF_BOTH else (features, features)
        return cosines(first, second)

    def _features(self, labels: Tensor | None) -> Float[Tensor, "batch *both dim"]:
        if labels is None:
            msg = "AdapACSELoss with `teacher` needs labels: row numbers in it"
            raise ValueError(msg)
        if self.teacher is not None:
            return self.teacher[labels]
        if labels.ndim not in {_OF_BOTH - 1, _OF_BOTH} or not labels.is_floating_point():
            msg = f"labels are the teacher's features, (B, D) or (B, 2, D), not {labels.shape}"
            raise ValueError(msg)
        if not labels.is_contiguous():
            msg = (
                "MatryoshkaLoss shortened the labels because they are as wide as the model's "
                "embeddings; give AdapACSELoss `teacher` and label rows with their numbers in it"
            )
            raise ValueError(msg)
        return labels

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card of sentence-transformers says of the loss."""
        return {"margin": self.margin, "temperature": self.temperature, "gate": self.gate}


_OF_BOTH = 3
"""Axes of features of anchors and positives."""
