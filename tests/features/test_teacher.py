"""The teacher's features are those of plain use of its library, however they are computed."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, BertConfig, BertModel

from pipeline.core.errors import ModelError
from pipeline.download.packed_images import Rejection
from pipeline.features.huggingface import HuggingFaceTeacher
from pipeline.features.identity import PROBE_TEXTS
from pipeline.features.openclip import CausalText, needs_quick_gelu, quick_tokenizer
from pipeline.features.teacher import Teacher
from pipeline.params.teacher import TeacherParams
from tests.conftest import SHARED, TINY, slow_after
from tests.features.tiny_teachers import (
    CONTEXT,
    SIDE,
    VISION,
    WORDS,
    make_tokenizer,
    save_clip,
    save_open_clip,
    save_siglip,
)

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""Sums in another order; features here are of size 1."""

SENTENCES = [
    "a cat",
    "",
    "the dog of a cat and the cat of a dog",
    "two",
    "a " * (CONTEXT - 2),
    "a " * CONTEXT,
    "photo " * 100,
]
"""From no token to more than the context holds."""
LENGTHS = [4, 2, 13, 3, CONTEXT, CONTEXT, CONTEXT]
"""Their tokens, with those of start and end; every word is one token."""


def load(name: str, precision: str = "auto") -> Teacher:
    return Teacher(TeacherParams(model=name), CPU, precision)


