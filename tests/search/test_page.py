"""The page in a real Chromium, served by the real command over real indexes."""

import base64
import io
import itertools
import json
import os
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipeline.download.records import read_pairs
from tests.conftest import make_bomb
from tests.search.conftest import BESIDE, LOST, read_member, serving

playwright = pytest.importorskip(
    "playwright.sync_api", reason="NO CHROMIUM: playwright is not installed, browser test not run"
)
expect = playwright.expect

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not Path(CHROMIUM).exists(), reason="NO CHROMIUM: it is not installed, browser test not run"
    ),
]


EMPTY_DROP = """document.body.dispatchEvent(new DragEvent(
    "drop", { dataTransfer: new DataTransfer(), bubbles: true, cancelable: true }))"""


@pytest.fixture(scope="module")
def address(compared: Path) -> Iterator[str]:
    with serving(compared, *BESIDE) as (url, _):
        yield url


@pytest.fixture(scope="module")
def single(compared: Path) -> Iterator[str]:
    """One model alone."""
    with serving(compared) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """A page of its own, and what it loaded and complained of."""

    def __init__(self, browser, address: str, path: str = "/", size=DESK, scheme="light") -> None:
        self.address = address
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)
        self.page.goto(address + path)
        expect(self.page.locator("#corpus")).not_to_be_empty()

    def _hear(self, message) -> None:
        known = message.location["url"].endswith(f"/{LOST}")  # it may be among any results
        if message.type in {"error", "warning"} and not known:
            self.complaints.append(message.text)

    def type(self, text: str) -> None:
        self.page.locator("#query").press_sequentially(text, delay=5)

    def settled(self, pattern: str, seconds: int = 20) -> None:
        status = self.page.locator("#status")
        expect(status).to_have_text(re.compile(pattern), timeout=1000 * seconds)

    def until(self, condition: str) -> None:
        """Wait for what is so; Playwright's own way is an eval, which the page forbids."""
        for _ in range(100):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"never: {condition}")

    def texts(self, column: int = 0) -> list[str]:
        return self.page.locator(".column").nth(column).locator(".text").all_inner_texts()

    def drop(self, name: str, content: bytes, event: str = "drop") -> None:
        self.page.evaluate(
            """([name, data, event]) => {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                const files = new DataTransfer();
                files.items.add(new File([bytes], name));
                const [kind, field] = event === "paste"
                    ? [ClipboardEvent, "clipboardData"] : [DragEvent, "dataTransfer"];
                document.body.dispatchEvent(new kind(
                    event, { [field]: files, bubbles: true, cancelable: true }));
            }""",
            [name, base64.b64encode(content).decode(), event],
        )

    def close(self) -> None:
        """End the visit; the page must have been content, and at home."""
        self.context.close()
        assert self.complaints == []
        for url in self.requests:
            assert url.startswith((self.address, f"blob:{self.address}")), url


@pytest.fixture
def visit(browser, single) -> Iterator[Visit]:
    one = Visit(browser, single)
    yield one
    one.close()


@pytest.fixture
def visit_both(browser, address) -> Iterator[Visit]:
    one = Visit(browser, address)
    yield one
    one.close()


@pytest.fixture
def rough_visit(browser, single) -> Iterator[Visit]:
    """A visit on which the server refuses something, of which browsers complain."""
    one = Visit(browser, single)
    yield one
    one.context.close()
    assert all("Failed to load resource" in text for text in one.complaints), one.complaints


def ask(address: str, **query: object) -> dict:
    url = f"{address}/search?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url) as response:  # noqa: S310  # our own server
        return json.load(response)


def scores(results: dict) -> list[str]:
    return [f"{one['score']:.4f}" for one in results["results"]]


