"""Fast dropout is dropout: its share, its scale, its gradient, and independent draws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2_contingency
from torch import nn

from pipeline.train.dropout import FastDropout, drop, replace_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 3e-5])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_share_dropped_and_the_mean_are_those_of_dropout(p, kind):
    torch.manual_seed(0)
    dropped = drop(torch.ones(400_000, dtype=kind), p)
    zeros = int((dropped == 0).sum())
    assert binomtest(zeros, dropped.numel(), p).pvalue > 1e-3
    scaled = torch.full((dropped.numel() - zeros,), 1 / (1 - p), dtype=kind)
    torch.testing.assert_close(dropped[dropped != 0], scaled, rtol=1e-4, atol=0)


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_a_value_is_dropped_or_scaled_and_so_is_its_gradient(shape, p, seed):
    torch.manual_seed(seed)
    values = torch.randn(shape, dtype=torch.float64).abs().add(0.1).requires_grad_()
    dropped = drop(values, p)
    dropped.sum().backward()
    scale = dropped.detach() / values.detach()
    torch.testing.assert_close(scale, values.grad)
    kept = scale[scale != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, kept[0] if len(kept) else 0.0))
    if len(kept):
        assert kept[0] * (1 - p) == pytest.approx(1, rel=1e-4, abs=1 / 65_536 / max(1 - p, 1e-9))


def test_the_four_draws_of_a_number_are_independent():
    torch.manual_seed(1)
    zeros = (drop(torch.ones(200_000, 4), 0.3) == 0).numpy()
    for first in range(4):
        for second in range(first):
            table = np.histogram2d(zeros[:, first], zeros[:, second], bins=2)[0]
            assert chi2_contingency(table).pvalue > 1e-3


def test_another_call_draws_anew_and_a_seed_repeats_it():
    values = torch.ones(1000)
    torch.manual_seed(2)
    first, second = drop(values, 0.5), drop(values, 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(2)
    assert torch.equal(first, drop(values, 0.5))


def test_every_dropout_of_a_model_is_replaced_and_rests_outside_training():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.2)))
    replace_dropout(model)
    found = [module.p for module in model.modules() if isinstance(module, FastDropout)]
    assert found == [0.5, 0.2]
    assert type(model[1]) is type(model[2][0]) is FastDropout
    values = torch.randn(50, 3)
    torch.testing.assert_close(model.eval()(values), model[0](values))
    assert (model.train()(values) == 0).any()
