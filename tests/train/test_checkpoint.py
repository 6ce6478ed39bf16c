"""A stopped run goes on where it was, and ends with the same bits."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from pipeline.errors import InterruptedRunError, ResourceError
from pipeline.train.checkpoint import Checkpoint, run_fingerprint
from pipeline.train.loop import Training
from tests.train.test_loop import constant, run_params, train, weights
from tests.train.test_loop import data as data  # noqa: PLC0414  # the fixture

STEPS = 9
SETTING = {"steps": STEPS, "evaluate_every": 4, "pair_every": 2, "batch_size": 8, "accumulate": 2}


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


def account(training: Training) -> dict[str, float]:
    timed = {"seconds", "steps_per_second", "selection_share"}
    return {key: value for key, value in training.metrics.items() if key not in timed}


def assert_same(one: Training, other: Training) -> None:
    assert account(one) == account(other)
    assert one.curves == other.curves
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


class StopAfter(Checkpoint):
    """Asks for a stop by a real signal after some steps, as a user would."""

    def __init__(self, path: Path, steps: int, number: signal.Signals) -> None:
        super().__init__(path, "run", every=1e9)
        self._left, self._number = steps, number

    def is_due(self) -> bool:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)
        return super().is_due()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_a_stopped_run_ends_with_the_same_bits(data, tmp_path, steps, number):
    params = run_params(train=SETTING)
    whole, _ = train(data, params, rising())
    path = tmp_path / "0.pt"
    with pytest.raises(InterruptedRunError, match=rf"{number.name} after step \d+ of 9"):
        train(data, params, rising(), checkpoint=StopAfter(path, steps, number))
    kept = torch.load(path, weights_only=True)["state"]["step"]
    assert steps <= kept <= steps + 1
    again, _ = train(data, params, rising(), checkpoint=Checkpoint(path, "run", 1e9))
    assert_same(whole, again)


def test_without_a_checkpoint_a_signal_still_stops(data):
    with pytest.raises(InterruptedRunError, match="is lost"):
        train(data, run_params(train=SETTING), rising(stop_at=2))


def test_saving_every_step_changes_nothing(data, tmp_path):
    params = run_params(train=SETTING, student={"matryoshka": [32]})
    whole, _ = train(data, params, rising())
    saved, _ = train(data, params, rising(), checkpoint=Checkpoint(tmp_path / "c.pt", "run", 0.0))
    assert_same(whole, saved)


def test_a_second_signal_ends_at_once():
    from pipeline.runtime import defers_signals, ends_on_signal

    with pytest.raises(InterruptedRunError), ends_on_signal("test"), defers_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() is signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(5)
        pytest.fail("the second signal did nothing")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_left_out(tmp_path, content, caplog):
    path = tmp_path / "0.pt"
    path.write_bytes(content)
    assert Checkpoint(path, "run", 1.0).load() is None
    assert "starts anew" in caplog.text


def test_a_checkpoint_of_another_run_is_left_out(tmp_path):
    path = tmp_path / "0.pt"
    Checkpoint(path, "one", 1.0).save({"step": 3})
    assert Checkpoint(path, "other", 1.0).load() is None
    assert Checkpoint(path, "one", 1.0).load() == {"step": 3}


def test_a_checkpoint_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="could not be written"):
        Checkpoint(tmp_path / "file" / "0.pt", "run", 1.0).save({"step": 3})


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"margin": 0.3}},
        {"train": {"learning_rate": 1e-4}},
        {"student": {"max_length": 16}},
    ],
)
def test_every_setting_makes_another_run(data, changes):
    dev = ["a", "b"]
    base = run_fingerprint(data, run_params(), 0, dev)
    assert base == run_fingerprint(data, run_params(train={"seeds": [0, 7]}), 0, dev)
    others = [
        run_fingerprint(data, run_params(**changes), 0, dev),
        run_fingerprint(data, run_params(), 1, dev),
        run_fingerprint(data, run_params(), 0, ["a", "c"]),
    ]
    assert base not in others


def test_a_collapsed_dev_score_does_not_lose_the_first(data):
    training, _ = train(data, run_params(train=SETTING), constant(1.0))
    assert training.metrics["best_step"] == 4
