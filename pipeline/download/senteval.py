"""Readers of SentEval's `senteval.tar`, as SentEval reads it, and of the cased STS-B of MTEB.

Protocol (facebookresearch/SentEval): the files are tokenised; a sentence is its white-space tokens
joined by one space. MR, CR, SUBJ, MPQA and TREC are latin-1, the rest UTF-8. STS rows whose gold
line is empty are dropped. Blank lines of CR and MPQA are samples. Accents that the public files
carry as `cat -v` wrote them stay as they are, so that scores are comparable.

Every file must hold at least one sample, and a gold file one score: no task can get lost silently.
"""

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.core.errors import InputError
from pipeline.core.plaintext import MARK
from pipeline.core.redact import one_line
from pipeline.download.archives import Archive
from pipeline.download.records import STS, TRANSFER

STS_SUBSETS: Mapping[str, tuple[str, ...]] = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "OnWN", "images", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
"""STS13's SMT is not public: its gold file has no input file."""

_LONGEST = 160
"""Characters of what is wrong with a row, in a message."""
_HIGHEST = 5.0
"""Gold score of two sentences that mean the same."""

_STSB = {"train": "sts-train.csv", "dev": "sts-dev.csv", "test": "sts-test.csv"}
_SICK = {
    "train": "SICK/SICK_train.txt",
    "dev": "SICK/SICK_trial.txt",
    "test": "SICK/SICK_test_annotated.txt",
}
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
    """Read all STS and transfer tasks of the tar.

    Returns:
        The rows of sts.parquet and transfer.parquet.

    Raises:
        InputError: a file is missing or a row has another form; file and row are named.
    """
    with Archive(path) as archive:
        files = _Files(archive)
        benchmark = _sts_benchmark(files, "STS/STSBenchmark", "STS-B")
        sts = [*_sts_by_year(files), *benchmark, *_sick(files)]
        transfer = [*_binary_tasks(files), *_trec(files), *_labelled(files)]
    return (
        pd.DataFrame(sts, columns=STS.names),
        pd.DataFrame(transfer, columns=TRANSFER.names),
    )


def read_cased_benchmark(path: Path) -> pd.DataFrame:
    """Read STS-B from its authors' archive: cased and not tokenised, as MTEB scores it.

    Returns:
        Rows of sts.parquet, of the task STS-B-cased.

    Raises:
        InputError: a file is missing or a row has another form; file and row are named.
    """
    with Archive(path) as archive:
        rows = list(_sts_benchmark(_Files(archive), "stsbenchmark", "STS-B-cased"))
    return pd.DataFrame(rows, columns=STS.names)


@dataclass(frozen=True)
class _Files:
    archive: Archive

    def lines(self, name: str, encoding: str = "utf-8") -> list[str]:
        """The lines of a file, as of any text; the last may end the file without a line break."""
        lines = self.text(name, encoding).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return lines[:-1] if lines[-1] == "" else lines

    def rows(
        self, name: str, columns: int, *, header: int = 0, more: bool = False
    ) -> Iterator[tuple[int, list[str]]]:
        """Numbered tab-separated rows of `columns` columns (or `more`), after `header` lines."""
        lines = self.lines(name)[header:]
        if not lines:
            raise self.malformed(name, header + 1, "is missing: the file ends after its header")
        for number, line in enumerate(lines, start=header + 1):
            cells = line.split("\t")
            if len(cells) < columns or (len(cells) > columns and not more):
                expected = f"{columns} or more" if more else str(columns)
                raise self.malformed(name, number, f"has {len(cells)} columns, not {expected}")
            yield number, cells

    def text(self, name: str, encoding: str) -> str:
        """The whole of a file."""
        member = next((n for n in self.archive.sizes if n == name or n.endswith(f"/{name}")), None)
        if member is None:
            raise InputError(f"{self.archive.path} holds no {name}.", "fetch it again.")
        content = self.archive.read(member).removeprefix(codecs.BOM_UTF8)
        try:
            text = content.decode(encoding).replace(MARK, "")
        except UnicodeDecodeError as error:
            number = content.count(b"\n", 0, error.start) + 1
            raise self.malformed(name, number, f"is not {encoding}") from None
        if not text.strip():
            raise self.malformed(name, 1, "is missing or blank, and so are all others")
        return text

    def score(self, text: str, name: str, number: int, lowest: float = 0.0) -> float:
        """The gold score of a row, from `lowest` to 5."""
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not lowest <= value <= _HIGHEST:  # NaN is not in between either
            scale = f"{lowest:g} to {_HIGHEST:g}"
            problem = f"has the gold score {text.strip()!r}, not a number from {scale}"
            raise self.malformed(name, number, problem)
        return value

    def malformed(self, name: str, number: int, problem: str) -> InputError:
        """An error that names file and row."""
        return InputError(
            f"{self.archive.path}: {name} row {number:,} {one_line(problem, _LONGEST)}.",
            "fetch it again.",
        )


