"""Shapes and types are checked at run time; a pytest plugin. PYTEST_DONT_REWRITE

The option `--jaxtyping-packages` does the same, but once in a process only: mutmut calls pytest
several times. The packages are those of that option in pyproject.toml.
"""

import tomllib
from pathlib import Path

from jaxtyping import install_import_hook

_SETTINGS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
_OPTIONS = _SETTINGS["tool"]["pytest"]["ini_options"]["addopts"]
(_VALUE,) = (one for one in _OPTIONS if one.startswith("--jaxtyping-packages="))
*_PACKAGES, _CHECKER = _VALUE.partition("=")[2].split(",")

install_import_hook(_PACKAGES, _CHECKER)