@pytest.fixture(scope="module")
def demo() -> Teacher:
    return load(TINY["teacher"]["model"])


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> str:
    return save_siglip(tmp_path_factory.mktemp("siglip"))


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    small = np.random.default_rng(seed).integers(0, 255, (6, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(stream, "JPEG")
    return stream.getvalue()


JPEGS = [jpeg(60, 45), jpeg(45, 60, 1), jpeg(33, 33, 2)]


def image_features(teacher: Teacher, contents: list[bytes]) -> Tensor:
    return teacher.encode_images(torch.stack([teacher.decode(content) for content in contents]))


def open_images(contents: list[bytes]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]


OPEN_CLIP_KINDS = {
    "text on the model": {},
    "text of its own": {"custom_text": True},
    "quick gelu": {"quick_gelu": True},
    "end-of-text by id": {"custom_text": True, "text": {"pool_type": "eos", "eos_id": 49407}},
    "by id on the model": {"text": {"pool_type": "eos", "eos_id": 49407}},
    "scaled layers": {"text": {"ls_init_value": 0.3}},
    "one block": {"text": {"layers": 1}},
    "blocks of its own": {
        "custom_text": True,
        "text": {"block_type": "custom", "scale_attn": True},
    },
    "linear projection": {"text": {"proj_bias": True}},
    "no projection": {"custom_text": True, "embed_dim": 32, "text": {"proj_type": "none"}},
}
NOT_CUT = {
    "SigLIP": {"no_causal_mask": True, "pool_type": "last"},
    "causal, last token": {"pool_type": "last"},
    "class token": {"embed_cls": True},
}


@pytest.mark.parametrize("kind", slow_after(4, OPEN_CLIP_KINDS))
def test_open_clip_features_are_those_of_plain_open_clip(tmp_path, kind):
    name = save_open_clip(tmp_path, **OPEN_CLIP_KINDS[kind])
    teacher = load(name)
    model, preprocess = open_clip.create_model_from_pretrained(name)
    with torch.inference_mode():
        expected = model.eval().encode_text(LIBRARY(SENTENCES))
        images = torch.stack([preprocess(image) for image in open_images(JPEGS)])
        expected_images = model.encode_image(images)
    assert teacher.tokenize(SENTENCES).lengths.tolist() == LENGTHS
    torch.testing.assert_close(teacher.encode_captions(SENTENCES), expected, **CLOSE)
    for row, sentence in enumerate(SENTENCES):
        alone = teacher.encode_captions([sentence])
        torch.testing.assert_close(alone, expected[row : row + 1], **CLOSE)
    torch.testing.assert_close(image_features(teacher, JPEGS), expected_images, **CLOSE)


@pytest.mark.parametrize("kind", NOT_CUT)
def test_the_context_is_not_cut_where_the_padding_counts(tmp_path, kind):
    name = save_open_clip(tmp_path, custom_text=True, text=NOT_CUT[kind])
    teacher = load(name)
    tokens = teacher.tokenize(SENTENCES)
    assert set(tokens.lengths) == {CONTEXT}
    with torch.inference_mode():
        expected = teacher.model.encode_text(tokens.ids)
    torch.testing.assert_close(teacher.encode_tokens(tokens, [1, 0]), expected[[1, 0]], **CLOSE)
    shorter = tokens.ids[:, : CONTEXT - 1]
    if kind == "causal, last token":  # the one kind that could be run on fewer tokens at all
        with pytest.raises(RuntimeError):
            teacher.model.encode_text(shorter)


def test_a_coca_teacher_is_not_normalised():
    torch.manual_seed(0)
    text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
    vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    text |= {"embed_cls": True, "output_tokens": True}
    many = {"context_length": 8, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CoCa(24, many, text, vision).eval()
    assert CausalText.of(model) is None
    features = model.encode_image(torch.rand(2, 3, SIDE, SIDE), normalize=False)
    assert (features.norm(dim=-1) - 1).abs().min() > 1e-3


def test_features_do_not_depend_on_the_rest_of_the_batch(demo):
    tokens = demo.tokenize(SENTENCES)
    whole = demo.encode_tokens(tokens, range(len(SENTENCES)))
    for rows in ([0], [2, 0], [6, 5, 4, 1], np.array([3, 1])):
        torch.testing.assert_close(demo.encode_tokens(tokens, rows), whole[rows], **CLOSE)


def test_encode_keeps_the_order_and_cuts_long_sentences(demo):
    found = demo.encode(SENTENCES, batch_size=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, demo.encode_captions(SENTENCES), **CLOSE)


def test_weights_that_are_not_finite_are_reported(tmp_path):
    teacher = load(save_open_clip(tmp_path))
    teacher.model.text_projection[0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        teacher.encode(["a cat"], batch_size=1)


@pytest.mark.parametrize(("precision", "most"), [("bf16", 2e-3), ("fp16", 2e-4)])
def test_a_smaller_type_changes_little_and_is_recorded(demo, precision, most):
    smaller = load(TINY["teacher"]["model"], precision)
    pairs = [
        (image_features(smaller, JPEGS), image_features(demo, JPEGS)),
        (smaller.encode_captions(SENTENCES), demo.encode_captions(SENTENCES)),
    ]
    for found, expected in pairs:
        assert found.dtype == torch.float32
        cosines = torch.cosine_similarity(found.double(), expected.double())
        assert 0 < (1 - cosines).max() < most
    assert smaller.identity.dtype == {"bf16": "bfloat16", "fp16": "float16"}[precision]
    assert demo.identity.dtype == "float32"


def test_the_probe_never_changes_and_covers_both_towers(demo):
    probe = demo.probe()
    assert probe.shape == (2, 128)
    assert np.array_equal(probe, demo.probe())
    assert np.array_equal(probe, load(TINY["teacher"]["model"]).probe())
    other = load(TINY["teacher"]["model"])
    other.model.visual.attnpool.c_proj.bias[0] += 1e-2
    assert not np.array_equal(other.probe()[0], probe[0])
    assert np.array_equal(other.probe()[1], probe[1])


def test_the_teacher_is_in_inference_mode(demo, clip):
    for teacher in (demo, load(f"transformers:{clip}")):
        assert not teacher.model.training
        assert not any(weight.requires_grad for weight in teacher.model.parameters())
        assert not image_features(teacher, JPEGS).requires_grad


@given(st.lists(st.text() | st.text(alphabet="aA z'&;<>_9!\t\n\u00e9"), min_size=1, max_size=4))
def test_words_give_the_ids_of_the_whole_text(texts):
    assert torch.equal(QUICK(texts), LIBRARY(texts))


LIBRARY = SimpleTokenizer(context_length=CONTEXT)
QUICK = quick_tokenizer(LIBRARY)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
@pytest.mark.parametrize("context", [3, CONTEXT, 77])
def test_words_give_the_ids_of_awkward_texts(clean, context):
    library = SimpleTokenizer(context_length=context, clean=clean)
    texts = [
        *PROBE_TEXTS,
        *SENTENCES,
        "<start_of_text>a<end_of_text>b",
        "\ud83d",
        "caf\u00c3\u00a9",
    ]
    assert torch.equal(quick_tokenizer(library)(texts), library(texts))


@pytest.mark.real
@pytest.mark.slow
def test_words_give_the_ids_of_all_real_captions():
    library = SimpleTokenizer()
    with zipfile.ZipFile(SHARED / "mirror/caption_datasets.zip") as archive:
        for name in ("dataset_flickr8k.json", "dataset_flickr30k.json"):
            images = json.loads(archive.read(name))["images"]
            captions = [one["raw"] for image in images for one in image["sentences"]]
            assert torch.equal(quick_tokenizer(library)(captions), library(captions))


def plain_transformers(folder: str) -> tuple[Tensor, Tensor]:
    """Features of SENTENCES and JPEGS, as transformers documents its use."""
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer, processor = (
        cls.from_pretrained(folder) for cls in (AutoTokenizer, AutoImageProcessor)
    )
    padding = "max_length" if model.config.model_type == "siglip" else True
    tokens = tokenizer(SENTENCES, padding=padding, truncation=True, return_tensors="pt")
    tokens.pop("token_type_ids", None)
    images = processor(open_images(JPEGS), return_tensors="pt")
    with torch.inference_mode():
        return (
            model.get_text_features(**tokens).pooler_output,
            model.get_image_features(**images).pooler_output,
        )


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("prefix", ["transformers:", "local-dir:"])
def test_transformers_features_are_those_of_plain_transformers(request, kind, prefix):
    folder = request.getfixturevalue(kind)
    captions, images = plain_transformers(folder)
    teacher = load(prefix + folder)
    torch.testing.assert_close(teacher.encode_captions(SENTENCES), captions, **CLOSE)
    torch.testing.assert_close(image_features(teacher, JPEGS), images, **CLOSE)
    for row, sentence in enumerate(SENTENCES):
        alone = teacher.encode_captions([sentence])
        torch.testing.assert_close(alone, captions[row : row + 1], **CLOSE)
    assert teacher.decode(JPEGS[0]).dtype == torch.uint8
    lengths = teacher.tokenize(SENTENCES).lengths.tolist()
    assert lengths == (LENGTHS if kind == "clip" else [CONTEXT] * 7)


def test_pixels_are_scaled_bit_for_bit_as_the_image_processor_does(clip):
    teacher = HuggingFaceTeacher(clip, CPU)
    processor = AutoImageProcessor.from_pretrained(clip)
    expected = processor(open_images(JPEGS), return_tensors="pt")["pixel_values"]
    decoded = torch.stack([teacher.decode(content) for content in JPEGS])
    assert torch.equal(teacher.scale(decoded), expected)


def test_an_old_clip_whose_end_of_text_is_the_highest_id(tmp_path):
    folder = save_clip(tmp_path, eos=2)
    captions, _ = plain_transformers(folder)
    found = load(f"transformers:{folder}").encode_captions(SENTENCES)
    torch.testing.assert_close(found, captions, **CLOSE)


def test_an_image_processor_of_another_library_is_run_as_a_whole(clip, monkeypatch):
    plain = AutoImageProcessor.from_pretrained(clip, backend="pil")
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", lambda _name, **_settings: plain)
    teacher = load(f"transformers:{clip}")
    decoded = teacher.decode(JPEGS[0])
    assert decoded.dtype == torch.float32
    expected = plain(open_images(JPEGS[:1]), return_tensors="pt")["pixel_values"]
    assert torch.equal(decoded[None], expected)
    assert image_features(teacher, JPEGS).shape == (3, 24)


def test_a_lone_surrogate_is_encoded(clip):
    assert load(f"transformers:{clip}").encode_captions(["a \ud83d cat"]).isfinite().all()


def without(folder: str, target: Path, *names: str) -> Path:
    """A copy of a folder without some of its files."""
    return shutil.copytree(folder, target / "copy", ignore=lambda *_: names)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("tokenizer.json", "tokenizer_config.json"), "tokenizer has 2 tokens, its model 12"),
        (("preprocessor_config.json",), "preprocessor_config.json"),
        (("model.safetensors",), "cannot be loaded.*model.safetensors"),
        (("config.json",), "neither open_clip_config.json nor config.json"),
    ],
)
def test_missing_files_of_a_transformers_folder_are_named(tmp_path, clip, missing, words):
    with pytest.raises(ModelError, match=words):
        load(f"local-dir:{without(clip, tmp_path, *missing)}")


def test_pickled_weights_give_the_same_features(tmp_path, clip):
    """Pickles that would run code are refused: tests/faults/fuzz/test_weights.py."""
    expected = load(f"transformers:{clip}").encode_captions(["a dog"])
    copy = without(clip, tmp_path, "model.safetensors")
    torch.save(AutoModel.from_pretrained(clip).state_dict(), copy / "pytorch_model.bin")
    assert torch.equal(load(f"transformers:{copy}").encode_captions(["a dog"]), expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tf_model.h5", "only holds weights of TensorFlow"),
        ("onnx/model.onnx", "only holds weights of ONNX"),
        ("adapter_config.json", "holds an adapter"),
    ],
)
def test_weights_of_other_libraries_are_named(tmp_path, clip, name, words):
    copy = without(clip, tmp_path, "model.safetensors")
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("{}")
    with pytest.raises(ModelError, match=words):
        load(f"local-dir:{copy}")


