"""Which files of a student directory make its embeddings; read without torch."""

from pathlib import Path

from pipeline.runtime import hash_file, hash_strings

POOLING_FILE = Path("1_Pooling/config.json")
_IDENTITY_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    POOLING_FILE,
    "heads.json",
    "heads.safetensors",
)


def hash_student(folder: Path) -> str:
    """A hash of everything in a student directory that changes an embedding."""
    names = [name for name in _IDENTITY_FILES if (folder / name).is_file()]
    return hash_strings(part for name in names for part in (str(name), hash_file(folder / name)))
