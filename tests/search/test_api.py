"""The API over the tiny run's real index: every answer, every refusal, every bound."""

import asyncio
import hashlib
import io
import itertools
import json
import re
import shutil
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import anyio
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from pipeline.core.errors import ModelError, StaleArtifactError
from pipeline.core.plaintext import is_blank
from pipeline.download.records import read_pairs, write_pairs
from pipeline.features.teacher import Teacher
from pipeline.index.format import Window
from pipeline.index.reader import FileIndex
from pipeline.search.app import upload
from pipeline.search.app.problems import RequestError
from pipeline.search.app.server import create_app
from pipeline.search.app.service import ConcurrencyLimiter
from tests.conftest import make_bomb
from tests.search.conftest import read_member, rewrite_archive

MIB = 1024**2


def open_client(pairs: Path, *searchers, teacher=None, names=()) -> TestClient:
    """A client of systems that are named one and two."""
    systems = dict(zip(("one", "two"), searchers, strict=False))
    return TestClient(create_app(systems, teacher, pairs, names), base_url="http://127.0.0.1:8000")


@pytest.fixture(scope="module")
def client(tiny_run, searcher, teacher) -> TestClient:
    pairs = tiny_run / "data/pairs"
    return open_client(pairs, searcher, searcher, teacher=lambda: teacher, names=["Box.lan"])


@pytest.fixture
def corpus(tiny_run, tmp_path) -> Path:
    """A copy of the pairs, to be changed."""
    return Path(shutil.copytree(tiny_run / "data/pairs", tmp_path / "pairs"))


@pytest.fixture(scope="module")
def check(client):
    """Check content by a schema of /openapi.json, of which it gives the name, or by its own."""
    from jsonschema import Draft202012Validator  # takes 2 s

    components = client.get("/openapi.json").json()["components"]

    def validate(schema: str | dict, content: object) -> None:
        if isinstance(schema, str):
            schema = {"$ref": f"#/components/schemas/{schema}", "components": components}
        Draft202012Validator(schema).validate(content)

    return validate


def assert_problem(response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    content = response.json()
    assert set(content) == {"error", "fix"}
    said = content["error"] + content["fix"]
    assert "\n" not in said
    assert "Traceback" not in said
    assert all(word in said for word in words), content


# ---- searches


@pytest.mark.parametrize("target", ["texts", "images"])
def test_results_are_those_of_the_searcher(client, searcher, check, target):
    query = {"q": "a red circle", "target": target, "k": 7, "offset": 2, "min_score": -0.5}
    found = client.get("/search", params=query).json()
    check("Results", found)
    expected = searcher.search(["a red circle"], target=target, window=Window(7, 2, -0.5))[0]
    for one, hit in zip(found["results"], expected, strict=True):
        assert {key: value for key, value in one.items() if key != "picture"} == asdict(hit)
    assert (found["system"], found["query"], found["target"]) == ("one", "a red circle", target)


def test_pages_join_to_the_whole_and_the_last_says_so(client, searcher):
    def fetch(offset: int, k: int = 100) -> dict:
        query = {"q": "stars", "target": "images", "k": k, "offset": offset}
        return client.get("/search", params=query).json()

    whole = searcher.search(["stars"], target="images", window=Window(10_000))[0]
    pages = [fetch(offset) for offset in range(0, len(whole), 100)]
    assert [one["id"] for page in pages for one in page["results"]] == [hit.id for hit in whole]
    assert [page["more"] for page in pages] == [True] * (len(pages) - 1) + [False]
    assert fetch(len(whole) - 10, k=10)["more"] is False


@given(st.text(max_size=200))
def test_every_text_is_answered_or_refused(client, check, query):
    response = client.get("/search", params={"q": query, "k": 3})
    if is_blank(query):
        assert_problem(response, 422, "query is empty")
    elif "\0" in query:
        assert_problem(response, 422, "NUL")
    else:
        check("Results", response.json())
        assert (response.json()["query"], len(response.json()["results"])) == (query, 3)


@given(
    st.integers(-5, 200),
    st.one_of(st.integers(-5, 20_000), st.integers()),
    st.floats(allow_nan=True, allow_infinity=True),
)
def test_numbers_are_within_their_bounds_or_refused(client, k, offset, score):
    query = {"q": "a red circle", "k": k, "offset": offset, "min_score": score}
    response = client.get("/search", params=query)
    if 1 <= k <= 100 and 0 <= offset <= 10_000 and -1 <= score <= 1:
        assert response.status_code == 200
        assert all(one["score"] >= score for one in response.json()["results"])
    else:
        assert_problem(response, 422)


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/search", 422, "q: Field required"),
        ("/search?q=%20%0A", 422, "the query is empty"),
        ("/search?q=" + "x" * 10_001, 422, "10,001 characters"),
        ("/search?q=a&k=1.5", 422, "k: "),
        ("/search?q=a&k=101", 422, "100"),
        ("/search?q=a&offset=10001", 422, "10000"),
        ("/search?q=a&min_score=high", 422, "min_score: "),
        ("/search?q=a&target=captions", 422, "target: "),
        ("/search?q=a&limit=3", 422, "limit: "),
        ("/search?q=a&system=three", 404, "'three'"),
        ("/image/0000/1", 404, "another corpus"),
        ("/image/0000/x", 422, "image_id: "),
        (f"/image/0000/{2**63}", 422, "image_id: "),
        ("/docs", 404, "/docs"),
        ("/redoc", 404, "/redoc"),
        ("/static/page.html", 422, "name: "),
    ],
)
def test_what_cannot_be_answered_says_why(client, address, status, words):
    assert_problem(client.get(address), status, words)