def test_missing_weights_are_not_drawn_at_random(tmp_path, clip):
    from safetensors.torch import load_file, save_file

    copy = without(clip, tmp_path)
    weights = load_file(copy / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 of its weights, the first visual_projection"):
        load(f"transformers:{copy}")


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path, clip):
    copy = without(clip, tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(ModelError, match=f"has {len(WORDS) + 1} tokens, its model {len(WORDS)}"):
        load(f"transformers:{copy}")


@pytest.mark.parametrize("step", ["do_center_crop", "do_resize"])
def test_a_processor_that_does_not_crop_or_resize_is_refused(tmp_path, clip, step):
    """Without resizing, it would crop a picture that the decoder has already made smaller."""
    copy = without(clip, tmp_path)
    change_processor(copy, **{step: False})
    with pytest.raises(ModelError, match="pictures of different sizes"):
        load(f"transformers:{copy}")


def change_processor(folder, **values):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


PREPROCESSING = {
    "bilinear": {"resample": 2},
    "nearest": {"resample": 0},
    "larger": {"size": {"shortest_edge": 40}},
    "squashed": {"size": {"height": 32, "width": 32}, "do_center_crop": False},
    "one mean": {"image_mean": 0.2, "image_std": 0.7},
    "other means": {"image_mean": [0.1, 0.5, 0.9], "image_std": [1.0, 0.5, 0.2]},
    "not normalised": {"do_normalize": False, "image_mean": None, "image_std": None},
    "not rescaled": {"do_rescale": False},
    "rescaled": {"rescale_factor": 0.01},
    "padded": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24},
               "do_pad": True, "pad_size": {"height": 32, "width": 32}},
}  # fmt: skip


