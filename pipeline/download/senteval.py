"""Readers of SentEval's `senteval.tar`, as SentEval reads it, and of the STS data of MTEB.

Protocol (facebookresearch/SentEval): the files are tokenised; a sentence is its white-space tokens
joined by one space. MR, CR, SUBJ, MPQA and TREC are latin-1, the rest UTF-8. STS rows whose gold
line is empty are dropped. Blank lines of CR and MPQA are samples. Accents that the public files
carry as `cat -v` wrote them stay as they are, so that scores are comparable.

Every file must hold at least one sample, and a gold file one score: no task can get lost silently.
"""

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import InputError
from pipeline.core.files import refusal
from pipeline.core.plaintext import MARK, read_lines
from pipeline.core.redact import first_fault, first_line, one_line
from pipeline.download.archives import MAX_MEMBER_BYTES, Archive
from pipeline.download.records import STS, TRANSFER

STS_SUBSETS: Mapping[str, tuple[str, ...]] = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "OnWN", "images", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
"""STS13's SMT is not public: its gold file has no input file."""

_SPLITS = ("train", "dev", "test")
_SICK = {"train": "train", "dev": "trial", "test": "test_annotated"}
_BINARY = (  # task, file of label 1, file of label 0
    ("MR", "MR/rt-polarity.pos", "MR/rt-polarity.neg"),
    ("CR", "CR/custrev.pos", "CR/custrev.neg"),
    ("SUBJ", "SUBJ/subj.objective", "SUBJ/subj.subjective"),
    ("MPQA", "MPQA/mpqa.pos", "MPQA/mpqa.neg"),
)
_TREC = {"train": "TREC/train_5500.label", "test": "TREC/TREC_10.label"}
_TREC_CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")

_StsRow = tuple[str, str, str, str, str, float]
_TransferRow = tuple[str, str, str, str | None, int]