@pytest.mark.parametrize("address", ["/", "/search", "/about", "/image/0/1", "/static/page.js"])
def test_there_is_nothing_to_write(client, address):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        response = client.request(method, address)
        assert_problem(response, 405, "Method Not Allowed")
        assert response.headers["Allow"] == "GET"


def test_what_can_be_searched(client, check, tiny_run):
    about = client.get("/about").json()
    check("About", about)
    pairs, both = read_pairs(tiny_run / "data/pairs"), ["texts", "images"]
    assert about["systems"] == [
        {"name": name, "by_text": both, "by_picture": both} for name in ("one", "two")
    ]
    assert (about["images"], about["captions"]) == (len(pairs.images), len(pairs.captions))
    assert len(about["examples"]) == 4
    assert set(about["examples"]) <= set(pairs.captions["caption"])
    assert client.get("/health").json() == {"status": "ok"}


def test_an_index_without_pictures_says_what_it_lacks(tiny_run, searcher):
    blind = replace(searcher, index=FileIndex.open(tiny_run / "data/index", ["texts"]))
    client = open_client(tiny_run / "data/pairs", blind)
    described = client.get("/about").json()["systems"]
    assert described == [{"name": "one", "by_text": ["texts"], "by_picture": []}]
    assert client.get("/search?q=a+star").status_code == 200
    assert_problem(client.get("/search?q=a+star&target=images"), 422, "no images")
    assert_problem(client.post("/search/image", content=b"x"), 409, "no teacher")


# ---- pictures of results


@pytest.mark.parametrize("target", ["texts", "images"])
def test_a_result_shows_its_own_picture(client, tiny_run, target):
    pairs = read_pairs(tiny_run / "data/pairs")
    query = {"q": "a red circle", "target": target, "k": 3}
    for one in client.get("/search", params=query).json()["results"]:
        response = client.get(one["picture"])
        assert response.headers["Content-Type"] == "image/jpeg"
        assert "immutable" in response.headers["Cache-Control"]
        shown = Image.open(io.BytesIO(response.content))
        (image,) = pairs.images.loc[pairs.images["member"] == one["member"], "image_id"]
        original = Image.open(io.BytesIO(read_member(pairs.folder, image))).convert("RGB")
        assert shown.size == original.size
        difference = np.abs(np.asarray(shown, float) - np.asarray(original, float))
        assert difference.mean() < 4


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def picture_of(client: TestClient, image: int) -> str:
    """The address of an image, by the corpus that the server names."""
    address = client.get("/search?q=x&k=1&target=images").json()["results"][0]["picture"]
    return f"{address.rpartition('/')[0]}/{image}"


