"""Other values for params.yaml, by dotted key."""

from collections.abc import Mapping
from typing import Any

Changes = dict[str, Any]
"""Values of params.yaml by dotted key, such as `loss.margin`."""


def apply_changes(params: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The content of params.yaml with changes laid over it; unknown keys are left to its check."""
    result = dict(params)
    for key, value in changes.items():
        block, _, rest = key.partition(".")
        inner = result.get(block)
        if rest and isinstance(inner, Mapping):
            result[block] = apply_changes(inner, {rest: value})
        else:
            result[key] = value
    return result
