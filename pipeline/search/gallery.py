"""Search results as one web page that needs no other file: it contains the pictures."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from pipeline.core.files import write_text
from pipeline.download.packed_images import PackedImages, Rejection
from pipeline.index.format import Hit
from pipeline.search.searcher import Answer, require_corpus
from pipeline.search.thumbnails import shrink

_SIDE = 320
"""Pixels of a picture's longer side."""
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif }
body { margin: 1.5rem }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem;
  padding: 0; list-style: none }
figure { margin: 0 }
img, .missing { width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882 }
.missing { display: grid; place-items: center }
.score { font-variant-numeric: tabular-nums; opacity: .7 }
"""


def save_gallery(path: Path, answers: Sequence[Answer], folder: Path, corpus: str) -> None:
    """Write the page, as an .html file.

    Args:
        path: the file.
        answers: in the order of the page.
        folder: the pairs.
        corpus: fingerprint of the pairs that the index was built from.

    Raises:
        StaleArtifactError: the folder holds other pairs.
        InputError: an archive cannot be read. A picture that cannot is left out, and named.
        ResourceError: the page cannot be written.
    """
    require_corpus(folder, corpus)
    sections = "\n".join(_section(one, folder) for one in answers)
    title = escape(answers[0].query if len(answers) == 1 else f"{len(answers)} queries")
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n{sections}\n</html>\n"
    )
    write_text(path, page)


def _section(answer: Answer, folder: Path) -> str:
    hits = answer.hits
    pictures = PackedImages(folder, [hit.archive for hit in hits], [hit.member for hit in hits])
    figures = "\n".join(_figure(hit, pictures.read(row)) for row, hit in enumerate(hits))
    return f"<h2>{escape(answer.query)}</h2>\n<ol>\n{figures}\n</ol>"


def _figure(hit: Hit, content: bytes | Rejection) -> str:
    small = content if isinstance(content, Rejection) else shrink(content, _SIDE)
    if isinstance(small, Rejection):
        picture = f'<div class="missing">{escape(hit.member)}: {small.reason}</div>'
    else:
        data = base64.b64encode(small).decode("ascii")
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(hit.text)}">'
    return (
        f'<li><figure>{picture}<figcaption><span class="score">{hit.rank}. cosine '
        f"{hit.score:.4f}</span><br>{escape(hit.text)}</figcaption></figure></li>"
    )
