"""The contract of params.yaml as JSON schema (draft 2020-12), which editors check and explain."""

from typing import Any

from pipeline.params.block import NUMBER_TEXT
from pipeline.params.schema import Params

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def params_schema() -> dict[str, Any]:
    """The schema of all blocks: type, range, default and description, with its unit, of every key.

    It refuses no file that the pipeline reads. Rules over several keys, such as the threshold of a
    kind of filter, are only checked by the pipeline.
    """
    content: dict[str, Any] = _tidy(Params.model_json_schema())
    return {"$schema": _DIALECT, **content, "title": "params.yaml"}


def _tidy(node: Any) -> Any:
    """A part of pydantic's schema in the words of params.yaml, whose blocks name every key."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {key: _tidy(value) for key, value in node.items() if not _is_noise(node, key)}
    if isinstance(tidy.get("description"), str):
        tidy["description"] = " ".join(tidy["description"].split())
    if "properties" in tidy:
        tidy["required"] = list(tidy["properties"])
    return _number_or_text(tidy) if tidy.get("type") == "number" else tidy


def _is_noise(node: dict[str, Any], key: str) -> bool:
    """Titles repeat the key, defaults of blocks those of their keys."""
    return (key == "title" and isinstance(node[key], str)) or (key == "default" and "$ref" in node)


def _number_or_text(node: dict[str, Any]) -> dict[str, Any]:
    """A number, or the text of one, such as `1e-5` in YAML 1.1."""
    about: dict[str, Any] = {
        key: node.pop(key) for key in ("default", "description") if key in node
    }
    return {"anyOf": [node, {"type": "string", "pattern": f"^{NUMBER_TEXT}$"}], **about}
