"""Everything but the rows that teacher features depend on, and the name of their cache."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from pipeline.core.checksums import hash_file, hash_strings
from pipeline.core.errors import ModelError
from pipeline.params.places import why_missing
from pipeline.params.teacher import TextTeacherParams

LOCAL_PREFIX = "local-dir:"
TRANSFORMERS_PREFIX = "transformers:"

PROBE_TEXTS = (
    "",
    " \t\n",
    "a photo of a cat",
    "A Photo of a CAT's dog, isn't it?! We've 1,234.50 of them...",
    "na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d \ufb01ne \uff21\uff22\uff23",
    "\u0130stanbul stra\u00dfe \u65e5\u672c\u8a9e",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0639\u0631\u0628 \U0001f415\u200d\U0001f9ba",
    "&lt;b&gt; &amp;amp; <br/> snake_case kebab-case a/b\\c #tag @name",
    "<start_of_text> <|endoftext|> <s> </s> <pad> [CLS] [SEP] [PAD]",
    "Donaudampfschifffahrtsgesellschaftskapit\u00e4n" * 4,
    "word " * 300,
)
"""Texts whose token ids differ between tokenizers of one vocabulary with different rules."""

_NAMES = {"_name_or_path", "name_or_path", "architectures", "dtype", "transformers_version"}
"""Settings of transformers that say where a model comes from; they do not change features."""

_IRRELEVANT = {"training", *_NAMES}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class TeacherIdentity:
    """A teacher, by its name and by what was loaded."""

    model: str
    """Name in params.yaml."""
    pretrained: str
    """Weights tag in params.yaml, or an empty string."""
    source: str
    """sha256 over the files of a teacher in a folder, else an empty string."""
    architecture: str
    """sha256 over the layers and settings of the model."""
    weights: str
    """sha256 over the loaded weights."""
    preprocessing: str
    """Decoding and image transform, as text."""
    tokenizer: str
    """sha256 over vocabulary, rules and context length."""
    library: str
    """Library and version that ran the model."""
    dtype: str
    """Type the forward pass ran in."""

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that the features depend on.

        Names are left out, so that two names of one model share their features; so is the
        library's version, which seldom changes a number: the cache compares the features of a
        probe instead (`cache.py`).
        """
        return hash_strings(
            [self.architecture, self.weights, self.preprocessing, self.tokenizer, self.dtype]
        )


def folder_of(model: str) -> Path | None:
    """The folder that a teacher's name refers to, or None for a name on a hub.

    Raises:
        ModelError: a `local-dir:` folder does not exist.
    """
    folder = Path(model.removeprefix(LOCAL_PREFIX).removeprefix(TRANSFORMERS_PREFIX))
    if model.startswith(LOCAL_PREFIX) and not folder.is_dir():
        raise ModelError(*why_missing(str(folder), "teacher.model"))
    is_folder = model.startswith((LOCAL_PREFIX, TRANSFORMERS_PREFIX)) and folder.is_dir()
    return folder if is_folder else None


def hash_teacher_source(model: str) -> str:
    """A hash over the files of a teacher in a folder; empty for names on a hub.

    Raises:
        ModelError: a `local-dir:` folder does not exist.
    """
    folder = folder_of(model)
    return _hash_files(folder.iterdir()) if folder else ""


def _hash_files(paths: Iterable[Path]) -> str:
    files = sorted(path for path in paths if path.is_file())
    return hash_strings(p for path in files for p in (path.name, hash_file(path))) if files else ""


def hash_encoder_source(name: str) -> str:
    """A hash over the files of a sentence encoder in a folder; empty for names on a hub."""
    folder = Path(name)
    within = ("*", "*/*.json", "*/*.safetensors", "*/pytorch_model.bin")
    return _hash_files(path for pattern in within for path in folder.glob(pattern))


def describe_text_teacher(params: TextTeacherParams) -> dict[str, str]:
    """The text teacher of a feature file; empty texts where there is none."""
    shares = zip(params.shares, params.encoders, strict=True)
    named = " + ".join(f"{share:g} {name}" for share, name in shares)
    pooled = f" ({params.pooling} where they do not say)" if named and params.pooling else ""
    sources = [hash_encoder_source(name) for name in params.encoders]
    return {
        "text_teacher": named + pooled,
        "text_source": hash_strings(sources) if any(sources) else "",
    }


def hash_architecture(model: nn.Module, config: Mapping[str, Any] | None = None) -> str:
    """A hash over layers, shapes and settings of a model, without its weights.

    Args:
        model: settings that its representation lacks, such as the number of heads, are taken from
            the modules' public attributes.
        config: the configuration, if the library has one.
    """
    layers = [_setting_of(name, module) for name, module in model.named_modules()]
    shapes = [f"{key} {tuple(value.shape)}" for key, value in sorted(model.state_dict().items())]
    known = json.dumps(_without_names(dict(config or {})), sort_keys=True, default=str)
    return hash_strings([without_addresses(repr(model)), *layers, *shapes, known])


def hash_tokenizer(rules: Iterable[str], ids: Int[Tensor, "texts context"]) -> str:
    """A hash over the rules of a tokenizer and its ids of PROBE_TEXTS."""
    return hash_strings([*rules, str(ids.tolist())])


def describe_tokenizer(tokenizer: Any) -> Iterator[str]:
    """Vocabulary and rules of a transformers tokenizer, as text.

    Truncation and padding are left out: calls change them, and the ids of PROBE_TEXTS show them.
    """
    yield json.dumps(sorted(tokenizer.get_vocab().items()))
    rules = getattr(tokenizer, "backend_tokenizer", None)
    if rules is not None:
        content = json.loads(rules.to_str())
        kept = {key: content[key] for key in content if key not in {"truncation", "padding"}}
        yield json.dumps(kept, sort_keys=True)


def without_addresses(text: str) -> str:
    """A representation on one line, without the memory addresses of functions."""
    return _ADDRESS.sub("", " ".join(text.split()))


def _setting_of(name: str, module: nn.Module) -> str:
    settings = {
        key: value
        for key, value in sorted(vars(module).items())
        if not key.startswith("_") and key not in _IRRELEVANT and _is_plain(value)
    }
    return f"{name} {type(module).__name__} {settings}"


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _without_names(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _without_names(config[key]) for key in config if key not in _NAMES}
    return config