def test_results_come_while_typing(visit, single):
    expect(visit.page.locator("#start")).to_be_visible()
    visit.type("a red circle")
    visit.settled("^24 texts")
    expected = ask(single, q="a red circle", k=24)
    assert visit.texts() == [one["text"] for one in expected["results"]]
    assert visit.page.locator(".cosine").all_inner_texts() == scores(expected)
    expect(visit.page.locator("#start")).to_be_hidden()
    visit.type(" and a star")
    refined = ask(single, q="a red circle and a star", k=24)
    expect(visit.page.locator(".text").first).to_have_text(refined["results"][0]["text"])
    assert visit.page.url == f"{single}/?q=a+red+circle+and+a+star"


def test_a_late_answer_does_not_replace_a_newer_one(visit, single):
    held = []

    def hold(route) -> None:
        held.append(route)

    visit.page.route("**/search?*q=slow*", hold)
    visit.page.fill("#query", "slow")
    visit.page.wait_for_timeout(400)
    expect(visit.page.locator(".column.busy")).to_have_count(1)
    visit.page.fill("#query", "two stars")
    visit.settled("^24 texts")
    assert held
    for route in held:
        route.fulfill(json=ask(single, q="a square", k=24))
    visit.page.wait_for_timeout(300)
    assert visit.texts() == [one["text"] for one in ask(single, q="two stars", k=24)["results"]]
    expect(visit.page.locator(".column.busy")).to_have_count(0)


def test_typing_asks_less_often_than_it_types(visit):
    visit.type("a small red circle above a square")
    visit.settled("^24 texts")
    asked = [url for url in visit.requests if "/search?" in url]
    assert 1 <= len(asked) <= 10


def test_everything_works_by_keyboard(visit):
    page = visit.page
    page.locator("#choose").focus()
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.type("a red circle")
    page.keyboard.press("Enter")
    visit.settled("^24 texts")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".result").nth(0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".result").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#large")).to_be_visible()
    expect(page.locator("#large-text")).to_have_text(visit.texts()[1])
    page.keyboard.press("ArrowRight")
    expect(page.locator("#large-text")).to_have_text(visit.texts()[2])
    page.keyboard.press("Escape")
    expect(page.locator("#large")).to_be_hidden()
    expect(page.locator(".result").nth(2)).to_be_focused()
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    expect(page.locator("#query")).to_be_focused()


def test_arrows_follow_the_grid(visit):
    page = visit.page
    page.locator("[name=target][value=images]").check(force=True)
    page.fill("#query", "a red circle")
    visit.settled("^24 pictures")
    results = page.locator(".result")
    columns = page.evaluate(
        "getComputedStyle(document.querySelector('.images')).gridTemplateColumns.split(' ').length"
    )
    assert columns > 3
    results.nth(0).focus()
    for key, expected in (("Right", 1), ("Down", 1 + columns), ("Left", columns), ("Up", 0)):
        page.keyboard.press(f"Arrow{key}")
        expect(results.nth(expected)).to_be_focused()


@pytest.mark.smoke
def test_pictures_are_shown_and_open_large(visit):
    page = visit.page
    page.fill("#query", "a red circle")
    page.get_by_text("Pictures", exact=True).click()
    visit.settled("^24 pictures")
    visit.until("[...document.images].filter((i) => i.naturalWidth > 0).length >= 8")
    page.locator(".result").first.click()
    visit.until("document.querySelector('#large img').naturalWidth > 0")
    assert "size=large" in page.locator("#large img").get_attribute("src")
    expect(page.locator("#large-list")).to_contain_text("images.zip")
    page.locator("#close").click()
    expect(page.locator("#large")).to_be_hidden()


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_a_picture_is_a_query(visit, compared, way):
    page, picture = visit.page, read_member(compared / "data/pairs", 5)
    page.get_by_text("Pictures", exact=True).click()
    page.fill("#query", "a red circle")
    visit.settled("^24 pictures")
    before = visit.texts()
    if way == "choose":
        page.set_input_files("#file", {"name": "5.png", "mimeType": "image/png", "buffer": picture})
    else:
        visit.drop("5.png", picture, way)
    visit.settled(r"^24 pictures · best (1\.0000|0\.999\d)", seconds=60)  # the teacher is loaded
    expect(page.locator("#chip")).to_contain_text("5.png")
    visit.until("document.querySelector('#chip-picture').naturalWidth > 0")
    page.locator("#chip-remove").click()
    expect(page.locator("#chip")).to_be_hidden()
    expect(page.locator(".text").first).to_have_text(before[0])
    page.go_back()
    expect(page.locator("#chip")).to_be_visible()
    visit.settled(r"best (1\.0000|0\.999\d)")