def test_pictures_are_small_and_upright_or_say_why_not(corpus, searcher):
    wide = io.BytesIO()
    Image.new("RGB", (3000, 1500), "red").save(wide, "JPEG", exif=orientation(6))
    changes = {1: None, 2: b"no picture", 3: make_bomb(), 4: read_member(corpus, 4)[:60]}
    rewrite_archive(corpus, changes | {5: wide.getvalue()})
    client = open_client(corpus, searcher)
    for size, expected in {"small": (192, 384), "large": (800, 1600)}.items():
        content = client.get(picture_of(client, 5), params={"size": size}).content
        assert Image.open(io.BytesIO(content)).size == expected
        for image, why in {1: "missing", 2: "unreadable", 3: "huge", 4: "truncated"}.items():
            response = client.get(picture_of(client, image), params={"size": size})
            assert_problem(response, 404, f"picture {image} cannot be shown ({why}")
    assert_problem(client.get(picture_of(client, 10**6)), 404, "there is no picture")
    assert_problem(client.get(picture_of(client, 5) + "?size=huge"), 422, "size: ")
    client = open_client(corpus, searcher)
    (corpus / "images.zip").unlink()
    response = client.get(picture_of(client, 9))
    assert_problem(response, 404, "picture 9 cannot be shown: images.zip cannot be read")
    assert str(corpus) not in response.text


class Stub:
    """An index that gives the same hits, or a fault, to every query."""

    spaces = ("texts", "images")

    def __init__(self, *hits):
        self.hits = hits

    def search(self, *_: object) -> list:
        if not self.hits:
            raise RuntimeError("private words of the query")
        return [list(self.hits)]


def test_the_path_of_a_shard_elsewhere_is_not_told(corpus, tmp_path, searcher):
    shard = (corpus / "images.zip").rename(tmp_path / "elsewhere.zip")
    pairs = read_pairs(corpus)
    write_pairs(corpus, pairs.images.assign(archive=str(shard)), pairs.captions)
    hit = searcher.search(["a star"], target="images", window=Window(1))[0][0]
    index, fingerprint = Stub(replace(hit, archive=str(shard))), read_pairs(corpus).fingerprint()
    client = open_client(corpus, replace(searcher, index=index, corpus=fingerprint))
    response = client.get("/search?q=a+star&target=images&k=1")
    assert response.json()["results"][0]["archive"] == "elsewhere.zip"
    assert str(tmp_path) not in response.text
    assert client.get(response.json()["results"][0]["picture"]).status_code == 200


def test_no_path_leads_to_a_file(client):
    version = picture_of(client, 1).split("/")[2]
    for address in (
        "/image/..%2f..%2fetc%2fpasswd/1",
        f"/image/{version}/..%2f..%2f..%2fetc%2fpasswd",
        f"/image/{version}/%2e%2e/%2e%2e/etc/passwd",
        f"/image/{version}//etc/passwd",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static//etc/passwd",
        "/static/page.js%00.png",
        "/..%2f..%2fetc/passwd",
        "/search/image/../../etc/passwd",
        "//etc/passwd",
        "/data/pairs/images.zip",
        "/params.yaml",
    ):
        response = client.get("http://127.0.0.1:8000" + address)
        assert response.status_code in {404, 405, 422}, address
        assert set(response.json()) == {"error", "fix"}


# ---- pictures as queries


