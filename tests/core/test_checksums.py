"""Checksums of files: any flipped bit, cut or foreign line is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.checksums import (
    CHECKSUMS,
    add_checksum,
    hash_strings,
    is_whole,
    verify_checksums,
    write_checksums,
)
from pipeline.core.errors import InputError


def test_a_file_is_verified_against_its_checksum(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        verify_checksums(tmp_path, name, fix="")  # of another program: no checksums
        write_checksums(tmp_path, name)
    verify_checksums(tmp_path, "one", "two", "not recorded", fix="fetch")
    (tmp_path / "two").write_text("twO")
    verify_checksums(tmp_path, "one", fix="fetch")
    verify_checksums(tmp_path, "two", fix="fetch", most=2)
    with pytest.raises(InputError, match=r"two is damaged: its sha256") as error:
        verify_checksums(tmp_path, "one", "two", fix="fetch it")
    assert error.value.fix == "fetch it"


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"one": 7}'])
def test_damaged_checksums_are_named(tmp_path, content):
    (tmp_path / CHECKSUMS).write_bytes(content)
    with pytest.raises(InputError, match=f"{CHECKSUMS} holds no checksums"):
        verify_checksums(tmp_path, "one", fix="fetch")


@given(content=st.binary(max_size=200), data=st.data())
def test_any_flipped_bit_or_cut_is_noticed(tmp_path_factory, content, data):
    path = tmp_path_factory.mktemp("whole") / "file"
    assert not is_whole(path)
    path.write_bytes(content)
    assert not is_whole(path)
    add_checksum(path)
    assert is_whole(path)
    whole = path.read_bytes()
    assert whole.startswith(content)
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    path.write_bytes((int.from_bytes(whole, "big") ^ 1 << bit).to_bytes(len(whole), "big"))
    assert not is_whole(path)
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert not is_whole(path)


def test_the_split_between_strings_counts():
    assert hash_strings(["ab", "c"]) != hash_strings(["a", "bc"])
    assert hash_strings(["\ud800"]) != hash_strings(["\ud801"])  # lone surrogates hash too
