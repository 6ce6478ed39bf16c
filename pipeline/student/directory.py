"""The files of a student directory that determine its embeddings, and their checksums."""

from pathlib import Path

from pipeline.core.checksums import (
    CHECKSUMS,
    hash_file,
    hash_strings,
    verify_checksums,
    write_checksums,
)

POOLING_FILE = Path("1_Pooling/config.json")
TEXT_FILE = Path("sentence_bert_config.json")
PROMPTS_FILE = Path("config_sentence_transformers.json")
_IDENTITY_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    POOLING_FILE,
    TEXT_FILE,
    PROMPTS_FILE,
    "heads.json",
    "heads.safetensors",
)


def hash_student(folder: Path) -> str:
    """A hash of everything in a student directory that changes an embedding."""
    names = [name for name in _IDENTITY_FILES if (folder / name).is_file()]
    return hash_strings(part for name in names for part in (str(name), hash_file(folder / name)))


def write_student_checksums(folder: Path) -> None:
    """Record the checksums of a student's files, except the pooling's and the model card."""
    write_checksums(folder, *_top_files(folder))


def verify_student_checksums(folder: Path) -> None:
    """Refuse a student whose files changed since they were saved, with an InputError."""
    fix = (
        "run `dvc repro -f train`, or get the model again; "
        f"if you changed it yourself, delete its {CHECKSUMS}."
    )
    verify_checksums(folder, *_top_files(folder), fix=fix)


def _top_files(folder: Path) -> list[str]:
    names = map(str, _IDENTITY_FILES)
    return [name for name in names if "/" not in name and (folder / name).is_file()]
