import io
import tarfile
from pathlib import Path

import pytest

from pipeline.download.senteval import STS_SUBSETS, read_senteval
from pipeline.errors import InputError
from tests.conftest import SHARED

PAIR = "a b\tc d\n"


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


def pack(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "senteval.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_rows_are_read_as_senteval_reads_them(tmp_path):
    sts, transfer = read_senteval(pack(tmp_path, small_files()))
    years = sts[sts["task"].str.match(r"STS\d")]
    assert len(years) == sum(len(subsets) for subsets in STS_SUBSETS.values())  # ungraded dropped
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
        ("STS/STS12-en-test/STS.gs.MSRpar.txt", b"1\n", "row 1 is the last, but"),
        ("STS/STS12-en-test/STS.gs.MSRpar.txt", b"1\nnan\n", "row 2 has the gold score 'nan'"),
        ("STS/STS12-en-test/STS.input.MSRpar.txt", b"a\tb\nc\n", "row 2 has 1 columns"),
        ("STS/STSBenchmark/sts-dev.csv", b"g\tf\ty\t1\tx\ta\tb\n", "row 1 has the gold score 'x'"),
        ("SICK/SICK_trial.txt", b"head\n1\t2\n", "row 2 has 2 columns"),
        ("TREC/train_5500.label", b"WHAT:x y\n", "row 1 has the unknown class 'WHAT'"),
        ("SST/binary/sentiment-dev", b"x\t3\n", "row 1 has the label '3'"),
        ("SICK/SICK_trial.txt", b"\xff\xfe", "is not utf-8"),
    ],
)
def test_malformed_files_are_named_with_their_row(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words) as error:
        read_senteval(pack(tmp_path, small_files() | {name: content}))
    assert name in error.value.what


def test_a_missing_file_is_named(tmp_path):
    files = small_files()
    del files["MPQA/mpqa.neg"]
    with pytest.raises(InputError, match=r"holds no MPQA/mpqa\.neg"):
        read_senteval(pack(tmp_path, files))


@pytest.mark.real
def test_the_public_counts_are_met():
    sts, transfer = read_senteval(SHARED / "mirror" / "senteval.tar")
    assert sts["task"].value_counts().to_dict() == {
        "SICK-R": 9927,
        "STS-B": 8628,
        "STS14": 3750,
        "STS12": 3108,
        "STS15": 3000,
        "STS13": 1500,
        "STS16": 1186,
    }
    assert transfer["task"].value_counts().to_dict() == {
        "SST2": 70042,
        "MR": 10662,
        "MPQA": 10606,
        "SUBJ": 10000,
        "TREC": 5952,
        "MRPC": 5801,
        "CR": 3775,
    }
