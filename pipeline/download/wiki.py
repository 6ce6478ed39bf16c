"""Reader of plain text files with one sentence a line."""

from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import is_blank, read_lines


def read_sentences_file(path: Path) -> list[str]:
    """The sentences of a text file, without surrounding white space and empty lines.

    Raises:
        InputError: it is not UTF-8 text, or holds no sentence.
        ResourceError: it cannot be read.
    """
    with reports_unreadable(path), path.open("rb") as stream:
        lines = (line.strip() for _, line in read_lines(stream, str(path)))
        sentences = [line for line in lines if not is_blank(line)]
    if not sentences:
        raise InputError(f"{path} holds no sentence.", "fetch the file again.")
    return sentences