def test_dragging_shows_where_to_drop(visit):
    visit.drop("5.png", b"", "dragenter")
    expect(visit.page.locator("#drop")).to_be_visible()
    visit.drop("5.png", b"", "dragleave")
    expect(visit.page.locator("#drop")).to_be_hidden()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no picture", "unreadable"),
        (make_bomb(), "huge"),
        (b"x" * (16 * 1024**2 + 1), "larger than 16 MiB"),
        (b"", "There is no picture"),
    ],
    ids=["text", "bomb", "large", "empty"],
)
def test_a_bad_picture_is_one_clear_line(rough_visit, content, words):
    rough_visit.drop("bad.png", content)
    problem = rough_visit.page.locator(".problem:visible")
    expect(problem).to_have_count(1)
    expect(problem.locator("strong")).to_contain_text(words)
    expect(problem.locator("span")).not_to_be_empty()
    rough_visit.type("a star")
    rough_visit.settled("^24 texts")
    expect(rough_visit.page.locator(".problem:visible")).to_have_count(0)


def test_what_is_dropped_without_a_file_is_said(visit):
    visit.page.evaluate(EMPTY_DROP)
    expect(visit.page.locator("#problem")).to_contain_text("That is not a file.")


@pytest.mark.parametrize(
    ("query", "words"), [("", "query is empty"), ("x" * 100_000, "100,000 characters")]
)
def test_a_bad_query_is_one_clear_line(rough_visit, query, words):
    rough_visit.page.fill("#query", query)
    rough_visit.page.keyboard.press("Enter")
    problem = rough_visit.page.locator(".problem:visible")
    expect(problem).to_have_count(1)
    expect(problem).to_contain_text(words)
    assert len(rough_visit.page.locator("body").inner_text()) < 2000


def test_a_server_that_is_gone_is_said(rough_visit):
    rough_visit.context.set_offline(True)
    rough_visit.type("a star")
    expect(rough_visit.page.locator(".problem:visible")).to_contain_text("does not answer")


def test_a_lost_picture_says_so_in_its_place(rough_visit, compared):
    pairs = read_pairs(compared / "data/pairs")
    captions = pairs.captions.loc[pairs.captions["image_id"] == LOST, "caption"]
    rough_visit.page.fill("#query", captions.iloc[0])
    rough_visit.settled("^24 texts")
    first = rough_visit.page.locator(".result").first
    expect(first.locator(".frame")).to_have_text("no picture")
    first.click()
    expect(rough_visit.page.locator("#large-picture")).to_contain_text("cannot be shown (missing)")


def test_an_address_holds_the_search_and_back_works(browser, single):
    visit = Visit(browser, single, "/?q=a+star&target=images&min_score=-0.5")
    page = visit.page
    visit.settled("pictures")
    assert page.input_value("#query") == "a star"
    expect(page.locator("#min-score-value")).to_have_text("-0.50")
    page.get_by_text("Texts", exact=True).click()
    visit.settled("texts")
    page.fill("#query", "two rings")
    page.wait_for_url("**q=two+rings**")
    page.go_back()
    page.wait_for_url("**/?q=a+star&min_score=-0.5")
    page.go_back()
    visit.settled("pictures")
    assert page.url == f"{single}/?q=a+star&target=images&min_score=-0.5"
    assert page.input_value("#query") == "a star"
    page.reload()
    visit.settled("pictures")
    visit.close()


