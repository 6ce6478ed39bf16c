"""`dvc plots show`, as a user types it: its page opens without a network and shows every chart."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.train.objective import StepLoss
from tests.conftest import ROOT, assert_clear_error, invoke
from tests.test_dvc_yaml import DVC

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
CHARTS = [next(iter(chart)) for chart in DVC["plots"]]


class Links(HTMLParser):
    """What the tags of a page point to; the text of its scripts is none of its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {value}" for name, value in attrs if name in {"src", "href"}]


def dvc(folder: Path, *arguments: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def project(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run in a clone of the project, before `stages.plots`."""
    folder = tmp_path_factory.mktemp("plots")
    for name in ("params.yaml", "reports"):
        copy = shutil.copytree if (tiny_run / name).is_dir() else shutil.copy
        copy(tiny_run / name, folder / name)
    shutil.copy(ROOT / "dvc.yaml", folder)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    dvc(folder, "init", "-q")
    for path in (ROOT / ".dvc/plots").glob("*.*"):
        if path.name != "page.html":
            (folder / ".dvc/plots").mkdir(exist_ok=True)
            shutil.copy(path, folder / ".dvc/plots")
    return folder


@pytest.fixture(scope="module")
def page(project: Path) -> Path:
    """What `dvc plots show` writes, once `stages.plots` ran."""
    dvc(project, "plots", "show")
    default = project / "dvc_plots/index.html"
    assert "script https://" in Links(default.read_text()).found[0]  # DVC's own page
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        assert invoke("plots").exit_code == 0
    shown = dvc(project, "plots", "show")
    assert "dvc_plots/index.html" in shown
    return default


@pytest.mark.slow
def test_the_page_asks_for_nothing_from_elsewhere(page):
    text = page.read_text()
    assert Links(text).found == []
    assert re.findall(r'<div id = "(\w+)">', text) == CHARTS  # in the order of the story
    assert "{" + "plot_divs}" not in text


@pytest.mark.slow
def test_git_does_not_see_the_page_nor_the_setting(page, project):
    (project / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    status = ["git", "status", "--short", "--untracked-files=all"]
    seen = subprocess.run(status, cwd=project, capture_output=True, text=True, check=True).stdout
    assert ".dvc/plots/frame.html" in seen
    assert "page.html" not in seen
    assert "config.local" not in seen


def test_elsewhere_there_is_no_page_to_fill(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_clear_error(invoke("plots"), "frame.html does not exist", "folder of the project")


def test_every_chart_names_its_axes_and_tells_its_story():
    for name in CHARTS:
        text = (ROOT / f".dvc/plots/{name}.json").read_text()
        assert '"subtitle"' in text, name
        assert re.search(r'"title": "[^"]*(?:cosine|step|radians|x100|bytes)[^"]*"', text), name


def test_every_term_of_a_loss_has_a_title():
    text = (ROOT / ".dvc/plots/curves.json").read_text()
    for term in StepLoss.__dataclass_fields__:
        curve = "loss" if term == "total" else term
        assert f"'{curve}': '" in text or f"'loss_{curve}': '" in text, term


@pytest.fixture
def opened(page: Path) -> Iterator[tuple[object, list[str], list[str]]]:
    """The page in Chromium without a network; what it asked for, and what went wrong."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="NO CHROMIUM: playwright is not installed"
    )
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        window = chromium.new_context(offline=True, viewport={"width": 1280, "height": 900})
        tab, asked, wrong = window.new_page(), [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        tab.goto(page.as_uri())
        tab.wait_for_function(f"document.querySelectorAll('svg.marks').length == {len(CHARTS)}")
        yield tab, asked, wrong
        chromium.close()


@pytest.mark.browser
@pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason="NO CHROMIUM: it is not installed, browser test not run"
)
def test_every_chart_is_drawn_without_a_network(opened, page):
    tab, asked, wrong = opened
    assert asked == [page.as_uri()]
    assert wrong == []
    for number, name in enumerate(CHARTS, 1):
        chart = tab.locator(f"#{name} svg.marks")
        assert f"{number}. " in chart.text_content(), name
        marks = chart.locator(
            ".mark-line path, .mark-area path, .mark-rect path, .mark-symbol path"
        )
        assert marks.count() > 0, name
        assert chart.locator(".role-axis-title text").count() > 0, name
