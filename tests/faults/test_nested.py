"""JSON nested so deeply that Python's parser gives up, wherever a file is read as such."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.checksums import verify_checksums
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.evaluate.report import read_report
from pipeline.features.cache import list_cached
from pipeline.index.format import read_manifest
from pipeline.results.scores import read_configuration, read_summary
from pipeline.student.directory import POOLING_FILE
from pipeline.student.settings import read_settings
from tests.conftest import ROOT

NESTED = "[" * 100_000
READERS: dict[str, Callable[[Path], object]] = {
    "checksums.json": lambda path: verify_checksums(path.parent, "one", fix="mend"),
    "manifest.json": lambda path: read_manifest(path.parent, ROOT / "data/demo/student"),
    "modules.json": lambda path: read_settings(path.parent),
    str(POOLING_FILE): lambda path: read_settings(path.parent.parent),
    "report.json": read_report,
    "configuration.json": lambda path: read_configuration(str(path)),
    "metrics.json": lambda path: read_json(path, "train"),
    "summary.json": lambda path: read_summary(path.read_text(), path.name),
}


@pytest.mark.parametrize("name", READERS)
def test_json_nested_too_deeply_is_named(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(NESTED)
    with pytest.raises(PipelineError, match=re.escape(path.name)):
        READERS[name](path)


def test_a_teacher_nested_too_deeply_is_unknown(tmp_path):
    path = tmp_path / "teacher/teacher.json"
    path.parent.mkdir()
    path.write_text(NESTED)
    assert [one.model for one in list_cached(tmp_path)] == ["unknown"]
