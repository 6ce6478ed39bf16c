"""A step on a GPU never waits: it asks for nothing that the host would have to read back."""

import pytest
import torch
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.features.teacher_rows import TeacherBatch
from pipeline.params.schema import Params
from pipeline.student.encoder import GroundingHeads
from pipeline.train import unpadded
from pipeline.train.curves import Curves
from pipeline.train.gradients import Batch, add_gradients
from pipeline.train.objective import Distillation
from pipeline.train.unpadded import take_masks_unseen
from tests.conftest import merge, read_default_params
from tests.train.test_unpadded import draw_tokens, make_encoder

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2")
"""Operators whose result, or its shape, the host must know."""
FILTERS = {"none": 0.0, "cosine": 0.9, "dot": 2.0, "percentile": 80.0}


class Waits(TorchDispatchMode):
    """Notes every operator for which a host would wait until a GPU has come to it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        by_mask = name.startswith("index") and any(
            one.dtype in {torch.bool, torch.uint8}
            for group in args
            if isinstance(group, list | tuple)
            for one in group
            if isinstance(one, torch.Tensor)
        )
        if name in READS or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the CPU for a GPU where the code asks."""
    monkeypatch.setattr(unpadded, "_SHARES_MEMORY", set())


def distillation(encoder, kind: str) -> Distillation:
    changes = {"loss": {"filter": {"kind": kind, "threshold": FILTERS[kind]}}}
    loss = Params.model_validate(merge(read_default_params(), changes)).loss
    return Distillation(encoder, GroundingHeads(encoder.dim, 8, 4), loss).train()


def take_step(model: Distillation, tokens, teacher, optimiser, curves: Curves) -> None:
    batch = Batch([tokens] * 2, teacher and [teacher] * 2)
    curves.add([add_gradients(model, batch)])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


def test_what_waits_is_noticed():
    values = torch.arange(4.0)
    for wait in (
        lambda: bool(values.all()),
        lambda: values[values > 1],
        lambda: float(values[0]),
        values.nonzero,
    ):
        with Waits() as waits:
            wait()
        assert waits.seen


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("is_paired", [False, True])
def test_a_step_never_waits(kind, is_paired, on_gpu):
    encoder = make_encoder("Bert", dropout=0.1)
    model, tokens = distillation(encoder, kind), draw_tokens(encoder, [5, 9, 3, 9])
    assert take_masks_unseen(encoder)
    optimiser = AdamW(model.parameters(), lr=1e-3, fused=True)
    teacher = TeacherBatch(torch.randn(4, 8), torch.randn(4, 8)) if is_paired else None
    with Waits() as waits:
        take_step(model, tokens, teacher, optimiser, Curves())
    assert not waits.seen


def test_transformers_itself_looks_at_the_mask(on_gpu):
    """So that the way around it is there for a reason."""
    encoder = make_encoder("Bert")
    with Waits() as waits:
        encoder(draw_tokens(encoder, [5, 9]))
    assert waits.seen


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra", "DistilBert", "MPNet"])
@pytest.mark.parametrize("lengths", [[5, 9, 3], [9, 9, 9]])
def test_masks_taken_unseen_change_nothing(kind, lengths, on_gpu):
    encoder = make_encoder(kind)
    tokens = draw_tokens(encoder, lengths)
    expected = encoder(tokens)
    taken = take_masks_unseen(encoder)
    assert taken == (kind != "MPNet")
    torch.testing.assert_close(encoder(tokens), expected)
