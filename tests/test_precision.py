"""A type that a device only emulates is never used without a warning, and never by default."""

import pytest
import torch
from ruamel.yaml import YAML

from pipeline.features.teacher import Teacher
from pipeline.params.teacher import TeacherParams
from pipeline.train.precision import choose_precision
from tests.conftest import ROOT, TINY

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one with the named instructions alone, and a GPU with or without bf16."""

    def make(*instructions: str, gpu: bool = True) -> None:
        known = {"avx2": True, "avx512_bf16": False, "amx_bf16": False, "architecture": "x86"}
        found = known | dict.fromkeys(instructions, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
        asked = {"including_emulation": False}
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: gpu or how != asked)

    return make


def use(key: str, precision: str) -> None:
    """Ask for a type on the CPU, as params.yaml does."""
    if key == "train.precision":
        assert choose_precision(precision, CPU) == precision
    else:
        Teacher(TeacherParams(model=TINY["teacher"]["model"], pretrained=None), CPU, precision)


@pytest.mark.parametrize(
    ("key", "precision"),
    [("train.precision", "bf16"), ("features.precision", "bf16"), ("features.precision", "fp16")],
)
def test_a_type_without_instructions_is_warned_of_with_what_to_set(key, precision, machine, caplog):
    machine({"bf16": "amx_bf16", "fp16": "avx512_fp16"}[precision])
    use(key, precision)
    machine({"bf16": "avx512_fp16", "fp16": "avx512_bf16"}[precision])
    use(key, "fp32")
    assert caplog.text == ""
    use(key, precision)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    assert f"{key} is {precision}, for which this processor has no instructions" in message
    assert f"set {key} to auto" in message


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [((), "fp32"), (("avx512_bf16",), "bf16"), (("amx_bf16",), "bf16"), (("bf16",), "bf16")],
)
def test_auto_is_what_the_processor_has(machine, caplog, instructions, expected):
    machine(*instructions)
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    assert caplog.text == ""


def test_a_gpu_that_emulates_bf16_is_warned_of_too(machine, caplog):
    machine(gpu=True)
    assert [choose_precision(one, GPU) for one in ("auto", "bf16")] == ["bf16", "bf16"]
    assert caplog.text == ""
    machine(gpu=False)
    assert choose_precision("auto", GPU) == "fp32"
    assert caplog.text == ""
    assert choose_precision("bf16", GPU) == "bf16"
    assert "train.precision is bf16, for which this GPU" in caplog.text


def settings(node: object) -> list[tuple[str, object]]:
    """All keys and values of a YAML file."""
    if isinstance(node, list):
        return [found for one in node for found in settings(one)]
    if not isinstance(node, dict):
        return []
    return [pair for key, value in node.items() for pair in [(str(key), value), *settings(value)]]


FILES = [*sorted((ROOT / "grids").glob("*.yaml")), ROOT / "pipeline/params/presets.yaml"]


@pytest.mark.parametrize("file", [*FILES, ROOT / "params.yaml"], ids=lambda file: file.name)
def test_shipped_settings_run_on_every_machine(file):
    found = settings(YAML(typ="safe", pure=True).load(file.read_text()))
    assert found
    asked = {value for key, value in found if key.split(".")[-1] == "precision"}
    assert asked <= {"auto", "fp32"}
