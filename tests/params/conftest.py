"""The JSON schema of params.yaml."""

import json

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def schema():
    """Checks content against params.schema.json."""
    from jsonschema import Draft202012Validator  # takes 2 s

    content = json.loads((ROOT / "params.schema.json").read_text())
    Draft202012Validator.check_schema(content)
    return Draft202012Validator(content)
