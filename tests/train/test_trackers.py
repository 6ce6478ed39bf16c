"""Curves that go to TensorBoard: the real writer, read back with its own reader."""

import pytest

from pipeline.core.errors import ParamsError
from pipeline.train.trackers import open_trackers


def test_points_arrive_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_trackers(["tensorboard"], tmp_path) as report:
        for step, value in ((10, 0.5), (20, 0.25)):
            report(step, {"loss": value, "sts_dev": 100 * value})
    (folder,) = {path.parent for path in tmp_path.rglob("events.*")}
    reader = EventAccumulator(str(folder))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("loss")] == [
        (10, 0.5),
        (20, 0.25),
    ]
    assert [event.value for event in reader.Scalars("sts_dev")] == [50, 25]


def test_one_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with (
        pytest.raises(ParamsError, match="wandb, which is not installed"),
        open_trackers(["wandb"], tmp_path),
    ):
        pass


def test_none_is_no_work(tmp_path):
    with open_trackers([], tmp_path) as report:
        report(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
