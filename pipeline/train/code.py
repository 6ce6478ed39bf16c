"""A hash of the project's own code that a run depends on; comments and docstrings do not count."""

import ast
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.checksums import hash_strings


def hash_code(package: Path, *modules: str) -> str:
    """A hash of modules and of all that they import from the same package, directly or not.

    Imports are read from the source, wherever in it they stand, so that the hash does not depend on
    what a process has imported so far.

    Args:
        package: its folder, such as `pipeline`.
        modules: where to begin, such as `pipeline.train.loop`.
    """
    found: dict[str, ast.Module] = {}
    left = list(modules)
    while left:
        for file in _files(package, left.pop()):
            name = str(file.relative_to(package))
            if name not in found:
                found[name] = ast.parse(file.read_bytes())
                left += _imports(found[name])
    without_text = _WithoutText()
    meanings = {name: ast.dump(without_text.visit(tree)) for name, tree in found.items()}
    return hash_strings(part for name in sorted(meanings) for part in (name, meanings[name]))


def _files(package: Path, module: str) -> Iterator[Path]:
    """The files that run when a module is imported; none where it is not part of the package."""
    first, *rest = module.split(".")
    if first == package.name:
        paths = [package.joinpath(*rest[:depth]) for depth in range(len(rest) + 1)]
        files = [*(path / "__init__.py" for path in paths), *(p.with_suffix(".py") for p in paths)]
        yield from filter(Path.is_file, files)


def _imports(node: ast.AST) -> Iterator[str]:
    """What the code at and below a node imports, except for type checkers alone."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        for child in ast.iter_child_nodes(node):
            yield from _imports(child)


class _WithoutText(ast.NodeTransformer):
    """Drops strings that stand alone: docstrings, including those of attributes."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node
