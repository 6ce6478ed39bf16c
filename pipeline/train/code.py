"""What the project's own code does for a run, as a hash: comments and docstrings do not count."""

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
    trees = _closure(package, modules)
    return hash_strings(part for name in sorted(trees) for part in (name, _meaning(trees[name])))


def _closure(package: Path, modules: tuple[str, ...]) -> dict[str, ast.Module]:
    """The syntax trees of modules and of what they import, by path within the package."""
    found: dict[str, ast.Module] = {}
    left = list(modules)
    while left:
        for file in _files(package, left.pop()):
            name = str(file.relative_to(package))
            if name not in found:
                found[name] = ast.parse(file.read_bytes())
                left += _imports(found[name])
    return found


def _files(package: Path, module: str) -> Iterator[Path]:
    """The files that run when a module is imported; none where it is not of the package."""
    first, *rest = module.split(".")
    if first != package.name:
        return
    folders = [package.joinpath(*rest[:depth]) for depth in range(len(rest) + 1)]
    files = [folder / "__init__.py" for folder in folders]
    yield from filter(Path.is_file, [*files, *(path.with_suffix(".py") for path in folders[1:])])


def _imports(node: ast.AST) -> Iterator[str]:
    """What the code at and below a node imports, but for the eyes of a type checker alone."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        for child in ast.iter_child_nodes(node):
            yield from _imports(child)


def _meaning(tree: ast.Module) -> str:
    return ast.dump(_WithoutText().visit(tree))


class _WithoutText(ast.NodeTransformer):
    """Drops strings that stand alone: docstrings, of attributes too."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node
