"""Directories of others: what sentence-transformers' own `encode` gives, or a clear refusal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from pipeline.core.errors import ModelError
from pipeline.student.encoder import GroundingHeads, SentenceEncoder, Student, save_student
from pipeline.train.token_store import tokenizer_parts
from tests.conftest import ROOT

START = ROOT / "data/demo/student"
TEXTS = [
    "A small RED circle.",
    "",
    "Two Blue squares above a large green star " * 3,
    "dogs run",
]
LIBRARY = "sentence_transformers.models"
Change = Callable[[Path], None]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def update(path: Path, **values: Any) -> None:
    write(path, (json.loads(path.read_text()) if path.exists() else {}) | values)


def text(**values: Any) -> Change:
    return lambda folder: update(folder / "sentence_bert_config.json", **values)


def model(**values: Any) -> Change:
    return lambda folder: update(folder / "config_sentence_transformers.json", **values)


def pooling(**values: Any) -> Change:
    return lambda folder: write(
        folder / "1_Pooling/config.json", {"embedding_dimension": 128} | values
    )


def tokenizer(**values: Any) -> Change:
    return lambda folder: update(folder / "tokenizer_config.json", **values)


def modules(*further: str, package: str = LIBRARY) -> Change:
    """The modules of the library, by class, with others behind them."""

    def change(folder: Path) -> None:
        names = [(f"{LIBRARY}.Transformer", ""), (f"{LIBRARY}.Pooling", "1_Pooling")]
        names += [(f"{package}.{one}", f"{number}_{one}") for number, one in enumerate(further, 2)]
        rows = [
            {"idx": number, "name": str(number), "path": path, "type": kind}
            for number, (kind, path) in enumerate(names)
        ]
        write(folder / "modules.json", rows)
        for number, one in enumerate(further, 2):
            (folder / f"{number}_{one}").mkdir(exist_ok=True)

    return change


def all_of(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def move_into(name: str, *, to: str) -> Change:
    """Put the transformer, or the pooling, into a folder of another name."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "modules.json").read_text())
        row = next(row for row in content if row["type"].endswith(name))
        (folder / to).mkdir()
        source = folder / row["path"]
        for path in [path for path in source.iterdir() if path.is_file()]:
            if path.name not in {"modules.json", "config_sentence_transformers.json"}:
                path.replace(folder / to / path.name)
        row["path"] = to
        write(folder / "modules.json", content)

    return change


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def shard(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, kept in parts.items():
        save_file({key: weights[key] for key in kept}, folder / file, metadata={"format": "pt"})
    where = {key: file for file, kept in parts.items() for key in kept}
    write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    (folder / "model.safetensors").unlink()


def only(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"of another library")

    return change


def drop(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def write_model(folder: Path) -> None:
    shutil.copytree(START, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    write(folder / "tokenizer.json", content)
    changes = [tokenizer(do_lower_case=False), pooling(pooling_mode="mean"), modules()]
    all_of(*changes, text(max_seq_length=256))(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory of sentence-transformers with mean pooling, whose tokenizer keeps the case."""
    write_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What `folder` gives before a test changes it."""
    folder = tmp_path_factory.mktemp("before") / "model"
    write_model(folder)
    return ours(folder)


def theirs(folder: Path) -> np.ndarray:
    """One text a batch: a left-hand padding moves what stands behind it, there."""
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=1)


def ours(folder: Path) -> np.ndarray:
    return SentenceEncoder.load(folder).encode(TEXTS, batch_size=2)


PROMPT = model(prompts={"find": "a Picture of ", "none": ""}, default_prompt_name="find")
CHANGING = {
    "cls": pooling(pooling_mode="cls"),
    "cls in the older format": pooling(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
    "cls as a list": pooling(pooling_mode=["cls"]),
    "normalised": modules("Normalize"),
    "lower case": text(do_lower_case=True),
    "lower case of the tokenizer": tokenizer(do_lower_case=True),
    "short": text(max_seq_length=8),
    "short in an older file": all_of(
        drop("sentence_bert_config.json"),
        lambda folder: write(folder / "sentence_roberta_config.json", {"max_seq_length": 8}),
    ),
    "short tokenizer": all_of(drop("sentence_bert_config.json"), tokenizer(model_max_length=8)),
    "cut on the left": all_of(text(max_seq_length=8), tokenizer(truncation_side="left")),
    "prompt": PROMPT,
    "prompt, lower case, short": all_of(PROMPT, text(do_lower_case=True, max_seq_length=9)),
}  # fmt: skip
EQUAL = {
    "nothing": lambda folder: None,
    "mean in the older format": pooling(pooling_mode_mean_tokens=True, include_prompt=False),
    "dropout": modules("Dropout"),
    "padding on the left": tokenizer(padding_side="left"),
    "prompts that nobody asks for": model(prompts={"query": "query: "}),
    "an empty prompt": model(prompts={"find": ""}, default_prompt_name="find"),
    "harmless arguments": text(model_args={"attn_implementation": "eager"}, unpad_inputs=False),
    "a transformer of its own folder": move_into("Transformer", to="0_Transformer"),
    "a pooling of another folder": move_into("Pooling", to="pool"),
    "pickled": pickle,
    "sharded": shard,
}
REFUSED = {
    "max": (pooling(pooling_mode="max"), "pools in a way.*max"),
    "last token": (pooling(pooling_mode_lasttoken=True), "pools in a way.*lasttoken"),
    "two poolings": (pooling(pooling_mode=["cls", "mean"]), "pools in a way.*cls.*mean"),
    "weighted": (pooling(pooling_mode="weightedmean"), "pools in a way.*weightedmean"),
    "root": (pooling(pooling_mode="mean_sqrt_len_tokens"), "pools in a way"),
    "dense": (modules("Dense"), "embeds through Transformer, Pooling, Dense"),
    "norm": (modules("LayerNorm"), "LayerNorm"),
    "two": (modules("Pooling"), "Transformer, Pooling, Pooling"),
    "own code": (modules("Normalize", package="own"), r"Pooling, own\.Normalize"),
    "words": (lambda folder: write(folder / "modules.json", [
        {"path": "0", "type": f"{LIBRARY}.WordEmbeddings"},
        {"path": "1_Pooling", "type": f"{LIBRARY}.Pooling"}]), "WordEmbeddings, Pooling"),
    "outside": (lambda folder: write(folder / "modules.json", [
        {"path": "../x", "type": f"{LIBRARY}.Transformer"}]), "not a list of modules"),
    "tokens normalised": (all_of(modules("Normalize"), lambda folder: write(
        folder / "2_Normalize/config.json", {"module_input_name": "token_embeddings"})),
        "module_input_name is 'token_embeddings'"),
    "cut vectors": (model(truncate_dim=16), "truncate_dim is 16"),
    "sparse": (model(model_type="SparseEncoder"), "model_type is 'SparseEncoder'"),
    "no such prompt": (model(default_prompt_name="find"), "'find', which is not a prompt"),
    "prompt left out": (all_of(PROMPT, pooling(include_prompt=False)), "include_prompt"),
    "processing": (text(processing_kwargs={"text": {"max_length": 4}}), "processing_kwargs"),
    "tokenizer args": (text(tokenizer_args={"model_max_length": 4}), "model_max_length is 4"),
    "config args": (text(config_args={"hidden_act": "relu"}), "hidden_act is 'relu'"),
    "task": (text(transformer_task="fill-mask"), "transformer_task is 'fill-mask'"),
    "another output": (text(modality_config={"text": {
        "method": "forward", "method_output_name": "pooler_output"}}), "pooler_output"),
    "unknown": (text(whatever=1), "whatever is 1 in sentence_bert_config.json"),
    "adapter": (lambda folder: write(folder / "adapter_config.json", {}), "holds an adapter"),
    "tensorflow": (only("tf_model.h5"), "only holds weights of TensorFlow"),
    "flax": (only("flax_model.msgpack"), "only holds weights of Flax"),
    "onnx": (only("onnx/model.onnx"), "only holds weights of ONNX"),
    "no pickle": (only("pytorch_model.bin"), "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGING)
def test_what_changes_a_vector_is_honoured(folder, before, name):
    CHANGING[name](folder)
    found = ours(folder)
    np.testing.assert_allclose(found, theirs(folder), atol=1e-5)
    assert np.abs(found - before).max() > 1e-3


@pytest.mark.parametrize("name", EQUAL)
def test_what_changes_nothing_is_accepted(folder, before, name):
    EQUAL[name](folder)
    np.testing.assert_allclose(ours(folder), before, atol=1e-6)
    np.testing.assert_allclose(theirs(folder), before, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused(folder, name):
    change, words = REFUSED[name]
    change(folder)
    with pytest.raises(ModelError, match=words) as error:
        SentenceEncoder.load(folder)
    assert "\n" not in error.value.what


def test_a_pooling_that_is_asked_for_leaves_the_modules_out_but_not_the_text(folder):
    all_of(pooling(pooling_mode="cls"), text(do_lower_case=True))(folder)
    expected = ours(folder)
    all_of(modules("Dense", "Normalize"), pooling(pooling_mode="max"))(folder)
    found = SentenceEncoder.load(folder, "cls").encode(TEXTS, batch_size=2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_another_measure_than_the_cosine_is_told(folder, caplog):
    caplog.set_level("INFO", logger="kdmcse")
    model(similarity_fn_name="dot")(folder)
    SentenceEncoder.load(folder)
    assert "compares by dot; scores here are by cosine" in caplog.text


def test_a_student_keeps_how_its_encoder_reads_text(folder, tmp_path):
    all_of(PROMPT, text(do_lower_case=True, max_seq_length=9))(folder)
    encoder = SentenceEncoder.load(folder)
    heads = GroundingHeads(encoder.dim, 6, 8)
    (tmp_path / "saved").mkdir()
    save_student(tmp_path / "saved", Student(encoder, heads, "kdmcse"), "# card\n")
    np.testing.assert_allclose(ours(tmp_path / "saved"), ours(folder), atol=1e-6)
    np.testing.assert_allclose(theirs(tmp_path / "saved"), ours(folder), atol=1e-5)


@pytest.mark.parametrize("name", ["lower case", "short", "cut on the left", "prompt"])
def test_kept_tokens_are_told_apart_by_every_setting_of_text(folder, name):
    before = tokenizer_parts(SentenceEncoder.load(folder))
    CHANGING[name](folder)
    assert tokenizer_parts(SentenceEncoder.load(folder)) != before
