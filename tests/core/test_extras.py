"""With the base alone: what needs an extra names it, and what can do without does."""

import json
import sys

import pytest

from tests.conftest import ROOT, assert_clear_error, invoke


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (["table", "--out", "scores"], "matplotlib"),
        (["table"], "dvc"),
        (["grid", "grids/margin.yaml"], "dvc"),
        (["plots"], "vl_convert"),
        (["plots"], "dvc"),
    ],
)
def test_the_extra_is_named(command, package, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, package, None)
    words = f"needs {package}, which is not installed", "pip install -e '.[repro]'"
    assert_clear_error(invoke(*command), *words)


def test_an_exported_student_is_run_by_torch_where_its_runtime_is_missing(in_tiny_run, monkeypatch):
    query = ("search", "a red circle", "-k", "3", "--json")
    expected = json.loads(invoke(*query).stdout)["hits"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = json.loads(invoke(*query).stdout)["hits"]
    assert [hit | {"score": 0} for hit in found] == [hit | {"score": 0} for hit in expected]
    assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in expected])