def test_the_lowest_score_and_more(visit, single):
    page = visit.page
    page.fill("#query", "a red circle")
    visit.settled("^24 texts")
    page.get_by_role("button", name="More", exact=True).click()
    visit.settled("^48 texts")
    expect(page.locator(".result").nth(24)).to_be_focused()
    whole = ask(single, q="a red circle", k=48)
    assert page.locator(".cosine").all_inner_texts() == scores(whole)
    cut = float(scores(whole)[5]) - 0.005
    lowest = round(cut, 2)
    kept = sum(one["score"] >= lowest for one in whole["results"])
    page.locator("#min-score").fill(f"{lowest:.2f}")
    visit.settled(f"^{min(kept, 24)} texts")
    page.locator("#min-score").fill("1")
    expect(page.locator(".nothing")).to_contain_text("Lower the minimum score")


def test_two_models_answer_side_by_side(visit_both, address):
    page = visit_both.page
    page.fill("#query", "a small red circle")
    visit_both.settled(r"^24 \+ 24 texts")
    found = {name: ask(address, q="a small red circle", k=24, system=name) for name in ORDER}
    ranks = {
        name: {(one["kind"], one["id"]): one["rank"] for one in results["results"]}
        for name, results in found.items()
    }
    for at, (name, other) in enumerate(itertools.permutations(ORDER, 2)):
        column = page.locator(".column").nth(at)
        expect(column.locator("h2")).to_have_text(name)
        assert column.locator(".cosine").all_inner_texts() == scores(found[name])
        shared = [key for key in ranks[name] if key in ranks[other]]
        marks = [f"also #{ranks[other][key]}" for key in shared]
        assert column.locator(".both").all_inner_texts() == marks
        expect(column.locator(".summary")).to_contain_text(f"{len(shared)} of 24 in both")
    assert scores(found["first"]) != scores(found["second"])


ORDER = ("first", "second")


def test_one_of_two_models_can_be_shown(visit_both):
    page = visit_both.page
    page.locator("#show").get_by_text("second").click()
    page.fill("#query", "a star")
    visit_both.settled("^24 texts")
    expect(page.locator(".column h2")).to_have_text(["second"])
    assert "show=second" in page.url
    page.locator("#show").get_by_text("Side by side").click()
    visit_both.settled(r"^24 \+ 24 texts")


def test_a_result_points_to_the_same_one_beside_it(visit_both):
    page = visit_both.page
    page.fill("#query", "a star")
    visit_both.settled(r"^24 \+ 24 texts")
    mark = page.locator(".column").first.locator(".result:has(.both)").first
    mark.hover()
    same = page.locator(".result.same")
    expect(same).to_have_count(1)
    assert same.get_attribute("data-key") == mark.get_attribute("data-key")


def overflow(page) -> int:
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def test_a_phone_needs_no_sideways_scrolling(browser, address, compared):
    visit = Visit(browser, address, size=PHONE)
    page = visit.page
    assert overflow(page) == 0
    page.fill("#query", "a red circle")
    visit.settled("texts")
    assert overflow(page) == 0
    tops = page.locator(".column").evaluate_all("(all) => all.map((one) => one.offsetLeft)")
    assert tops[0] == tops[1], "columns are stacked"
    page.locator(".result").first.click()
    assert overflow(page) == 0
    box = page.locator("#large").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    page.keyboard.press("Escape")
    page.get_by_text("Pictures", exact=True).click()
    visit.settled("pictures")
    visit.drop("a-long-name-" * 20 + ".png", read_member(compared / "data/pairs", 5))
    visit.settled("pictures")
    assert overflow(page) == 0
    visit.close()


def test_touch_targets_of_a_phone_are_large_enough(browser, single):
    visit = Visit(browser, single, "/?q=a+star", size=PHONE)
    visit.settled("texts")
    for box in visit.page.locator("button:visible, .segments span:visible").all():
        assert box.bounding_box()["height"] >= 24, "WCAG 2.2, 2.5.8"
    visit.close()


