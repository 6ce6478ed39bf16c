"""Licences and bill of materials name what is installed."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LICENCES = (ROOT / "docs/licences.md").read_text()
SUPPLY = (ROOT / "docs/supply.md").read_text()
ASKS_FOR_MORE = re.compile("GPL|MPL|EPL|Mozilla|General Public|NVIDIA|Proprietary|UNKNOWN")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_pins() -> dict[str, str]:
    """Versions of what constraints.txt names and this machine has, by name."""
    here = {normal(one.name): one.version for one in importlib.metadata.distributions()}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {normal(name): pin for name, pin in pins.items() if here.get(normal(name)) == pin}


def listed() -> dict[str, tuple[str, str]]:
    """Version and licence of docs/licences.md, by name."""
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in LICENCES.splitlines()[2:]]
    return {normal(name): (version, licence) for name, version, licence in rows}


def test_every_pin_that_is_installed_has_its_licence():
    table = listed()
    missing = {n: v for n, v in installed_pins().items() if table.get(n, ("",))[0] != v}
    assert not missing, f"run `make licences`: {missing}"
    assert all(licence for _, licence in table.values())


def test_every_licence_that_asks_for_more_than_a_notice_is_explained():
    for name in installed_pins():
        licence = listed()[name][1]
        if ASKS_FOR_MORE.search(licence):
            assert re.search(rf"\b{name}\b", SUPPLY) or name.startswith("nvidia-"), (name, licence)


@pytest.mark.slow
def test_the_bill_of_materials_is_valid_and_whole(tmp_path):
    target = tmp_path / "sbom.json"
    tool = str(Path(sys.executable).with_name("cyclonedx-py"))
    options = ["--output-reproducible", "--pyproject", "pyproject.toml", "--of", "JSON"]
    arguments = [tool, "environment", *options, "--validate", "-o", str(target), sys.executable]
    subprocess.run(arguments, cwd=ROOT, capture_output=True, check=True, timeout=280)
    content = json.loads(target.read_text())
    assert content["metadata"]["component"]["name"] == "kdmcse"
    parts = {normal(part["name"]): part["version"] for part in content["components"]}
    assert installed_pins().items() <= parts.items()
