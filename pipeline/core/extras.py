"""Packages that only some installations have."""

import importlib.util

from pipeline.core.errors import ResourceError


def require_extra(extra: str, what: str, *packages: str) -> None:
    """Refuse work whose packages are not installed.

    Args:
        extra: that installs them, as pyproject.toml names it.
        what: needs them, for the message.
        packages: as they are imported.

    Raises:
        ResourceError: one is missing.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ResourceError(
                f"{what} needs {package}, which is not installed.",
                f"run `pip install -e '.[{extra}]'`.",
            )
