"""Reader of plain text files with one sentence a line."""

from pathlib import Path

from pipeline.errors import InputError


def read_sentences_file(path: Path) -> list[str]:
    """The sentences of a UTF-8 text file, white space stripped, empty lines left out.

    Raises:
        InputError: it is not UTF-8 or holds no sentence.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 at byte {error.start:,}.", "fetch the file again."
        ) from None
    sentences = [line for raw in text.split("\n") if (line := raw.strip())]
    if not sentences:
        raise InputError(f"{path} holds no sentence.", "fetch the file again.")
    return sentences