@pytest.mark.parametrize(("target", "form"), [("texts", True), ("images", False)])
def test_a_picture_is_a_query(client, searcher, teacher, tiny_run, check, target, form):
    picture = read_member(tiny_run / "data/pairs", 5)
    body = {"files": {"picture": ("5.png", picture)}} if form else {"content": picture}
    found = client.post(f"/search/image?target={target}&k=4&system=two", **body).json()
    check("Results", found)
    expected = searcher.search_by_image(picture, teacher, target=target, window=Window(4))
    assert [one["id"] for one in found["results"]] == [hit.id for hit in expected]
    np.testing.assert_allclose(
        [one["score"] for one in found["results"]], [hit.score for hit in expected], atol=1e-5
    )
    assert (found["query"], found["system"]) == (None, "two")


def test_a_picture_lies_as_its_exif_says(client, tiny_run):
    picture = Image.open(io.BytesIO(read_member(tiny_run / "data/pairs", 5)))
    stream = io.BytesIO()
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.save(stream, "PNG", exif=orientation(6))
    best = client.post("/search/image?target=images&k=1", content=stream.getvalue()).json()
    assert (best["results"][0]["id"], round(best["results"][0]["score"], 3)) == (5, 1.0)


BOUNDARY = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"", {}, "no picture in the request"),
        (b"no picture", {}, "unreadable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", {}, "unreadable"),
        (make_bomb(), {}, "huge"),
        (b"--x--\r\n", BOUNDARY, "no file named picture"),
        (b"rubbish", BOUNDARY, "form cannot be read"),
        (b"rubbish", {"Content-Type": "multipart/form-data"}, "form cannot be read"),
        (PART % (b"picture", b"", b"text"), BOUNDARY, "form cannot be read"),
        (PART % (b"photo", b'; filename="a"', b"x"), BOUNDARY, "no file named picture"),
        (PART % (b"picture", b'; filename="a"', b""), BOUNDARY, "no picture in the request"),
        (PART % (b"picture", b'; filename="../../a"', b"x"), BOUNDARY, "unreadable"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else None,
)
def test_what_is_no_picture_says_why(client, body, headers, words):
    assert_problem(client.post("/search/image", content=body, headers=headers), 422, words)


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_break_the_server(client, content, as_form):
    headers = BOUNDARY if as_form else {}
    assert_problem(client.post("/search/image", content=content, headers=headers), 422)


def test_wrong_parameters_of_an_upload_are_refused_before_it_is_read(client):
    assert_problem(client.post("/search/image?k=0", content=b"x"), 422, "k: ")
    assert_problem(client.post("/search/image?q=a", content=b"x"), 422, "q: ")
    assert_problem(client.post("/search/image?system=x", content=b"x"), 404, "'x'")


def test_an_upload_ends_at_its_limit(client):
    def send(count: int) -> object:
        return client.post("/search/image", content=itertools.repeat(b"x" * MIB, count))

    assert_problem(client.post("/search/image", content=b"x" * (16 * MIB + 1)), 413, "16 MiB")
    for count in (40, 80):
        assert_problem(send(count), 413, "16 MiB")
    form = {"files": {"picture": ("a.png", b"x" * (16 * MIB + 1))}}
    assert_problem(client.post("/search/image", **form), 413, "16 MiB")
    assert_problem(client.post("/search/image", content=b"x" * 16 * MIB), 422, "unreadable")


async def post(app: FastAPI, headers: dict[str, str], receive) -> tuple[int, dict]:
    """POST to /search/image as a server would, with a body that `receive` gives."""
    sent: list[dict] = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/search/image",
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in ({"host": "localhost"} | headers).items()],
    }

    async def send(message: dict) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"] or "{}")


def test_a_declared_size_is_refused_without_reading(client):
    async def never():
        pytest.fail("the body was read")

    for declared in (str(64 * MIB + 1), "9" * 400, "many", "-1"):
        status, problem = asyncio.run(post(client.app, {"content-length": declared}, never))
        assert (status, set(problem)) == (413, {"error", "fix"})


def test_a_body_that_does_not_come_is_given_up(client, monkeypatch):
    monkeypatch.setattr(upload, "_SECONDS", 0.1)
    begun = time.monotonic()
    status, problem = asyncio.run(post(client.app, {}, lambda: anyio.sleep(60)))
    assert (status, set(problem)) == (408, {"error", "fix"})
    assert time.monotonic() - begun < 10


