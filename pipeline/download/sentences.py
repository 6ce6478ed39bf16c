"""Text-only sentences in files: one a line, or a column of a table."""

from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import is_blank, read_lines
from pipeline.download.caption_table import join_captions, read_cells, require_file
from pipeline.download.pairing import clean_caption
from pipeline.params.download import DownloadParams

_FILE, _COLUMN = "download.text_file", "download.text_column"


def read_sentences_file(path: Path, fix: str) -> list[str]:
    """The sentences of a text file, one a line, without surrounding white space and empty lines.

    Raises:
        InputError: it is not a text, or holds no sentence; `fix` says what to do.
    """
    with reports_unreadable(path), path.open("rb") as stream:
        lines = (line.strip() for _, line in read_lines(stream, str(path)))
        sentences = [line for line in lines if not is_blank(line)]
    if not sentences:
        raise InputError(f"{path} holds no sentence.", fix)
    return sentences


def read_own_sentences(params: DownloadParams) -> tuple[list[str], dict[str, int]]:
    """The sentences of all files of `params.text_file`, in order, and how many cells are empty.

    Raises:
        InputError: a file is not there, cannot be used, or holds no sentence.
    """
    names = params.text_file or []
    sentences: list[str] = []
    empty = 0
    for path in map(Path, [names] if isinstance(names, str) else names):
        require_file(path, _FILE)
        if path.suffix.lower() == ".txt":
            sentences += read_sentences_file(path, f"write one a line, or check {_FILE}.")
            continue
        rows = read_cells(path, _FILE, {_COLUMN: params.text_column})
        texts = [text for where, cells in rows for text in join_captions(cells[_COLUMN], where)]
        found = list(map(clean_caption, texts))
        kept = list(filter(None, found))
        if not kept:
            raise InputError(f"{path} holds no sentence.", f"check {_FILE} and {_COLUMN}.")
        sentences += kept
        empty += len(found) - len(kept)
    return sentences, {"sentences_empty": empty}