@pytest.mark.parametrize("name", PREPROCESSING)
def test_every_setting_of_an_image_processor_is_honoured(tmp_path, clip, name):
    before = image_features(load(f"transformers:{clip}"), JPEGS)
    copy = without(clip, tmp_path)
    change_processor(copy, **PREPROCESSING[name])
    found = image_features(load(f"transformers:{copy}"), JPEGS)
    torch.testing.assert_close(found, plain_transformers(copy)[1], **CLOSE)
    assert (found - before).abs().max() > 1e-4


@pytest.mark.parametrize("settings", [{"truncation_side": "left"}, {"padding_side": "left"}])
def test_the_sides_that_a_tokenizer_cuts_and_pads_are_honoured(tmp_path, clip, settings):
    copy = without(clip, tmp_path)
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    teacher = load(f"transformers:{copy}")
    tokenizer = AutoTokenizer.from_pretrained(copy)
    model = AutoModel.from_pretrained(copy).eval()
    for sentence in SENTENCES:  # one a batch: what is padded on the left moves
        tokens = tokenizer([sentence], truncation=True, padding="max_length", return_tensors="pt")
        tokens.pop("token_type_ids", None)
        with torch.inference_mode():
            expected = model.get_text_features(**tokens).pooler_output
        torch.testing.assert_close(teacher.encode_captions([sentence]), expected, **CLOSE)


