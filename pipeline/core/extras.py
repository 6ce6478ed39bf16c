"""Optional packages."""

import importlib.util

from pipeline.core.errors import ResourceError


def require_extra(extra: str, what: str, *packages: str) -> None:
    """Refuse work whose packages are not installed.

    Args:
        extra: the extra of pyproject.toml that installs them.
        what: what needs them, for the message.
        packages: their names on import.

    Raises:
        ResourceError: one is missing.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ResourceError(
                f"{what} needs {package}, which is not installed.",
                f"run `pip install -e '.[{extra}]'`.",
            )
