import functools
import gzip
import io
import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from pipeline.core.errors import InputError
from pipeline.download.senteval import (
    STS_SUBSETS,
    read_cased_benchmark,
    read_mteb_sts,
    read_senteval,
)
from pipeline.download.sources import BY_NAME
from tests.conftest import SHARED

PAIR = "a b\tc d\n"
GOLD = "STS/STS12-en-test/STS.gs.MSRpar.txt"
INPUT = "STS/STS12-en-test/STS.input.MSRpar.txt"
STSB = "STS/STSBenchmark/sts-dev.csv"
SICK = "SICK/SICK_trial.txt"
TREC = "TREC/train_5500.label"
SST = "SST/binary/sentiment-dev"
MRPC = "MRPC/msr_paraphrase_test.txt"


def small_files() -> dict[str, bytes]:
    """Every file of senteval.tar, with one or two rows of its own format."""
    files = {
        f"STS/{task}-en-test/STS.{kind}.{subset}.txt": text
        for task, subsets in STS_SUBSETS.items()
        for subset in subsets
        for kind, text in (("input", PAIR * 2), ("gs", "2.5\n\n"))
    }
    files |= {
        f"STS/STSBenchmark/sts-{s}.csv": "g\tf\ty\t1\t4.0\ta \tb\n"
        for s in ("train", "dev", "test")
    }
    files |= {
        f"SICK/SICK_{s}.txt": "head\n1\tA b\tC\t4.5\tNEUTRAL\n"
        for s in ("train", "trial", "test_annotated")
    }
    for name in ("MR/rt-polarity.pos", "MR/rt-polarity.neg", "CR/custrev.pos", "CR/custrev.neg"):
        files[name] = "clich\xe9 one\n\ntwo\n"
    for name in ("SUBJ/subj.objective", "SUBJ/subj.subjective", "MPQA/mpqa.pos", "MPQA/mpqa.neg"):
        files[name] = "x  y \n"
    files |= {
        "TREC/train_5500.label": "DESC:manner How ?\n",
        "TREC/TREC_10.label": "NUM:date When\n",
    }
    files |= {f"SST/binary/sentiment-{s}": "fine .\t1\n" for s in ("train", "dev", "test")}
    encoded = {name: text.encode("latin-1") for name, text in files.items()}
    mrpc = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tl\u00e0\tb\n"
    return encoded | {f"MRPC/msr_paraphrase_{s}.txt": mrpc.encode() for s in ("train", "test")}


def cased_files() -> dict[str, bytes]:
    """The files of Stsbenchmark.tar.gz; some rows name their sources in further columns."""
    row = 'news\theadlines\t2016\t7\t4.600\tIsn\'t "it"  Él?\tIt is.'
    files = {"train": f"{row}\tsource\tlicence\n{row}\n", "dev": f"{row}\n", "test": f"{row}\r\n"}
    return {f"stsbenchmark/sts-{split}.csv": text.encode() for split, text in files.items()}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_rows_are_read_as_senteval_reads_them(tmp_path):
    sts, transfer = read_senteval(pack(tmp_path / "senteval.tar", small_files()))
    years = sts[sts["task"].str.match(r"STS\d")]
    assert len(years) == sum(len(subsets) for subsets in STS_SUBSETS.values())  # ungraded dropped
    subsets = years.groupby("task")["subset"].agg(set)
    assert dict(subsets) == {task: set(of) for task, of in STS_SUBSETS.items()}
    assert set(sts["task"]) == {*STS_SUBSETS, "STS-B", "SICK-R"}
    assert set(transfer["task"]) == {"MR", "CR", "SUBJ", "MPQA", "TREC", "SST2", "MRPC"}
    assert set(years["score"]) == {2.5}
    assert set(years["split"]) == {"test"}
    assert list(sts[sts["task"] == "STS-B"]["split"]) == ["train", "dev", "test"]
    assert list(sts[sts["task"] == "SICK-R"]["sentence1"]) == ["A b"] * 3
    reviews = transfer[transfer["task"] == "CR"]
    assert list(reviews["sentence1"]) == ["clich\xe9 one", "", "two"] * 2  # blank lines are samples
    assert list(reviews["label"]) == [1, 1, 1, 0, 0, 0]
    assert list(transfer[transfer["task"] == "TREC"]["label"]) == [1, 5]
    paraphrase = transfer[transfer["task"] == "MRPC"].iloc[0]
    assert (paraphrase["sentence1"], paraphrase["sentence2"], paraphrase["label"]) == ("là", "b", 1)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (GOLD, "1\n", "row 1 is the last, but .*input.* has 2 rows"),
        (GOLD, "1\n1\n1\n", "row 3 is the last, but .*input.* has 2 rows"),
        (GOLD, "1\nnan\n", "row 2 has the gold score 'nan', not a number from 0 to 5"),
        (GOLD, "1\n2,5\n", "row 2 has the gold score '2,5'"),
        (GOLD, "1\n5.01\n", "row 2 has the gold score '5.01'"),
        (GOLD, "-0.1\n2\n", "row 1 has the gold score '-0.1'"),
        (INPUT, "a\tb\nc\n", "row 2 has 1 columns, not 2"),
        (INPUT, "a\tb\tc\na\tb\n", "row 1 has 3 columns, not 2"),
        (STSB, "g\tf\ty\t1\tx\ta\tb\n", "row 1 has the gold score 'x'"),
        (STSB, "g\tf\ty\t1\t5.5\ta\tb\n", "row 1 has the gold score '5.5'"),
        (STSB, "g\tf\ty\t1\t5\ta\n", "row 1 has 6 columns, not 7 or more"),
        (SICK, "head\n1\t2\n", "row 2 has 2 columns, not 5"),
        (SICK, "head\n1\ta\tb\t4\tx\ty\n", "row 2 has 6 columns, not 5"),
        (
            SICK,
            "head\n1\ta\tb\t0.5\tx\n",
            "row 2 has the gold score '0.5', not a number from 1 to",
        ),
        (SICK, "head\n", "row 2 is missing: the file ends after its header"),
        (SICK, b"head\n1\t\xff\xfe", "row 2 is not utf-8"),
        (TREC, "WHAT:x y\n", "row 1 has the unknown class 'WHAT'"),
        (TREC, "DESC:x y\nDESC:x\n", "row 2 has a class, but no question"),
        (SST, "x\t3\n", "row 1 has the label '3'"),
        (SST, "x\t1\ny\t1\t0\n", "row 2 has 3 columns, not 2"),
        (MRPC, "head\n1\t2\t3\ta\n", "row 2 has 4 columns, not 5"),
        (MRPC, "\ufeffhead\n", "row 2 is missing"),
    ],
)
def test_malformed_files_are_named_with_their_row(tmp_path, name, content, words):
    content = content if isinstance(content, bytes) else content.encode()
    path = pack(tmp_path / "senteval.tar", small_files() | {name: content})
    with pytest.raises(InputError, match=words) as error:
        read_senteval(path)
    assert f"{path}: {name} " in error.value.what
    assert error.value.fix == "fetch it again."


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n"])
def test_no_file_may_be_empty(tmp_path, content):
    """Else its task, subset or class would be missing without a word."""
    for name in (GOLD, INPUT, STSB, SICK, TREC, SST, MRPC, "MR/rt-polarity.pos"):
        path = pack(tmp_path / "senteval.tar", small_files() | {name: content})
        with pytest.raises(InputError, match="row 1 is missing or blank") as error:
            read_senteval(path)
        assert name in error.value.what