def test_who_leaves_is_not_a_fault_of_the_server(client, caplog):
    async def gone():
        return {"type": "http.disconnect"}

    assert asyncio.run(post(client.app, {}, gone)) == (499, {})
    assert not caplog.records


# ---- vectors


@pytest.mark.parametrize("space", ["text", "shared"])
def test_texts_become_vectors(client, searcher, check, space):
    texts = ["a red circle", "zwei blaue Sterne 🙂", "x" * 10_000]
    asked = {"texts": texts, "space": space, "system": "two"}
    document = client.get("/openapi.json").json()
    body = document["paths"]["/embed"]["post"]["requestBody"]["content"]["application/json"]
    check(body["schema"], asked)
    found = client.post("/embed", json=asked).json()
    check("Embedded", found)
    assert (found["system"], found["space"]) == ("two", space)
    target = {"text": "texts", "shared": "images"}[space]
    np.testing.assert_array_equal(found["vectors"], searcher.queries.embed(texts, target))
    (one,) = client.post("/embed", json={"texts": ["a red circle"]}).json()["vectors"]
    np.testing.assert_allclose(one, searcher.queries.embed(texts[:1], "texts")[0], atol=1e-5)


def test_a_picture_becomes_a_vector(client, searcher, teacher, tiny_run, check):
    picture = read_member(tiny_run / "data/pairs", 5)
    found = client.post("/embed/image?system=two", content=picture).json()
    check("Embedded", found)
    assert (found["system"], found["space"]) == ("two", "shared")
    expected = searcher.embed_image(picture, teacher)
    np.testing.assert_allclose(found["vectors"], expected, atol=1e-6)
    assert_problem(client.post("/embed/image?k=1", content=picture), 422, "k: ")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 422, "the request: "),
        (b"{", 422, "the request: "),
        (b'"a"', 422, "the request: "),
        (b"{}", 422, "texts: Field required"),
        (b'{"texts": "a"}', 422, "texts: "),
        (b'{"texts": []}', 422, "texts: "),
        (b'{"texts": ["a", 1]}', 422, "texts.1: "),
        (b'{"texts": ["a", " "]}', 422, "texts.1: the query is empty"),
        (b'{"texts": ["a\\u0000"]}', 422, "NUL"),
        (b'{"texts": ["\xff"]}', 422, "the request: "),
        (b'{"texts": ["%b"]}' % (b"x" * 10_001), 422, "10,001 characters"),
        (b'{"texts": ["a"%b]}' % (b', "a"' * 64), 422, "64 items"),
        (b'{"texts": ["a"], "space": "images"}', 422, "space: "),
        (b'{"texts": ["a"], "dimensions": 3}', 422, "dimensions: "),
        (b'{"texts": ["a"], "system": "three"}', 404, "'three'"),
        (b" " * (8 * MIB + 1), 413, "the request is larger than 8 MiB"),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else None,
)
def test_what_is_no_request_for_vectors_says_why(client, body, status, words):
    assert_problem(client.post("/embed", content=body), status, words)


def test_no_vectors_of_a_space_that_the_student_lacks(tiny_run, searcher):
    blind = replace(searcher, index=FileIndex.open(tiny_run / "data/index", ["texts"]))
    client = open_client(tiny_run / "data/pairs", blind)
    asked = {"texts": ["a star"]}
    assert client.post("/embed", json=asked).status_code == 200
    response = client.post("/embed", json=asked | {"space": "shared"})
    assert_problem(response, 422, "trained without pictures")


# ---- who may ask


@pytest.mark.parametrize(
    ("hosts", "allowed"),
    [
        (("127.0.0.1:8000", "LOCALHOST:1", "[::1]:8000", "192.168.1.7:8000", "box.lan"), True),
        (("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000"), False),
        (("", "[::1", "@"), False),
    ],
)
def test_only_known_names_are_answered(client, hosts, allowed):
    for host in hosts:
        response = client.get("/health", headers={"Host": host})
        if allowed:
            assert response.status_code == 200
        else:
            assert_problem(response, 421, "--allow-host")


