"""Image-caption pairs of a split meet their features by id, and these come as float32 batches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.core.errors import InputError
from pipeline.download.records import Pairs
from pipeline.features.rows import Features
from pipeline.features.teacher_rows import SentenceRows, TeacherRows, pairs_of_split


def test_pairs_of_a_split_are_its_captions_that_have_features():
    """Row 0 of the features included; they are in another order than the captions."""
    images = pd.DataFrame({"image_id": [0, 1, 2, 3], "split": ["train", "test", "train", "train"]})
    words = ["one", "two", "of a test image", "of a rejected image", "five"]
    captions = pd.DataFrame(
        {"caption_id": [10, 11, 12, 13, 14], "image_id": [0, 0, 1, 2, 3], "caption": words}
    )
    features = Features(
        np.eye(3, 4, dtype=np.float16), np.array([3, 1, 0]),
        np.eye(4, dtype=np.float16), np.array([11, 14, 10, 12]), np.array([2, 0, 2, 1]),
        caption_text=np.eye(4, 6, dtype=np.float16), sentence_text=np.eye(6, dtype=np.float16),
    )  # fmt: skip
    found = pairs_of_split(Pairs(Path(), images, captions), features, "train")
    assert found.captions == ["one", "two", "five"]
    assert found.caption_rows.tolist() == [2, 0, 1]
    assert found.image_rows.tolist() == [2, 2, 0]
    cpu, rows = torch.device("cpu"), np.array([2, 0])
    batch = TeacherRows(found, cpu)(rows)
    torch.testing.assert_close(batch.images, torch.eye(3, 4)[[0, 2]])
    torch.testing.assert_close(batch.captions, torch.eye(4)[[1, 2]])
    torch.testing.assert_close(batch.text, torch.eye(4, 6)[[1, 2]])
    torch.testing.assert_close(SentenceRows(features, cpu)(rows), torch.eye(6)[[2, 0]])
    clip_only = replace(features, caption_text=None, sentence_text=None)
    assert TeacherRows(replace(found, features=clip_only), cpu)(rows).text is None
    with pytest.raises(InputError, match="no text teacher's rows"):
        SentenceRows(clip_only, cpu)
    none = Pairs(Path(), images, captions.iloc[2:4])
    with pytest.raises(InputError, match="no caption of the train split has features"):
        pairs_of_split(none, features, "train")