def test_the_cased_benchmark_keeps_case_and_punctuation(tmp_path):
    rows = read_cased_benchmark(pack(tmp_path / "Stsbenchmark.tar.gz", cased_files()))
    assert list(rows["split"]) == ["train", "train", "dev", "test"]
    assert set(rows["task"]) == {"STS-B-cased"}
    assert set(rows["subset"]) == {"news"}
    assert set(rows["sentence1"]) == {'Isn\'t "it" Él?'}
    assert set(rows["sentence2"]) == {"It is."}
    assert set(rows["score"]) == {4.6}


def test_a_bad_row_of_the_cased_benchmark_and_a_missing_file_are_named(tmp_path):
    files = cased_files() | {"stsbenchmark/sts-dev.csv": b"a\tb\tc\td\t7\te\tf\n"}
    path = pack(tmp_path / "Stsbenchmark.tar.gz", files)
    with pytest.raises(InputError, match=r"sts-dev\.csv row 1 has the gold score '7'") as error:
        read_cased_benchmark(path)
    assert str(path) in error.value.what
    files = small_files()
    del files["MPQA/mpqa.neg"]
    with pytest.raises(InputError, match=r"holds no MPQA/mpqa\.neg"):
        read_senteval(pack(tmp_path / "senteval.tar", files))


@pytest.mark.real
def test_the_public_counts_are_met():
    tables = read_senteval(SHARED / "mirror" / "senteval.tar")
    counts = pd.concat([table["task"] for table in tables]).value_counts()
    found = {str(task).lower().replace("-", "_"): count for task, count in counts.items()}
    assert found == BY_NAME["senteval"].counts


compress = functools.partial(gzip.compress, mtime=0)
"""The time would be part of a test's name, and differ between workers."""


def mteb_pairs(*scores: float) -> bytes:
    """A file of a data set of MTEB."""
    rows = ({"split": "test", "sentence1": " A  b.", "sentence2": "C", "score": s} for s in scores)
    return compress("".join(f"{json.dumps(row)}\n" for row in rows).encode())


def test_the_hub_s_sts_data_sets_are_read_by_task_and_split(tmp_path):
    names = ("sts12-sts-test", "stsbenchmark-sts-validation", "sickr-sts-test")
    paths = [tmp_path / f"{name}.jsonl.gz" for name in names]
    for path in paths:
        path.write_bytes(mteb_pairs(4.75, 0))
    table = read_mteb_sts(paths)
    assert table["task"].unique().tolist() == ["STS12", "STS-B-cased", "SICK-R"]
    assert table["split"].tolist() == ["test"] * 2 + ["dev"] * 2 + ["test"] * 2
    assert table["score"].tolist() == [4.75, 0.0] * 3
    assert set(table["sentence1"]) == {"A b."}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (compress(b""), "holds no pair"),
        (compress(b'{"sentence1": "a"}\n'), "line 1 has no usable sentence2: Field required"),
        (mteb_pairs(2, 5.5), "line 2 has no usable score: Input should be less than or equal to 5"),
        (mteb_pairs(float("nan")), "line 1 has no usable score"),
        (mteb_pairs("2"), "line 1 has no usable score: Input should be a valid number"),
        (compress(b"[\n"), "line 1 has no usable object: Invalid JSON"),
        (mteb_pairs(1)[:-9], "is damaged"),
        (b"<html>", "is damaged: Not a gzipped file"),
    ],
)
def test_malformed_pairs_of_the_hub_are_named(tmp_path, content, words):
    (tmp_path / "sts12-sts-test.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_mteb_sts([tmp_path / "sts12-sts-test.jsonl.gz"])