def test_pages_of_others_may_not_ask(client):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "http://["):
        response = client.post("/search/image", content=b"x", headers={"Origin": origin})
        assert_problem(response, 403, "may not ask")
    own = client.get("/health", headers={"Origin": "http://127.0.0.1:8000"})
    assert own.status_code == 200


def test_every_answer_is_guarded(client):
    for address in ("/", "/nothing", "/search?q=", "/search?q=a", "/static/page.js"):
        headers = client.get(address).headers
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert not [name for name in headers if name.lower().startswith("access-control")]


def test_the_page_loads_nothing_from_elsewhere(client):
    answers = [client.get(a) for a in ("/", "/static/page.css", "/static/page.js")]
    for answer, kind in zip(answers, ("html", "css", "javascript"), strict=True):
        assert answer.headers["Content-Type"] == f"text/{kind}; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert not re.search(r"https?:|[\"'(]//", answer.text)
    inline = r"<script>|<style|\s(style|on[a-z]+)="
    assert not re.search(inline, answers[0].text), "the policy forbids it"


# ---- what holds it together


def test_pairs_of_another_corpus_are_refused(corpus, searcher):
    pairs = read_pairs(corpus)
    pairs.captions.loc[0, "caption"] = "something else"
    write_pairs(corpus, pairs.images, pairs.captions)
    with pytest.raises(StaleArtifactError, match="the index of one") as error:
        open_client(corpus, searcher)
    assert "dvc repro index" in error.value.fix


def test_the_teacher_is_loaded_once_however_many_ask(tiny_run, searcher, teacher):
    loads = []

    def load() -> Teacher:
        loads.append(1)
        time.sleep(0.05)
        if len(loads) == 1:
            raise ModelError("no memory.", "try again.")
        return teacher

    app = open_client(tiny_run / "data/pairs", searcher, teacher=load).app
    picture = read_member(tiny_run / "data/pairs", 5)

    async def receive() -> dict:
        return {"type": "http.request", "body": picture}

    async def scenario() -> list[tuple[int, dict]]:
        failed = await post(app, {}, receive)
        return [failed, *await asyncio.gather(*(post(app, {}, receive) for _ in range(4)))]

    assert [status for status, _ in asyncio.run(scenario())] == [409, 200, 200, 200, 200]
    assert len(loads) == 2


def test_the_limiter_bounds_who_is_served_and_who_waits():
    running, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    async def request(limiter: ConcurrencyLimiter) -> int:
        try:
            with limiter.place():
                await limiter.run(work)
        except RequestError as error:
            return error.status
        return 200

    async def scenario() -> list[int]:
        limiter = ConcurrencyLimiter(threads=2, places=10)
        first = await asyncio.gather(*(request(limiter) for _ in range(15)))
        return [*first, await request(limiter)]

    assert sorted(asyncio.run(scenario())) == [200] * 11 + [503] * 5, "places are given back"
    assert most == 2


def test_a_fault_of_the_server_is_told_without_its_words(tiny_run, searcher, caplog, capfd):
    client = open_client(tiny_run / "data/pairs", replace(searcher, index=Stub()))
    response = client.get("/search?q=private+words")
    assert_problem(response, 500, "RuntimeError")
    assert "default-src" in response.headers["Content-Security-Policy"]
    assert "private" not in response.text + caplog.text + "".join(capfd.readouterr())
    assert "unexpected RuntimeError at search" in caplog.text


def test_nothing_is_written(client, tiny_run):
    def digest() -> dict[str, str]:
        files = sorted(path for path in tiny_run.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digest()
    picture = read_member(tiny_run / "data/pairs", 5)
    client.post("/search/image", files={"picture": ("a.png", picture + b"\0" * 2 * MIB)})
    for one in client.get("/search?q=a+star&target=images&k=3").json()["results"]:
        client.get(one["picture"])
    assert digest() == before
