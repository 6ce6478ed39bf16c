"""The feature file: what is written is read; what is damaged or does not belong is refused."""

import resource
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.core.checksums import add_checksum, hash_strings
from pipeline.core.errors import (
    InputError,
    MissingArtifactError,
    ModelError,
    PipelineError,
    ResourceError,
    StaleArtifactError,
)
from pipeline.features import store
from pipeline.features.cache import FeatureCache, text_keys
from pipeline.features.hdf5 import DamagedFeaturesError
from pipeline.features.identity import (
    describe_text_teacher,
    hash_teacher_source,
)
from pipeline.features.store import Features, read_features, read_identity, write_features
from pipeline.params.teacher import TeacherParams, TextTeacherParams
from tests.faults.ledger import record, times
from tests.features.tiny_teachers import IDENTITY

TEACHER = TeacherParams(model="ViT-B-32", pretrained="openai")
MAPPED_OR_NOT = pytest.mark.parametrize("in_memory", [0, 1 << 30])


@pytest.fixture
def features() -> Features:
    rng = np.random.default_rng(0)
    return Features(
        images=rng.standard_normal((3, 4)).astype(np.float16),
        image_ids=np.array([7, 8, 9]),
        captions=rng.standard_normal((5, 4)).astype(np.float16),
        caption_ids=np.arange(5),
        caption_image=np.array([0, 0, 1, 2, 2]),
    )


@pytest.fixture
def cached(features, tmp_path) -> Features:
    """The same features, joined from shards of a cache, two rows each."""
    cache = FeatureCache(tmp_path / "store", IDENTITY, np.ones((2, 4), np.float32))
    joined = {}
    for kind, rows in (("images", features.images), ("captions", features.captions)):
        keys = text_keys([f"{kind} {row}" for row in range(len(rows))])
        for start in range(0, len(rows), 2):
            cache.write(kind, keys[start : start + 2], rows[start : start + 2])
        joined[kind] = cache.rows(kind, keys)
    return replace(features, **joined)


@pytest.fixture
def out(features, tmp_path) -> Path:
    """A feature file."""
    write_features(tmp_path / "features.h5", features, IDENTITY, "corpus")
    return tmp_path / "features.h5"


def read(path: Path) -> Features:
    return read_features(path, TEACHER, "corpus")


def assert_equal(found: Features, expected: Features) -> None:
    for name in ("images", "image_ids", "captions", "caption_ids", "caption_image"):
        np.testing.assert_array_equal(getattr(found, name)[:], getattr(expected, name)[:])


def is_mapped(rows: np.ndarray) -> bool:
    return isinstance(rows, np.memmap) or isinstance(rows.base, np.memmap)


def test_the_tables_and_attributes_without_a_text_teacher(out):
    names: list[str] = []
    with h5py.File(out) as file:
        file.visit(names.append)
        attributes = set(file.attrs)
    assert names == [
        "caption", "caption/features", "caption/ids", "caption/image",
        "image", "image/features", "image/ids",
    ]  # fmt: skip
    assert attributes == {"schema", "corpus", "normalised", *asdict(IDENTITY)}


