"""The contract of params.yaml as JSON schema (draft 2020-12), which editors check and explain."""

from typing import Any

from pipeline.params.block import NUMBER_TEXT
from pipeline.params.schema import Params

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""pydantic's own names, which it leaves in place where a validator stands before a number."""


def params_schema() -> dict[str, Any]:
    """The schema of all blocks: type, range and description, with its unit, of every key.

    It refuses no file that the pipeline reads. What several keys together must be, such as the
    threshold of a kind of filter, only the pipeline checks.
    """
    content: dict[str, Any] = _in_plain_words(Params.model_json_schema())
    return {"$schema": _DIALECT, **content, "title": "params.yaml"}


def _in_plain_words(node: Any) -> Any:
    if isinstance(node, list):
        return [_in_plain_words(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "number":
        return _number_or_text(node)
    named = {key: _in_plain_words(value) for key, value in node.items()}
    if isinstance(named.get("title"), str):
        del named["title"]  # the key again, in other letters
    if isinstance(named.get("description"), str):
        named["description"] = " ".join(named["description"].split())
    return named


def _number_or_text(node: dict[str, Any]) -> dict[str, Any]:
    """A number, or the text of one, such as `1e-5` in YAML 1.1."""
    bounds = {_BOUNDS.get(key, key): value for key, value in node.items()}
    description = " ".join(bounds.pop("description", "").split())
    bounds.pop("title", None)
    text = {"type": "string", "pattern": f"^{NUMBER_TEXT}$"}
    return {"anyOf": [bounds, text], "description": description}
