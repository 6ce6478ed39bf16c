"""The rooms of the pipeline: who may import whom, and a name says one thing in one place."""

import ast
from collections import Counter
from pathlib import Path

from tests.conftest import ROOT

LEFT = {
    "core": set(),
    "params": {"core"},
    "download": {"params"},
    "student": {"params"},
    "results": {"params"},
    "features": {"download", "student"},
    "train": {"features", "student"},
    "evaluate": {"features", "student"},
    "index": {"features", "student"},
    "search": {"index"},
    "publish": {"evaluate", "results"},
}
"""The rooms right of which a room stands; it may import these and all that these may."""


def may_import(room: str) -> set[str]:
    return {room, *LEFT[room]}.union(*(may_import(left) for left in LEFT[room]))


def modules() -> list[Path]:
    return sorted((ROOT / "pipeline").rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline").parts[0]


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "pipeline":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {name[min(1, len(name) - 1)] for name in names if name[0] == "pipeline"}
    return found


def test_there_are_eleven_rooms():
    rooms = {
        path.name for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").is_file()
    }
    assert rooms == set(LEFT)
    assert [path.name for path in (ROOT / "pipeline").glob("*.py")] == ["__init__.py"]


def test_a_room_imports_only_rooms_to_its_left():
    """The public names of pipeline/__init__.py, which reaches all rooms, are for users alone."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {sorted(rooms)}"
        for path in modules()
        if path.parent != ROOT / "pipeline"
        and (rooms := imported_rooms(path) - may_import(room_of(path)))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_modules_of_rooms_share_a_name():
    blocks = ROOT / "pipeline/params"  # one file a block, called as its room
    names = Counter(path.stem for path in modules() if path.parent != blocks)
    assert not {name for name, count in names.items() if count > 1} - {"__init__"}