@MAPPED_OR_NOT
def test_the_rows_of_a_text_teacher(features, tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(store, "IN_MEMORY", in_memory)
    rng, out = np.random.default_rng(1), tmp_path / "features.h5"
    caption, sentence = (rng.standard_normal((n, 6)).astype(np.float16) for n in (5, 2))
    with_text = replace(features, caption_text=caption, sentence_text=sentence)
    named = TextTeacherParams(encoders=["hub/a", "hub/b"], weights=[3, 1])
    sentences = ["one", "two"]
    attributes = describe_text_teacher(named) | {"sentences": hash_strings(sentences)}
    write_features(out, with_text, IDENTITY, "corpus", attributes)
    teacher = TEACHER.model_copy(update={"text": named})
    found = read_features(out, teacher, "corpus", sentences)
    assert_equal(found, with_text)
    np.testing.assert_array_equal(found.caption_text, caption)
    np.testing.assert_array_equal(found.sentence_text, sentence)
    assert is_mapped(found.sentence_text) == is_mapped(found.images) == (in_memory == 0)
    assert read_features(out, teacher, "corpus").digest == found.digest
    with pytest.raises(StaleArtifactError, match="another set of text-only sentences"):
        read_features(out, teacher, "corpus", ["one", "other"])
    for change in ({"weights": [1, 1]}, {"encoders": ["hub/b", "hub/a"]}, {"pooling": "cls"}):
        other = teacher.model_copy(update={"text": named.model_copy(update=change)})
        with pytest.raises(StaleArtifactError, match=r"another text teacher .*0\.75 hub/a"):
            read_features(out, other, "corpus", sentences)
    with pytest.raises(StaleArtifactError, match=r"another text teacher .* instead of none"):
        read(out)


@MAPPED_OR_NOT
def test_what_is_written_is_read(features, out, monkeypatch, in_memory):
    monkeypatch.setattr(store, "IN_MEMORY", in_memory)
    found, content = read(out), out.read_bytes()
    assert_equal(found, features)
    assert found.dim == 4
    assert is_mapped(found.captions) == is_mapped(found.images) == (in_memory == 0)
    found.captions[:] = 0
    assert out.read_bytes() == content


def test_any_program_can_read_and_map_the_file(features, out):
    with h5py.File(out) as file:
        for name, rows in (("image", features.images), ("caption", features.captions)):
            table = file[f"{name}/features"]
            np.testing.assert_array_equal(table[:], rows)
            mapped = np.memmap(out, table.dtype, "r", table.id.get_offset(), table.shape)
            np.testing.assert_array_equal(mapped, rows)
        assert file.attrs["weights"] == IDENTITY.weights


def test_where_rows_come_from_changes_no_byte(cached, out, tmp_path):
    write_features(tmp_path / "joined.h5", cached, IDENTITY, "corpus")
    assert (tmp_path / "joined.h5").read_bytes() == out.read_bytes()
    assert read(tmp_path / "joined.h5").digest == read(out).digest != ""


def test_shards_are_joined_in_any_order_and_in_pieces(cached, features, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_PIECE", 3 * 2 * 4)
    order = np.random.default_rng(0).integers(0, 5, 40)
    cache = FeatureCache(tmp_path / "store", IDENTITY, np.ones((2, 4), np.float32))
    keys = text_keys([f"captions {row}" for row in order])
    ids = np.arange(len(order))
    shuffled = replace(
        cached, captions=cache.rows("captions", keys), caption_ids=ids, caption_image=ids % 3
    )
    write_features(tmp_path / "features.h5", shuffled, IDENTITY, "corpus")
    assert_equal(
        read(tmp_path / "features.h5"), replace(shuffled, captions=features.captions[order])
    )


def test_the_digest_is_of_all_that_is_written(features, tmp_path):
    moved = features.captions.copy()
    moved.view(np.uint16)[3, 2] ^= 1
    digests = set()
    for change in (
        {},
        {"captions": moved},
        {"captions": features.captions[[0, 2, 1, 3, 4]]},
        {"image_ids": np.arange(3)},
    ):
        write_features(tmp_path / "one.h5", replace(features, **change), IDENTITY, "corpus")
        digests.add(read(tmp_path / "one.h5").digest)
    assert len(digests) == 4


@pytest.mark.parametrize("limit", [100, 5000, 900_000])
def test_a_file_that_may_not_grow_is_reported(cached, tmp_path, limit):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(ResourceError, match=r"features\.h5 could not be written: file too"):
            write_features(tmp_path / "features.h5", cached, IDENTITY, "corpus")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("fault", ["damaged", "unreadable"])
def test_a_shard_that_cannot_be_used_stops_the_write(cached, tmp_path, fault):
    shard = max((tmp_path / "store").rglob("captions/*.h5"))
    if fault == "damaged":
        shard.write_bytes(shard.read_bytes().replace(b"sha256 ", b"sha257 "))
    else:
        shard.unlink()
        shard.symlink_to("/proc/self/mem")
    kind = DamagedFeaturesError if fault == "damaged" else ResourceError
    with pytest.raises(kind, match=shard.name):
        write_features(tmp_path / "features.h5", cached, IDENTITY, "corpus")
    assert not (tmp_path / "features.h5").exists()


def test_a_failed_write_leaves_the_old_file(features, out):
    before = out.read_bytes()
    with pytest.raises(TypeError):
        write_features(out, replace(features, images=object()), IDENTITY, "corpus")
    assert out.read_bytes() == before
    assert [entry.name for entry in out.parent.iterdir()] == ["features.h5"]


def test_a_file_that_cannot_be_read_is_not_called_damaged(out):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with out.open("rb") as stream:
        resource.setrlimit(resource.RLIMIT_NOFILE, (stream.fileno() + 1, limits[1]))
        try:
            for reader in (read, read_identity):
                with pytest.raises(ResourceError, match="too many open files") as error:
                    reader(out)
                assert "ulimit -n" in error.value.fix
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_teacher_is_read_without_the_features(out):
    assert read_identity(out) == IDENTITY


@pytest.mark.parametrize(
    ("teacher", "corpus", "words"),
    [
        ({"model": "ViT-L-14"}, "corpus", "ViT-B-32 instead of ViT-L-14"),
        ({"pretrained": "laion2b"}, "corpus", "openai instead of laion2b"),
        ({}, "other", "another set of images and captions"),
    ],
)
def test_features_of_another_teacher_or_corpus_are_refused(out, teacher, corpus, words):
    with pytest.raises(StaleArtifactError, match=words):
        read_features(out, TEACHER.model_copy(update=teacher), corpus)


def test_a_swapped_weight_file_under_the_same_name_is_noticed(features, tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "weights").write_bytes(b"one")
    teacher = TeacherParams(model=f"local-dir:{folder}")
    source = hash_teacher_source(teacher.model)
    identity = replace(IDENTITY, model=teacher.model, pretrained="", source=source)
    write_features(tmp_path / "features.h5", features, identity, "corpus")
    read_features(tmp_path / "features.h5", teacher, "corpus")
    (folder / "weights").write_bytes(b"two")
    with pytest.raises(StaleArtifactError, match="files in its folder changed"):
        read_features(tmp_path / "features.h5", teacher, "corpus")
    with pytest.raises(ModelError, match="no-such-folder does not exist"):
        hash_teacher_source(f"local-dir:{tmp_path}/no-such-folder")


def test_a_missing_file_names_the_stage_that_makes_it(tmp_path):
    for reader in (read, read_identity):
        with pytest.raises(MissingArtifactError, match="dvc repro features"):
            reader(tmp_path / "none.h5")


@MAPPED_OR_NOT
def test_a_flipped_bit_anywhere_is_noticed(out, monkeypatch, in_memory):
    monkeypatch.setattr(store, "IN_MEMORY", in_memory)
    whole = out.read_bytes()
    places = range(0, len(whole), times(61, 1))
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        out.write_bytes(content)
        for reader in (read, read_identity):
            with pytest.raises(DamagedFeaturesError, match=r"features\.h5 is damaged") as error:
                reader(out)
            assert "dvc repro -f features" in error.value.fix
    record("flipped bit", "features.h5", "one clear line", len(places))


def test_a_file_of_another_length_is_refused(out):
    whole = out.read_bytes()
    for content in (
        b"",
        whole[:1],
        whole[:700],
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"0",
    ):
        out.write_bytes(content)
        with pytest.raises(DamagedFeaturesError, match="its sha256 is not in its last line"):
            read(out)


def test_files_of_older_versions_are_refused(out, tmp_path):
    older = tmp_path / "older.h5"
    with h5py.File(older, "w", userblock_size=512) as file:
        file["image/features"] = np.zeros((2, 2), np.float16)
    with pytest.raises(InputError, match="of an older version") as error:
        read(older)
    assert "dvc repro -f features" in error.value.fix
    forge(out, lambda file: file.attrs.update(schema=4))
    with pytest.raises(StaleArtifactError, match="another version of the project: 4 instead of"):
        read(out)


def forge(path: Path, edit: Callable[[h5py.File], object]) -> None:
    """Edit a feature file as someone could who gives it a matching checksum again."""
    with h5py.File(path, "r+") as file:  # cuts the checksum off
        edit(file)
    add_checksum(path)


def replaced(name: str, **table: object) -> Callable[[h5py.File], object]:
    """Put another table in the place of one."""

    def edit(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **table)

    return edit


def linked(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["rows"] = file["image/features"][:]
    del file["image/features"]
    file["image/features"] = h5py.ExternalLink("other.h5", "/rows")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((5, 4), np.float16)
    layout[:] = h5py.VirtualSource("other.h5", "rows", (5, 4))
    del file["caption/features"]
    file.create_virtual_dataset("caption/features", layout)


def compact(file: h5py.File) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.COMPACT)
    replaced("caption/features", shape=(5, 4), dtype=np.float16, dcpl=settings)(file)


FLOATS = np.ones((5, 4), np.float16)
FORGED: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "no table": (lambda file: file.pop("image/ids"), "image/ids|doesn't exist"),
    "a group": (lambda file: file.move("image", "caption/more"), "component not found"),
    "no attribute": (lambda file: file.attrs.pop("weights"), "weights|attribute"),
    "a list": (lambda file: file.attrs.update(schema=[5, 5]), "damaged"),
    "a long name": (lambda file: file.attrs.update(model="n" * 9999), "another teacher: nnn"),
    "float32": (replaced("caption/features", data=FLOATS.astype("f4")), "has type float32"),
    "big-endian": (replaced("caption/features", data=FLOATS.astype(">f2")), "has type >f2"),
    "one dimension": (replaced("caption/features", data=FLOATS[0]), "1 dimensions"),
    "chunks": (replaced("caption/features", data=FLOATS, chunks=True), "not contiguous"),
    "compressed": (replaced("caption/features", data=FLOATS, compression=1), "not contiguous"),
    "compact": (compact, "not contiguous"),
    "virtual": (virtual, "not contiguous"),
    "elsewhere": (
        replaced("caption/features", shape=(5, 4), dtype="f2", external="/etc/passwd"),
        "not contiguous",
    ),
    "a link": (linked, "not a table of this file"),
    "fewer rows": (replaced("caption/features", data=FLOATS[:3]), "unequal length"),
    "fewer ids": (replaced("caption/ids", data=np.arange(4)), "unequal length"),
    "unwritten": (
        replaced("caption/features", shape=(1 << 40, 4), dtype="f2"),
        "larger than the file|unequal length",
    ),
    "no image": (replaced("caption/image", data=np.full(5, 3)), "names a row that /image"),
    "below": (replaced("caption/image", data=np.full(5, -1)), "names a row that /image"),
    "not finite": (replaced("caption/features", data=FLOATS * np.inf), "row 0 is not finite"),
    "no rows": (
        lambda file: [
            replaced(f"image/{name}", data=data[:0])(file)
            for name, data in (("ids", np.arange(1)), ("features", FLOATS))
        ],
        "has no rows",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_files_are_refused_in_one_line(out, name):
    edit, words = FORGED[name]
    forge(out, edit)
    with pytest.raises(PipelineError, match=words) as error:
        read(out)
    assert "features.h5" in error.value.what
    assert len(error.value.what.splitlines()) == 1
    assert len(error.value.what) < 800


def test_bytes_that_are_no_hdf5_are_refused(out):
    out.write_bytes(b"a text with a checksum of its own")
    add_checksum(out)
    with pytest.raises(ResourceError, match=r"features\.h5 cannot be read: .*signature"):
        read(out)
