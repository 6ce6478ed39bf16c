"""A stopped run resumes, and ends with the same bits."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline.core.errors import InterruptedRunError, ResourceError
from pipeline.student.encoder import SentenceEncoder
from pipeline.train import checkpoint
from pipeline.train.checkpoint import Checkpoint, run_fingerprint
from pipeline.train.loop import Training
from tests.train.test_loop import data as data  # noqa: PLC0414  # the fixture
from tests.train.test_loop import run_params, train, weights

STEPS = 9
SETTING = {"steps": STEPS, "evaluate_every": 4, "pair_every": 2, "batch_size": 8,
           "gradient_accumulation_steps": 2}  # fmt: skip


def rising(stop_at: int | None = None):
    """Dev scores that rise and fall; at the `stop_at`-th scoring SIGTERM arrives."""
    count = 0

    def score(encoder) -> dict[str, float]:
        nonlocal count
        count += 1
        if count == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        first = next(encoder.parameters()).detach().double()
        return {"sts_dev": float(first.abs().sum() % 1)}

    return score


def assert_same(one: Training, other: Training) -> None:
    assert one.metrics == other.metrics
    assert one.curves == other.curves
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


class StopAfter(Checkpoint):
    """Asks for a stop by a real signal after some steps, as a user would."""

    def __init__(self, folder: Path, steps: int, number: signal.Signals) -> None:
        super().__init__(folder, "run", every=1e9)
        self._left, self._number = steps, number

    def is_due(self) -> bool:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)
        return super().is_due()


@pytest.mark.parametrize(
    ("number", "steps"), [(signal.SIGTERM, 1), (signal.SIGINT, 4), (signal.SIGTERM, 9)]
)
@pytest.mark.integration
def test_a_stopped_run_ends_with_the_same_bits(data, tmp_path, steps, number):
    params = run_params(train=SETTING)
    whole, _ = train(data, params, rising())
    with pytest.raises(InterruptedRunError, match=rf"{number.name} after step \d+ of 9"):
        train(data, params, rising(), checkpoint=StopAfter(tmp_path, steps, number))
    kept = torch.load(tmp_path / "run.pt", weights_only=True)["step"]
    assert steps <= kept <= steps + 1
    again, _ = train(data, params, rising(), checkpoint=Checkpoint(tmp_path, "run", 1e9))
    assert_same(whole, again)


def test_without_a_checkpoint_a_signal_still_stops(data):
    with pytest.raises(InterruptedRunError, match="is lost"):
        train(data, run_params(train=SETTING), rising(stop_at=2))


@pytest.mark.slow
def test_saving_every_step_changes_nothing(data, tmp_path):
    params = run_params(train=SETTING, student={"matryoshka": [32]})
    whole, _ = train(data, params, rising())
    saved, _ = train(data, params, rising(), checkpoint=Checkpoint(tmp_path, "run", 0.0))
    assert_same(whole, saved)


def test_a_second_signal_ends_at_once():
    from pipeline.core.signals import defers_signals, ends_on_signal

    with pytest.raises(InterruptedRunError), ends_on_signal("test"), defers_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() is signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(5)
        pytest.fail("the second signal did nothing")


def test_a_damaged_checkpoint_is_left_out(tmp_path, caplog):
    path = tmp_path / "run.pt"
    Checkpoint(tmp_path, "run", 1.0).save({"step": 3, "weights": torch.ones(1000)})
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    torch.save([1], path)  # torch reads it
    for content in (b"", b"not a checkpoint", whole[:-9], bytes(flipped), path.read_bytes()):
        path.write_bytes(content)
        caplog.clear()
        assert Checkpoint(tmp_path, "run", 1.0).load() is None
        assert "starts anew" in caplog.text


def test_another_run_neither_takes_nor_harms_a_checkpoint(tmp_path):
    """A short try of other settings must not cost the long run that was stopped before."""
    one, other = (Checkpoint(tmp_path, name, 1.0) for name in ("one", "other"))
    one.save({"step": 3})
    assert other.load() is None
    other.save({"step": 5})
    other.remove()
    assert one.load() == {"step": 3}
    one.remove()
    assert not list(tmp_path.iterdir())


def test_what_a_kill_in_the_middle_of_saving_left_is_removed(tmp_path):
    (tmp_path / ".run.pt.abcdefgh").write_bytes(b"half")
    Checkpoint(tmp_path, "run", 1.0)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="could not be written"):
        Checkpoint(tmp_path / "file", "run", 1.0).save({"step": 3})


@pytest.mark.slow
def test_every_setting_makes_another_run(data, tmp_path, monkeypatch):
    dev = pd.DataFrame({"sentence1": ["a"], "score": [1.0]})
    folder = shutil.copytree(run_params().student.encoder, tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.3}))
    encoder, other = (
        SentenceEncoder.load(name, "mean") for name in (run_params().student.encoder, folder)
    )
    prints = [
        run_fingerprint(data, run_params(**changes), seed, table, start)
        for changes, seed, table, start in (
            ({}, 0, dev, encoder),
            ({"train": {"seeds": [0, 7]}}, 0, dev, encoder),
            ({"loss": {"margin": 0.3}}, 0, dev, encoder),
            ({"train": {"learning_rate": 1e-4}}, 0, dev, encoder),
            ({"student": {"max_length": 16}}, 0, dev, encoder),
            ({}, 1, dev, encoder),
            ({}, 0, dev.assign(score=2.0), encoder),
            ({}, 0, dev, other),
        )
    ]
    monkeypatch.setattr(checkpoint, "hash_code", lambda *_: "of other code")
    prints.append(run_fingerprint(data, run_params(), 0, dev, encoder))
    assert prints[0] == prints[1]
    assert len(set(prints)) == len(prints) - 1


def test_the_end_of_the_same_run_elsewhere_does_not_stop_a_save(tmp_path, monkeypatch):
    """Two processes train the same; one removes the checkpoint while the other saves."""
    mine, other = (Checkpoint(tmp_path, "run", every=0.0) for _ in range(2))
    save = torch.save

    def save_and_end(state, stream) -> None:
        save(state, stream)
        other.remove()

    mine.save({"step": 1})
    monkeypatch.setattr(torch, "save", save_and_end)
    mine.save({"step": 2})
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    mine.save({"step": 3})
    assert other.load() == {"step": 3}
