"""The settings in a sentence-transformers directory: applied, or refused by name.

    modules.json                       a Transformer, a Pooling, then Normalize or Dropout
    1_Pooling/config.json              cls or mean (the folder is the one that modules.json names)
    sentence_bert_config.json          max_seq_length, do_lower_case
    config_sentence_transformers.json  prompts, default_prompt_name, truncate_dim

These are the settings that sentence-transformers 6.2 reads, and those that older versions wrote. A
directory without modules.json is one of plain transformers, as it is for that library.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from pipeline.core.errors import ModelError
from pipeline.core.progress import log
from pipeline.core.redact import first_line, one_line
from pipeline.student.directory import POOLING_FILE, PROMPTS_FILE, TEXT_FILE

Pooling = Literal["cls", "mean"]
POOLING_KEYS: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
}
_PACKAGE = "sentence_transformers."
_FOLLOWING = {"Normalize", "Dropout"}
"""Modules that may follow the pooling; dropout has no effect outside training."""
_OLDER = ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_TEXT_FILES = (TEXT_FILE, *(Path(f"sentence_{kind}_config.json") for kind in _OLDER))
"""The settings of text, under the names that they have had."""

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Settings:
    """How a directory turns a text into a vector."""

    folder: str = ""
    """Folder of the transformer, within the directory."""
    pooling: Pooling | None = None
    """None: not stated."""
    normalised: bool = False
    """Embeddings are L2-normalised."""
    max_length: int | None = None
    """Tokens that a text is cut to; None: the limit of tokenizer and model."""
    lower_case: bool = False
    """Texts are lower-cased before tokenisation."""
    prompt: str = ""
    """Text put in front of every text."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Loading(_Strict):
    """Arguments of the loaders that change no embedding here: the type is always float32."""

    attn_implementation: Any = None
    add_pooling_layer: Any = None
    dtype: Any = None
    torch_dtype: Any = None
    trust_remote_code: Any = None


class _Modality(BaseModel):
    method: Literal["forward"]
    method_output_name: Literal["last_hidden_state"]


class _Modalities(_Strict):
    text: _Modality


class _Text(_Strict):
    """sentence_bert_config.json; an unknown key is refused, as the library refuses it."""

    max_seq_length: PositiveInt | None = None
    do_lower_case: bool = False
    transformer_task: Literal["feature-extraction"] = "feature-extraction"
    module_output_name: Literal["token_embeddings"] = "token_embeddings"
    modality_config: _Modalities | None = None
    processing_kwargs: dict[str, Any] | None = Field(default=None, max_length=0)
    tokenizer_name_or_path: None = None
    model_args: _Loading | None = None
    model_kwargs: _Loading | None = None
    tokenizer_args: _Loading | None = None
    processor_kwargs: _Loading | None = None
    config_args: _Loading | None = None
    config_kwargs: _Loading | None = None
    unpad_inputs: Any = None
    """Of attention kernels; this and the settings below change no embedding of `encode`."""
    query_length: Any = None
    document_length: Any = None
    query_expansion: Any = None


class _Model(BaseModel):
    """config_sentence_transformers.json."""

    model_type: Literal["SentenceTransformer"] = "SentenceTransformer"
    prompts: dict[str, str | None] = {}
    default_prompt_name: str | None = None
    truncate_dim: None = None
    similarity_fn_name: str | None = None


class _Pooling(BaseModel):
    include_prompt: bool = True


class _Normalize(BaseModel):
    module_input_name: Literal["sentence_embedding"] = "sentence_embedding"
    module_output_name: Literal["sentence_embedding"] | None = None


class _Module(BaseModel):
    type: str
    path: str = ""

    @field_validator("path")
    @classmethod
    def _stays_within(cls, path: str) -> str:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError("it is outside the directory")
        return path

    @property
    def kind(self) -> str:
        """The class; the full name unless it is one of sentence-transformers."""
        known = self.type.startswith(_PACKAGE)
        return self.type.rpartition(".")[2] if known else self.type


_MODULES = TypeAdapter(list[_Module])


