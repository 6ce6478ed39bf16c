"""Shapes and types are checked at run time; a pytest plugin. PYTEST_DONT_REWRITE

The option `--jaxtyping-packages` does the same, but once in a process only: mutmut calls pytest
several times.
"""

from jaxtyping import install_import_hook

install_import_hook("pipeline", "beartype.beartype")
