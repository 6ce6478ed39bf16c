"""Without padding: the vectors and gradients of the padded batch, or the padded batch itself."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.core.errors import ParamsError
from pipeline.params.train import TrainParams
from pipeline.student.encoder import SentenceEncoder, Tokens, run_padded
from pipeline.train.unpadded import Unpadded, choose_unpadded, leave_out_padding
from tests.conftest import read_default_params

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
DISTILLED = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
NAMES = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "Electra": {**SIZES, "embedding_size": 32},
    "DistilBert": {**DISTILLED, "max_position_embeddings": 64},
    "MPNet": SIZES,
}
"""Kinds of encoder, all with random weights."""


def train_params(changes: dict) -> TrainParams:
    return TrainParams.model_validate(read_default_params()["train"] | changes)


def make_encoder(kind: str, *, dropout: float = 0.0) -> SentenceEncoder:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(read_default_params()["student"]["encoder"])
    rates = (
        {"dropout": 0.0, "attention_dropout": dropout}
        if kind == "DistilBert"
        else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": dropout}
    )
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **NAMES[kind], **rates
    )
    backbone = getattr(transformers, f"{kind}Model")(config)
    return SentenceEncoder(backbone, tokenizer, "mean").train()


def draw_tokens(encoder: SentenceEncoder, lengths: list[int], seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.where(mask, rng.integers(5, len(encoder.tokenizer), mask.shape), 0)
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
    }


def vectors_and_gradients(encoder: SentenceEncoder, tokens: Tokens) -> list[torch.Tensor]:
    encoder.zero_grad()
    vectors = encoder(tokens)
    (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    return [vectors, *(p.grad for p in encoder.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra", "DistilBert"])
@pytest.mark.parametrize("dropout", [0.0, 1e-5])
def test_vectors_and_gradients_are_those_of_the_padded_batch(kind, dropout):
    """Dropout of 1e-5 takes the way of any dropout, and drops nothing of a batch so small."""
    encoder = make_encoder(kind, dropout=dropout)
    tokens = draw_tokens(encoder, [1, 7, 3, 12, 12, 2])
    expected = vectors_and_gradients(encoder, tokens)
    assert leave_out_padding(encoder)
    torch.manual_seed(1)
    given = vectors_and_gradients(encoder, tokens)
    assert isinstance(encoder.run_backbone, Unpadded)
    assert len(given) == len(expected)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


BERTS = {unpads: make_encoder("Bert") for unpads in (False, True)}


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(0, 1000))
def test_any_lengths_give_the_vectors_of_the_padded_batch(lengths, seed):
    assert isinstance(BERTS[True].run_backbone, Unpadded) or leave_out_padding(BERTS[True])
    tokens = draw_tokens(BERTS[False], lengths, seed)
    torch.testing.assert_close(BERTS[True](tokens), BERTS[False](tokens), rtol=1e-4, atol=1e-5)


def test_padding_is_not_computed():
    """But for what makes the rows a multiple of 64."""
    encoder = make_encoder("Bert")
    assert leave_out_padding(encoder)
    rows: list[int] = []
    encoder.backbone.encoder.layer[0].intermediate.register_forward_hook(
        lambda _module, inputs, _output: rows.append(inputs[0].shape[:-1].numel())
    )
    encoder(draw_tokens(encoder, [*range(1, 12), 40]))
    encoder(draw_tokens(encoder, [32, 32]))
    encoder(draw_tokens(encoder, [1, 9, 4]))
    encoder.eval()(draw_tokens(encoder, [*range(1, 12), 40]))
    assert rows == [128, 64, 27, 12 * 40], "in training the tokens, outside of it the padded batch"


def test_an_encoder_that_would_give_other_vectors_stays_as_it_is():
    """MPNet finds its attention and positions by itself."""
    encoder = make_encoder("MPNet")
    tokens = draw_tokens(encoder, [3, 8])
    expected = vectors_and_gradients(encoder, tokens)
    assert not leave_out_padding(encoder)
    assert encoder.run_backbone is run_padded
    assert encoder.training
    for one, other in zip(vectors_and_gradients(encoder, tokens), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_params_choose():
    chosen = {
        (unpad, compiled): choose_unpadded(
            make_encoder("Bert"),
            train_params({"unpad": unpad, "compile": compiled}),
        )
        for unpad in ("auto", True, False)
        for compiled in (False, True)
    }
    assert [key for key, value in chosen.items() if value] == [
        ("auto", False),
        (True, False),
        (True, True),
    ]
    params = train_params({"unpad": True})
    with pytest.raises(ParamsError, match="without padding"):
        choose_unpadded(make_encoder("MPNet"), params)
    assert not choose_unpadded(make_encoder("MPNet"), train_params({}))


def test_a_saved_model_does_not_know_of_it(tmp_path):
    encoder = make_encoder("Bert")
    encoder.backbone.save_pretrained(tmp_path / "before")
    leave_out_padding(encoder)
    encoder.backbone.save_pretrained(tmp_path / "after")
    configs = [(tmp_path / name / "config.json").read_text() for name in ("before", "after")]
    assert configs[0] == configs[1]