CONTRASTS = """() => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
            if (a === 1) return [r, g, b];
        }
        return [255, 255, 255];
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return [...document.querySelectorAll("body *")]
        .filter((one) => one.checkVisibility() && [...one.childNodes].some(
            (node) => node.nodeType === 3 && node.data.trim()))
        .map((one) => {
            const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))];
            return [one.tagName + "." + one.className + "#" + one.id,
                (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
        });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(browser, address, scheme):
    visit = Visit(browser, address, scheme=scheme)
    page = visit.page
    is_dark = sum(map(int, re.findall(r"\d+", page.evaluate(GROUND)))) < 3 * 128
    assert is_dark == (scheme == "dark")
    measured = page.evaluate(CONTRASTS)
    page.fill("#query", "a red circle")
    visit.settled("texts")
    measured += page.evaluate(CONTRASTS)
    page.locator(".result").first.click()
    measured += page.evaluate(CONTRASTS)
    page.keyboard.press("Escape")
    page.evaluate(EMPTY_DROP)
    measured += page.evaluate(CONTRASTS)
    assert len(measured) > 100
    assert [one for one in measured if one[1] < 4.5] == [], "WCAG 2.2, 1.4.3 AA"
    visit.close()


GROUND = "getComputedStyle(document.body).backgroundColor"


def test_every_control_has_a_name(visit_both):
    visit_both.page.fill("#query", "a star")
    visit_both.settled("texts")
    tree = visit_both.page.locator("body").aria_snapshot()
    assert 'searchbox "Search for"' in tree
    assert 'slider "Minimum score"' in tree
    assert 'radio "Side by side"' in tree
    nameless = r"(?m)- (button|link|img|radio|slider|textbox|searchbox)\s*(:|$)"
    assert not re.search(nameless, tree)


def test_words_of_the_server_are_never_markup(visit, compared):
    visit.type("<img src=x onerror=alert(1)><b>")
    visit.settled("^24 texts")
    found = ask(visit.address, q="x", k=1)
    found["results"][0]["text"] = "<img src=x onerror=alert(1)>"
    visit.page.route("**/search?*", lambda route: route.fulfill(json=found))
    visit.page.fill("#query", "y")
    expect(visit.page.locator(".text")).to_have_count(1)
    expect(visit.page.locator(".text")).to_have_text("<img src=x onerror=alert(1)>")
    expect(visit.page.locator(".text img")).to_have_count(0)


@pytest.mark.skipif(
    "KDMCSE_SCREENSHOTS" not in os.environ,
    reason="KDMCSE_SCREENSHOTS names no folder: no screenshots made",
)
def test_screenshots(browser, address):
    """Write the pictures of docs/app.md, of the server at KDMCSE_PAGE where there is one."""
    folder, url = Path(os.environ["KDMCSE_SCREENSHOTS"]), os.environ.get("KDMCSE_PAGE", address)
    query = "?q=a+green+square+above+a+yellow+circle"
    first = ask(url, q="x", k=1)["system"]
    one = f"&show={urllib.parse.quote_plus(first)}"
    shots = {
        "light": (f"/{query}&target=images{one}", DESK, "light"),
        "dark": (f"/{query}{one}", DESK, "dark"),
        "phone": (f"/{query}&target=images{one}", PHONE, "light"),
        "compare": (f"/{query}", DESK, "light"),
    }
    for name, (path, size, scheme) in shots.items():
        visit = Visit(browser, url, path, size, scheme)
        visit.settled("texts|pictures")
        visit.page.wait_for_timeout(1000)
        content = visit.page.screenshot()
        visit.close()
        save_small(folder / f"app-{name}.png", content)


def save_small(path: Path, content: bytes) -> None:
    """With a palette, which such pages have anyway."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < 200 * 1024
