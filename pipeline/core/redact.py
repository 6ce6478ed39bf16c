"""Text for logs, errors and files that others get to see: without secrets, on one line."""

import os
import re

HIDDEN = "***"

_SHORTEST = 8
"""Characters of a secret; shorter values, such as 1 or true, stand in other words too."""
_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|KEY|CREDENTIALS?|COOKIE|AUTH)(_|$)",
    re.IGNORECASE,
)
_PATTERNS = (
    (re.compile(r"(\w://)[^/\s'\"]*@"), rf"\1{HIDDEN}@"),
    (re.compile(r"\?[^\s?'\"<>()]*=(?:[^\s'\"<>()]*[^\s'\"<>(),.:;])?"), f"?{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic) +[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"\bhf_\w{16,}"), HIDDEN),
)
"""User and password of an address, its query (presigned ones are signed there), header, hub."""


def redact(text: str) -> str:
    """`text` with `***` for every secret that can be known as one.

    These are the values of environment variables that are named after one (`HF_TOKEN`,
    `AWS_SECRET_ACCESS_KEY`), user and password of a URL, its whole query, and what an
    authorisation header holds.
    """
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    for pattern, hidden in _PATTERNS:
        text = pattern.sub(hidden, text)
    return text


def _secrets() -> list[str]:
    """Values of the environment that no reader may see, the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST
        if not os.path.exists(value)  # noqa: PTH110  # Path's own raises for long values
    }
    return sorted(found, key=len, reverse=True)


def one_line(text: str, longest: int) -> str:
    """A text on one line, in characters that a terminal shows, cut to `longest` of them."""
    shown = "".join(map(_shown, text[:longest]))
    return f"{shown[: longest - 3]}..." if max(len(shown), len(text)) > longest else shown


def first_line(error: BaseException, longest: int = 300) -> str:
    """What an error says in its first line, or its type where it says nothing."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return one_line(said, longest).rstrip(".")


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else repr(character)[1:-1]