def read_senteval(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of sts.parquet and transfer.parquet: all tasks of the tar."""
    with Archive(path) as archive:
        files = _Files(archive)
        benchmark = _sts_benchmark(files, "STS/STSBenchmark", "STS-B")
        sts = [*_sts_by_year(files), *benchmark, *_sick(files)]
        transfer = [*_binary_tasks(files), *_trec(files), *_sst(files), *_mrpc(files)]
    return pd.DataFrame(sts, columns=STS.names), pd.DataFrame(transfer, columns=TRANSFER.names)


def read_cased_benchmark(path: Path) -> pd.DataFrame:
    """The rows of sts.parquet of STS-B from its authors: cased, not tokenised, as MTEB has it."""
    with Archive(path) as archive:
        rows = list(_sts_benchmark(_Files(archive), "stsbenchmark", "STS-B-cased"))
    return pd.DataFrame(rows, columns=STS.names)


_MTEB = {f"sts{year}-sts": f"STS{year}" for year in range(12, 17)} | {
    "stsbenchmark-sts": "STS-B-cased",
    "sickr-sts": "SICK-R",
}


def read_mteb_sts(paths: Iterable[Path]) -> pd.DataFrame:
    """The rows of sts.parquet from the Hub's mteb/* data sets; a file is NAME-SPLIT.jsonl.gz.

    Their text is cased and not tokenised; they do not say which pairs make a sub-set of a year.
    """
    rows = [row for path in paths for row in _mteb_rows(path)]
    return pd.DataFrame(rows, columns=STS.names)


class _MtebPair(BaseModel):
    model_config = ConfigDict(strict=True)
    sentence1: str
    sentence2: str
    score: Annotated[float, Field(ge=0, le=5)]


def _mteb_rows(path: Path) -> Iterator[_StsRow]:
    name, _, split = path.name.removesuffix(".jsonl.gz").rpartition("-")
    number = 0
    for number, text in read_lines(io.BytesIO(_unpack(path)), str(path)):
        line = _Line(f"{path} line {number:,}", text)
        try:
            pair = _MtebPair.model_validate_json(text)
        except ValidationError as error:
            raise line.malformed(f"has no usable {first_fault(error)}") from None
        sentences = _join(pair.sentence1), _join(pair.sentence2)
        yield _MTEB[name], "all", "dev" if split == "validation" else split, *sentences, pair.score
    if not number:
        raise InputError(f"{path} holds no pair.", "fetch it again.")


def _unpack(path: Path) -> bytes:
    try:
        with gzip.open(path) as stream:
            content = stream.read(MAX_MEMBER_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged: {first_line(error)}.", "fetch it again.") from None
    except OSError as error:
        raise refusal(path, error) from error
    if len(content) > MAX_MEMBER_BYTES:
        raise InputError(f"{path} unpacks to too much.", "fetch it again.")
    return content


class _Line(NamedTuple):
    """A line of a file, and where it is."""

    where: str
    text: str

    def malformed(self, problem: str) -> InputError:
        return InputError(f"{self.where} {one_line(problem, 160)}.", "fetch it again.")

    def score(self, text: str, lowest: float = 0.0) -> float:
        """A gold score, from `lowest` to 5, which is that of two sentences that mean the same."""
        with contextlib.suppress(ValueError):
            if lowest <= float(text) <= 5.0:  # noqa: PLR2004  # NaN is not in between either
                return float(text)
        problem = f"has the gold score {text.strip()!r}, not a number from {lowest:g} to 5"
        raise self.malformed(problem)

    def label(self, text: str) -> int:
        if text.strip() not in {"0", "1"}:
            raise self.malformed(f"has the label {text.strip()!r}, not 0 or 1")
        return int(text)


class _Files:
    """The files of an archive, none of which is blank."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def line(self, name: str, number: int, text: str = "") -> _Line:
        return _Line(f"{self._archive.path}: {name} row {number:,}", text)

    def lines(self, name: str, encoding: str = "utf-8") -> list[_Line]:
        """The lines of a file, as of any text; the last may end the file without a line break."""
        text = self.text(name, encoding).replace("\r\n", "\n").replace("\r", "\n")
        lines = text.removesuffix("\n").split("\n")
        return [self.line(name, number, line) for number, line in enumerate(lines, start=1)]

    def rows(
        self, name: str, columns: int, *, header: int = 0, more: bool = False
    ) -> Iterator[tuple[_Line, list[str]]]:
        """The tab-separated cells of `columns` columns (or `more`), after `header` lines."""
        lines = self.lines(name)[header:]
        if not lines:
            problem = "is missing: the file ends after its header"
            raise self.line(name, header + 1).malformed(problem)
        for line in lines:
            cells = line.text.split("\t")
            if len(cells) < columns or (len(cells) > columns and not more):
                expected = f"{columns} or more" if more else str(columns)
                raise line.malformed(f"has {len(cells)} columns, not {expected}")
            yield line, cells

    def text(self, name: str, encoding: str) -> str:
        """The whole of a file."""
        sizes = self._archive.sizes
        member = next((n for n in sizes if n == name or n.endswith(f"/{name}")), None)
        if member is None:
            raise InputError(f"{self._archive.path} holds no {name}.", "fetch it again.")
        content = self._archive.read(member).removeprefix(codecs.BOM_UTF8)
        try:
            text = content.decode(encoding).replace(MARK, "")
        except UnicodeDecodeError as error:
            number = content.count(b"\n", 0, error.start) + 1
            raise self.line(name, number).malformed(f"is not {encoding}") from None
        if not text.strip():
            raise self.line(name, 1).malformed("is missing or blank, and so are all others")
        return text


def _sts_by_year(files: _Files) -> Iterator[_StsRow]:
    for task, subset in ((task, one) for task, subsets in STS_SUBSETS.items() for one in subsets):
        folder = f"STS/{task}-en-test"
        name = f"{folder}/STS.input.{subset}.txt"
        scores = files.lines(f"{folder}/STS.gs.{subset}.txt")
        rows = list(files.rows(name, 2))
        if len(scores) != len(rows):
            raise scores[-1].malformed(f"is the last, but {name} has {len(rows):,} rows")
        for score, (_, (first, second)) in zip(scores, rows, strict=True):
            if score.text.strip():
                value = score.score(score.text)
                yield task, subset, "test", _join(first), _join(second), value


def _sts_benchmark(files: _Files, folder: str, task: str) -> Iterator[_StsRow]:
    for split in _SPLITS:  # some rows name their sources in further columns
        for line, cells in files.rows(f"{folder}/sts-{split}.csv", 7, more=True):
            yield task, cells[0], split, _join(cells[5]), _join(cells[6]), line.score(cells[4])


def _sick(files: _Files) -> Iterator[_StsRow]:
    for split, name in _SICK.items():
        for line, cells in files.rows(f"SICK/SICK_{name}.txt", 5, header=1):
            value = line.score(cells[3], lowest=1.0)
            yield "SICK-R", "SICK", split, _join(cells[1]), _join(cells[2]), value


def _binary_tasks(files: _Files) -> Iterator[_TransferRow]:
    for task, positive, negative in _BINARY:
        for label, name in ((1, positive), (0, negative)):
            for line in files.text(name, "latin-1").splitlines():  # which samples are counted by
                yield task, "all", _join(line), None, label


def _trec(files: _Files) -> Iterator[_TransferRow]:
    for split, name in _TREC.items():
        for line in files.lines(name, "latin-1"):
            label, _, question = line.text.partition(" ")
            coarse = label.partition(":")[0]
            if coarse not in _TREC_CLASSES:
                raise line.malformed(f"has the unknown class {coarse!r}")
            if not question.strip():
                raise line.malformed("has a class, but no question")
            yield "TREC", split, _join(question), None, _TREC_CLASSES.index(coarse)


def _sst(files: _Files) -> Iterator[_TransferRow]:
    for split in _SPLITS:
        for line, (sentence, label) in files.rows(f"SST/binary/sentiment-{split}", 2):
            yield "SST2", split, _join(sentence), None, line.label(label)


def _mrpc(files: _Files) -> Iterator[_TransferRow]:
    for split in ("train", "test"):
        name = f"MRPC/msr_paraphrase_{split}.txt"
        for line, (label, _, _, first, second) in files.rows(name, 5, header=1):
            yield "MRPC", split, _join(first), _join(second), line.label(label)


def _join(text: str) -> str:
    return " ".join(text.split())
