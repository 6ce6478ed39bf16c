"""Optional packages."""

import importlib.util

from pipeline.core.errors import ResourceError


def require_extra(extra: str, what: str, *packages: str) -> None:
    """Refuse work (`what`) whose packages an extra of pyproject.toml has yet to install."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ResourceError(
                f"{what} needs {package}, which is not installed.",
                f"run `pip install -e '.[{extra}]'`.",
            )
