"""Nothing that comes with weights is ever run."""

import ast
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from pipeline.core.errors import PipelineError
from pipeline.features.teacher import Teacher
from pipeline.params.teacher import TeacherParams
from pipeline.student.encoder import SentenceEncoder, Student
from tests.conftest import ROOT, slow_after, unseal
from tests.faults.ledger import record
from tests.features.tiny_teachers import save_clip, save_open_clip

CPU = torch.device("cpu")
REFUSED = {"eval", "exec", "compile", "__import__"}
UNSAFE_MODULES = {"joblib", "marshal", "shelve", "dill", "cloudpickle"}


def sources() -> Iterator[Path]:
    for room in ("pipeline", "stages"):
        yield from sorted((ROOT / room).rglob("*.py"))


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What could run code that a file brings along, by line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, one.name) for one in node.names if one.name in UNSAFE_MODULES)
        if isinstance(node, ast.ImportFrom) and node.module in {*UNSAFE_MODULES, "pickle"}:
            yield node.lineno, str(node.module)
        if isinstance(node, ast.Call):
            yield from unsafe_call(node)


def unsafe_call(node: ast.Call) -> Iterator[tuple[int, str]]:
    name = ast.unparse(node.func)
    given = {one.arg: ast.unparse(one.value) for one in node.keywords}
    if name in REFUSED or name.startswith("pickle.") or name in {"os.system", "os.popen"}:
        yield node.lineno, name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield node.lineno, "torch.load without weights_only=True"
    if name.startswith("yaml.") or (
        name == "YAML" and given.get("typ", "'rt'") not in {"'safe'", "'rt'"}
    ):
        yield node.lineno, name
    for keyword in ("allow_pickle", "trust_remote_code", "shell"):
        if given.get(keyword, "False") != "False":
            yield node.lineno, f"{name}({keyword}={given[keyword]})"


def test_no_code_of_a_file_is_run():
    found = {path: list(unsafe(ast.parse(path.read_text("utf-8")))) for path in sources()}
    assert len(found) > 100
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "pickle.load(f)",
        "import joblib",
        "from pickle import load",
        "np.load(p, allow_pickle=True)",
        "YAML(typ='unsafe')",
        "yaml.load(f)",
        "eval(x)",
        "from_pretrained(n, trust_remote_code=True)",
        "subprocess.run(c, shell=True)",
        "os.system(c)",
    ],
)
def test_the_search_finds_what_it_is_for(line):
    assert list(unsafe(ast.parse(line)))


class Hostile:
    """Creates a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "was-run"


def is_refused(load, marker: Path, where: str) -> None:
    with pytest.raises(PipelineError, match=r"cannot be loaded|no usable grounding heads"):
        load()
    assert not marker.exists()
    record("hostile pickle or code", where, "one clear line")


def test_such_a_pickle_does_run_where_it_is_loaded(marker, tmp_path):
    """Else the tests below could not fail."""
    torch.save(Hostile(marker), tmp_path / "weights.bin")
    torch.load(tmp_path / "weights.bin", weights_only=False)
    assert marker.exists()


OPEN_CLIP_NAMES = slow_after(
    1, ["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "model.pt"]
)


@pytest.mark.parametrize("name", OPEN_CLIP_NAMES)
def test_a_teacher_of_open_clip(tmp_path, marker, name):
    teacher = save_open_clip(tmp_path / "teacher")
    Teacher(TeacherParams(model=teacher), CPU)
    (tmp_path / "teacher/open_clip_model.safetensors").unlink()
    torch.save(Hostile(marker), tmp_path / "teacher" / name)
    is_refused(lambda: Teacher(TeacherParams(model=teacher), CPU), marker, "features")


@pytest.mark.parametrize("name", OPEN_CLIP_NAMES)
def test_weights_of_open_clip_that_are_a_file(tmp_path, marker, name):
    torch.save(Hostile(marker), tmp_path / name)
    params = TeacherParams(model="RN50", pretrained=str(tmp_path / name))
    is_refused(lambda: Teacher(params, CPU), marker, "features")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_teacher_of_transformers(tmp_path, marker, name):
    folder = Path(save_clip(tmp_path / "teacher"))
    params = TeacherParams(model=f"transformers:{folder}")
    Teacher(params, CPU)
    (folder / "model.safetensors").unlink()
    torch.save(Hostile(marker), folder / name)
    is_refused(lambda: Teacher(params, CPU), marker, "features")


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """One that loads as it is."""
    folder = shutil.copytree(ROOT / "data/demo/student", tmp_path / "student")
    SentenceEncoder.load(folder, "mean")
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_student(student, marker, name):
    (student / "model.safetensors").unlink()
    torch.save(Hostile(marker), student / name)
    is_refused(lambda: SentenceEncoder.load(student, "mean"), marker, "encoder")


def test_the_heads_of_a_student(tiny_run, tmp_path, marker):
    student = shutil.copytree(tiny_run / "data/models/0", tmp_path / "student")
    Student.load(student, CPU)
    unseal(student)
    torch.save(Hostile(marker), student / "heads.safetensors")
    is_refused(lambda: Student.load(student, CPU), marker, "encoder")


def add_code(folder: Path, marker: Path, file: str, kinds: dict[str, str]) -> None:
    """Have a configuration name code in its folder."""
    path = folder / file
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    named = {kind: f"own.{name}" for kind, name in kinds.items()}
    path.write_text(json.dumps(content | {"auto_map": named, "model_type": "own"}))
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own: pass\n")


CODE = {"AutoConfig": "Own", "AutoModel": "Own"}


def test_such_code_does_run_where_it_is_trusted(student, marker):
    """Else the tests below could not fail."""
    add_code(student, marker, "config.json", CODE)
    with contextlib.suppress(Exception):
        AutoConfig.from_pretrained(student, trust_remote_code=True)
    assert marker.exists()


def test_code_beside_a_teacher(tmp_path, marker, monkeypatch):
    folder = Path(save_clip(tmp_path / "teacher"))
    add_code(folder, marker, "config.json", CODE)
    params = TeacherParams(model=f"transformers:{folder}")
    is_refused(lambda: Teacher(params, CPU), marker, "features")


def test_code_beside_a_student(student, marker):
    add_code(student, marker, "config.json", CODE)
    is_refused(lambda: SentenceEncoder.load(student, "mean"), marker, "encoder")


def test_code_of_the_tokenizer_of_a_student(student, marker, monkeypatch):
    """transformers asks at the terminal where it is not told; nobody is asked here."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    path = student / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    path.write_text(json.dumps(own))
    (student / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own: pass\n")
    said = "loaded without its code"
    try:
        SentenceEncoder.load(student, "mean")
    except PipelineError:
        said = "one clear line"
    assert not marker.exists()
    assert not asked
    record("hostile pickle or code", "encoder", said)


@pytest.mark.parametrize("text", [[], 3, "x", None])
def test_a_configuration_of_open_clip_with_wrong_types_is_named(tmp_path, text):
    teacher = save_open_clip(tmp_path / "teacher")
    path = tmp_path / "teacher/open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["text_cfg"] = text
    path.write_text(json.dumps(content))
    with pytest.raises(PipelineError, match="cannot be loaded"):
        Teacher(TeacherParams(model=teacher), CPU)