def test_a_model_of_another_kind_is_refused(tmp_path):
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="type bert, which is not supported"):
        load(f"transformers:{tmp_path}")


@pytest.mark.parametrize(
    ("model", "pretrained", "quick"),
    [
        ("ViT-L-14", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("local-dir:x", None, False),
    ],
)
def test_weights_get_the_activation_they_were_trained_with(model, pretrained, quick):
    assert needs_quick_gelu(model, pretrained) is quick


@pytest.mark.parametrize(
    ("model", "pretrained", "words"),
    [
        ("local-dir:no/such/folder", None, "no/such/folder does not exist"),
        ("transformers:no/such", None, "no/such cannot be loaded with transformers"),
        ("ViT-B-32", None, "teacher.pretrained is null"),
        ("ViT-B-33", "openai", "cannot be loaded"),
        ("ViT-B-32", "no-such-tag", "cannot be loaded"),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_named(model, pretrained, words):
    with pytest.raises(ModelError, match=words):
        Teacher(TeacherParams(model=model, pretrained=pretrained), CPU)


def test_a_folder_without_weights_is_not_filled_with_random_ones(tmp_path):
    save_open_clip(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("asked", [{"trust_remote_code": True}, {}])
def test_a_folder_cannot_have_its_own_code_run(tmp_path, asked):
    """Neither through its settings nor through a question at the terminal."""
    text = {"hf_tokenizer_name": "any", "tokenizer_kwargs": asked}
    name = save_open_clip(tmp_path / "teacher", text=text)
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "teacher/tokenizer_config.json").write_text(json.dumps(settings))
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own: pass\n"
    (tmp_path / "teacher/own.py").write_text(code)
    words = r"run code from its folder \(trust_remote_code\)" if asked else "cannot be loaded"
    with pytest.raises(ModelError, match=words):
        load(name)
    assert not (tmp_path / "ran").exists()


def test_decode_gives_a_rejection_for_bad_bytes(demo):
    assert isinstance(demo.decode(b"<html>"), Rejection)


@pytest.mark.real
def test_the_real_teacher_is_plain_open_clip():
    name = f"local-dir:{SHARED / 'models/flickr8k-clip'}"
    teacher = load(name)
    model, preprocess = open_clip.create_model_from_pretrained(name)
    with zipfile.ZipFile(SHARED / "mirror/Flickr8k_Dataset.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:8]
        contents = [archive.read(name) for name in names]
    captions = [
        "A dog runs .",
        "Two men in hard hats climb a wall , and a third one watches them .",
    ]
    with torch.inference_mode():
        images = torch.stack([preprocess(image) for image in open_images(contents)])
        expected = model.eval().encode_image(images)
        expected_captions = model.encode_text(open_clip.get_tokenizer(name)(captions))
    torch.testing.assert_close(image_features(teacher, contents), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher.encode_captions(captions), expected_captions, **CLOSE)
