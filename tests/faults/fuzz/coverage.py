"""The binary readers under a fuzzer that is led by coverage.

`python -m tests.faults.fuzz.coverage TARGET -runs=N`, after `pip install atheris`, which the
project itself does not need. TARGET is one of those of `targets.py`, such as zip or "hub parquet";
further arguments are libFuzzer's. What it finds ends the process and is written to crash-HASH.
"""

import sys
import tempfile
from pathlib import Path

import atheris

INSTRUMENTED = ["pipeline.download", "pipeline.features", "zipfile", "tarfile", "PIL", "h5py"]

with atheris.instrument_imports(include=INSTRUMENTED):
    from pipeline.core.errors import PipelineError
    from tests.faults.fuzz.runner import CLEAR, judge
    from tests.faults.fuzz.targets import make_targets


def main(name: str, arguments: list[str]) -> None:
    """Fuzz one target; never returns."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    target = make_targets(folder)[name]
    work, corpus = folder / "work", folder / "corpus"
    work.mkdir()
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / f"{number}").write_bytes(seed)

    def run_one(content: bytes) -> None:
        said = CLEAR
        target.place(work, content)
        try:
            target.read(work)
        except PipelineError as error:
            said = judge(error.what, error.fix)
        if said != CLEAR:
            raise AssertionError(said)

    atheris.Setup([sys.argv[0], *arguments, str(corpus)], run_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
