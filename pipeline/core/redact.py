"""Text for logs, errors and files that others may read: without secrets, on one line."""

import os
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_HIDDEN = "***"
_SHORTEST = 8
"""Characters of a secret; shorter values, such as 1 or true, are parts of other words too."""
_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|KEY|CREDENTIALS?|COOKIE|AUTH)(_|$)",
    re.IGNORECASE,
)
_PATTERNS = (
    (re.compile(r"(\w://)[^/\s'\"]*@"), rf"\1{_HIDDEN}@"),
    (re.compile(r"\?[^\s?'\"<>()]*=(?:[^\s'\"<>()]*[^\s'\"<>(),.:;])?"), f"?{_HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic) +[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {_HIDDEN}"),
    (re.compile(r"\bhf_\w{16,}"), _HIDDEN),
)
"""User and password of a URL, its query (some are signed), headers, tokens of the hub."""


def redact(text: str) -> str:
    """`text` with `***` for every secret that can be recognised.

    These are the values of environment variables whose names say so (`HF_TOKEN`,
    `AWS_SECRET_ACCESS_KEY`), user and password of a URL, its whole query, and the values of
    authorisation headers.
    """
    secrets = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST
        if not os.path.exists(value)  # noqa: PTH110  # Path's own raises for long values
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    for pattern, hidden in _PATTERNS:
        text = pattern.sub(hidden, text)
    return text


def one_line(text: str, longest: int = sys.maxsize) -> str:
    """A text on one line, in characters that a terminal shows, cut to `longest` of them."""
    shown = "".join(map(_shown, text[:longest]))
    return f"{shown[: longest - 3]}..." if max(len(shown), len(text)) > longest else shown


def first_line(error: BaseException, longest: int = 300) -> str:
    """The first line of an error's message, or its type where the message is empty."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return one_line(said, longest).rstrip(".")


def first_fault(error: "ValidationError") -> str:
    """The first fault that pydantic found, as `key: message` without a full stop."""
    fault = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, fault["loc"])) or "object"
    return one_line(f"{key}: {fault['msg']}", 160).rstrip(".")


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else repr(character)[1:-1]