def _sts_by_year(files: _Files) -> Iterator[_StsRow]:
    for task, subset in ((task, one) for task, subsets in STS_SUBSETS.items() for one in subsets):
        folder = f"STS/{task}-en-test"
        gold_name, name = f"{folder}/STS.gs.{subset}.txt", f"{folder}/STS.input.{subset}.txt"
        gold = files.lines(gold_name)
        rows = list(files.rows(name, 2))
        if len(gold) != len(rows):
            problem = f"is the last, but {name} has {len(rows):,} rows"
            raise files.malformed(gold_name, len(gold), problem)
        for score, (number, (first, second)) in zip(gold, rows, strict=True):
            if score.strip():
                value = files.score(score, gold_name, number)
                yield task, subset, "test", _join(first), _join(second), value


def _sts_benchmark(files: _Files, folder: str, task: str) -> Iterator[_StsRow]:
    for split, file in _STSB.items():
        name = f"{folder}/{file}"
        for number, cells in files.rows(name, 7, more=True):  # some rows name their sources, too
            value = files.score(cells[4], name, number)
            yield task, cells[0], split, _join(cells[5]), _join(cells[6]), value


def _sick(files: _Files) -> Iterator[_StsRow]:
    for split, name in _SICK.items():
        for number, cells in files.rows(name, 5, header=1):
            value = files.score(cells[3], name, number, lowest=1.0)
            yield "SICK-R", "SICK", split, _join(cells[1]), _join(cells[2]), value


def _binary_tasks(files: _Files) -> Iterator[_TransferRow]:
    for task, positive, negative in _BINARY:
        for label, name in ((1, positive), (0, negative)):
            for line in files.text(name, "latin-1").splitlines():  # which samples are counted by
                yield task, "all", _join(line), None, label


def _trec(files: _Files) -> Iterator[_TransferRow]:
    for split, name in _TREC.items():
        for number, line in enumerate(files.lines(name, "latin-1"), start=1):
            label, _, question = line.partition(" ")
            coarse = label.partition(":")[0]
            if coarse not in _TREC_CLASSES:
                raise files.malformed(name, number, f"has the unknown class {coarse!r}")
            if not question.strip():
                raise files.malformed(name, number, "has a class, but no question")
            yield "TREC", split, _join(question), None, _TREC_CLASSES.index(coarse)


def _labelled(files: _Files) -> Iterator[_TransferRow]:
    """SST2, whose rows are a sentence and its label, and MRPC."""
    for split in ("train", "dev", "test"):
        name = f"SST/binary/sentiment-{split}"
        for number, (sentence, label) in files.rows(name, 2):
            yield "SST2", split, _join(sentence), None, _label(files, label, name, number)
    for split in ("train", "test"):
        name = f"MRPC/msr_paraphrase_{split}.txt"
        for number, (label, _, _, first, second) in files.rows(name, 5, header=1):
            yield "MRPC", split, _join(first), _join(second), _label(files, label, name, number)


def _label(files: _Files, text: str, name: str, number: int) -> int:
    if text.strip() not in {"0", "1"}:
        raise files.malformed(name, number, f"has the label {text.strip()!r}, not 0 or 1")
    return int(text)


def _join(text: str) -> str:
    return " ".join(text.split())
