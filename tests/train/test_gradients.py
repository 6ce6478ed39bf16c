"""The gradient in mini-batches, and over two processes, is that of the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.features.teacher_rows import TeacherBatch
from pipeline.params.schema import Params
from pipeline.student.encoder import GroundingHeads, SentenceEncoder
from pipeline.train.distributed import DistributedContext
from pipeline.train.gradients import Batch, add_gradients
from pipeline.train.objective import Distillation
from tests.conftest import ROOT, find_port, merge, read_default_params

SENTENCES = [
    f"a {size} {colour} {shape}"
    for size in ("small", "large")
    for colour in ("red", "blue")
    for shape in ("circle", "square above a green one")
]
TEACHER_DIM = 16
ALL = slice(None)


def make_model(**loss: object) -> Distillation:
    changes = {"loss": {"margin": 0.2, "text_margin": 0.1, **loss}}
    params = Params.model_validate(merge(read_default_params(), changes))
    torch.manual_seed(0)
    encoder = SentenceEncoder.load(str(ROOT / params.student.encoder), "mean")
    heads = GroundingHeads(encoder.dim, TEACHER_DIM, 8)
    return Distillation(encoder, heads, params.loss, (32,))


def make_batch(
    encoder: SentenceEncoder, mine: slice | list[int] = ALL, whole: slice | list[int] = ALL
) -> Batch:
    """Three views, of which the last one reads other captions.

    Args:
        encoder: tokenises.
        mine: the sentences that are encoded.
        whole: the samples that the loss reads.
    """
    rng = np.random.default_rng(0)
    size = (3, len(SENTENCES), TEACHER_DIM)
    images, captions, siblings = torch.from_numpy(rng.standard_normal(size).astype(np.float32))
    tokens = encoder.tokenize(SENTENCES)
    others = {key: value.flip(0) for key, value in tokens.items()}
    views = [{key: value[mine] for key, value in one.items()} for one in (tokens, tokens, others)]
    teacher = TeacherBatch(images[whole], captions[whole])
    return Batch(views, [teacher, teacher, TeacherBatch(images[whole], siblings[whole])])


def gradients(model: Distillation) -> dict[str, torch.Tensor]:
    found = {name: one.grad for name, one in model.named_parameters()}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("size", [1, 3])
def test_mini_batches_give_the_gradient_of_the_whole_batch(size):
    """Without dropout the two are the same sums; negatives come from all mini-batches."""
    one, other = make_model().eval(), make_model().eval()
    batch = make_batch(one.encoder)
    whole = add_gradients(one, batch, scale=0.5)
    parts = add_gradients(other, batch, scale=0.5, mini_batch_size=size)
    torch.testing.assert_close(whole.total, parts.total)
    expected, found = gradients(one), gradients(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_both_passes_of_a_mini_batch_have_the_same_dropout():
    """The gradient in mini-batches, with dropout, against finite differences of the same draws."""
    model = make_model().train()
    batch = make_batch(model.encoder)

    def loss() -> float:
        torch.manual_seed(5)
        model.zero_grad()
        return float(add_gradients(model, batch, mini_batch_size=3).total.detach())

    loss()
    weight = model.get_parameter("encoder.backbone.encoder.layer.0.output.dense.weight")
    assert weight.grad is not None
    gradient = weight.grad.clone()
    direction, step = gradient / gradient.norm(), 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step * direction
        values.append(loss())
        with torch.no_grad():
            weight -= sign * step * direction
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(float(gradient.norm()), rel=0.05)


def test_the_draws_after_a_batch_do_not_depend_on_mini_batches():
    """The second pass repeats the draws of the first, and the next batch draws new ones."""
    model = make_model().train()
    batch = make_batch(model.encoder)
    torch.manual_seed(1)
    with torch.no_grad():
        for start in (0, 4):
            some = [{k: v[start : start + 4] for k, v in view.items()} for view in batch.tokens]
            model.encode_views(some)
    expected = torch.get_rng_state()
    torch.manual_seed(1)
    add_gradients(model, batch, mini_batch_size=4)
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_share_is_a_stretch_of_the_batch():
    rows = np.arange(12)
    shares = [DistributedContext(3, rank, torch.device("cpu")).share(rows) for rank in range(3)]
    assert np.concatenate(shares).tolist() == rows.tolist()


CASES = {"whole": (True, None), "in mini-batches": (True, 3), "apart": (False, None)}
"""Whether negatives are gathered, and sentences encoded at a time."""
_SCRIPT = """
import sys, torch
from accelerate import PartialState
from pipeline.train.distributed import find_context
from pipeline.train.gradients import add_gradients
from tests.train.test_gradients import CASES, SENTENCES, gradients, make_batch, make_model

rows = list(range(len(SENTENCES)))
for name, (gathers, size) in CASES.items():
    context = find_context(len(SENTENCES), torch.device("cpu"), gathers=gathers)
    model = make_model().eval()
    batch = make_batch(model.encoder, context.share(rows), context.teacher_rows(rows))
    loss = add_gradients(model, batch, mini_batch_size=size, gather=context.gather)
    context.reduce_gradients(model)
    found = loss.total.detach(), gradients(model)
    torch.save(found, f"{sys.argv[1]}/{name}-{context.rank}.pt")
PartialState().destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Loss and gradients of two gloo processes, `CASE-RANK.pt`."""
    folder = tmp_path_factory.mktemp("two")
    port = str(find_port())
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                           "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
                           "PYTHONPATH": str(ROOT), "ACCELERATE_TORCH_DEVICE": "cpu"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(folder)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_gradient_of_one(folder, name):
    """Without gathering, each share is a batch of its own."""
    half, model = len(SENTENCES) // 2, make_model().eval()
    batches = [slice(0, half), slice(half, None)] if name == "apart" else [slice(None)]
    losses = [
        add_gradients(
            model,
            make_batch(model.encoder, rows, rows),
            scale=1 / len(batches),
        ).total.detach()
        for rows in batches
    ]
    expected = gradients(model)
    for rank in range(2):
        total, found = torch.load(folder / f"{name}-{rank}.pt")
        torch.testing.assert_close(total, losses[rank % len(losses)])
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