def read_settings(name: str | Path, pooling: Pooling | None = None) -> Settings:
    """Read the settings of a directory or hub model.

    Args:
        name: the directory or hub name.
        pooling: replaces the directory's pooling and the modules after it.

    Raises:
        ModelError: a setting is not supported, or a file cannot be read.
    """
    content = _read_json(name, Path("modules.json"))
    if content is None:
        return Settings(pooling=pooling or _read_pooling(name, POOLING_FILE))
    try:
        modules = _MODULES.validate_python(content)
    except ValidationError:
        raise ModelError(
            f"{name}: modules.json is not a list of modules.", "get the model again."
        ) from None
    folder = modules[0].path if modules and modules[0].kind == "Transformer" else ""
    texts = (_read(name, Path(folder) / file, _Text) for file in _TEXT_FILES)
    text = next(filter(None, texts), _Text())
    model = _read(name, PROMPTS_FILE, _Model) or _Model()
    prompt = model.default_prompt_name
    if prompt is not None and prompt not in model.prompts:
        what = f"default_prompt_name is {prompt!r}, which is not a prompt"
        raise _unsupported(name, PROMPTS_FILE, what)
    if model.similarity_fn_name not in {None, "cosine"}:
        log.info("%s compares by %s; scores here are by cosine", name, model.similarity_fn_name)
    found = Settings(
        folder=folder,
        pooling=pooling,
        max_length=text.max_seq_length,
        lower_case=text.do_lower_case,
        prompt="" if prompt is None else model.prompts[prompt] or "",
    )
    return found if pooling else _with_chain(name, found, modules)


def _with_chain(name: str | Path, found: Settings, modules: list[_Module]) -> Settings:
    """Add what the modules after the transformer do."""
    kinds = [module.kind for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not _FOLLOWING.issuperset(kinds[2:]):
        raise ModelError(
            f"{name} embeds through {', '.join(kinds) or 'no module'}, which is not supported.",
            "use a model of a Transformer, a Pooling and at most a Normalize; with --pooling, only "
            "the pooled tokens are scored.",
        )
    file = Path(modules[1].path) / "config.json"
    config = _read(name, file, _Pooling) or _Pooling()
    if found.prompt and not config.include_prompt:
        raise _unsupported(name, file, "include_prompt is False, and a prompt is set")
    for module in modules[2:]:
        if module.kind == "Normalize":
            _read(name, Path(module.path) / "config.json", _Normalize)
    return replace(found, pooling=_read_pooling(name, file), normalised="Normalize" in kinds)


def _read_pooling(name: str | Path, file: Path) -> Pooling | None:
    """The pooling that a config of either format names; None: there is no config."""
    config = _read_json(name, file)
    if config is None:
        return None
    facts = config if isinstance(config, dict) else {}
    if "pooling_mode" in facts:
        named = facts["pooling_mode"]
        modes = {str(one) for one in (named if isinstance(named, list) else [named])}
    else:
        names = {key: mode for mode, key in POOLING_KEYS.items()}
        active = [key for key, on in facts.items() if key.startswith("pooling_mode_") and on]
        modes = {names.get(key, key) for key in active}
    pooling = next((mode for mode in POOLING_KEYS if modes == {mode}), None)
    if pooling is None:
        raise ModelError(
            f"{name} pools in a way that is not supported: {sorted(modes) or config}.",
            "use a model with cls or mean pooling, or pass --pooling.",
        )
    return pooling


def _read(name: str | Path, file: Path, kind: type[M]) -> M | None:
    """A file of settings, or the first that is not supported as an error; None: no file."""
    content = _read_json(name, file)
    if content is None:
        return None
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "it"
        raise _unsupported(name, file, f"{key} is {first['input']!r}") from None


def _unsupported(name: str | Path, file: Path, what: str) -> ModelError:
    return ModelError(
        f"{name}: {one_line(what, 200)} in {file}, which is not supported.",
        "remove the setting from a copy of the model, whose embeddings will then differ.",
    )


def _read_json(name: str | Path, file: Path) -> Any:
    path = Path(name) / file if Path(name).is_dir() else _download(str(name), str(file))
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", "get the model again.") from None


def _download(name: str, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001  # errors of the transport pass through the library
        raise ModelError(
            f"{name} is not a folder and cannot be downloaded from the Hub: {first_line(error)}.",
            "check the path or hub name, and the network.",
        ) from None
