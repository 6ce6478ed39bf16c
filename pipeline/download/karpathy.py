"""Reader of the Karpathy splits: one json a data set, images in their archives."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from pipeline.core.errors import InputError
from pipeline.core.plaintext import decode
from pipeline.core.redact import one_line
from pipeline.download.archives import Archive
from pipeline.download.pairing import clean_caption
from pipeline.download.splits import SPLIT_OF_NAME

_LARGEST_ID = (1 << 63) - 1
_LONGEST = 120
"""Characters of what is wrong, in a message."""


def read_karpathy(
    splits: Path, dataset: str, archives: Iterable[Path]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read images and captions of one data set.

    Args:
        splits: caption_datasets.zip.
        dataset: `flickr8k`, `flickr30k` or `coco`.
        archives: the image archives; images are found in them by file name.

    Returns:
        The rows of images.parquet and captions.parquet. An image that is in no archive is kept,
        with its bare name as member; the features step counts it as rejected.

    Raises:
        InputError: the zip or json is damaged, or a row has another form than expected.
    """
    content = _read_json(splits, f"dataset_{dataset}.json")
    members = _members_by_name(archives)
    images: list[dict[str, str | int]] = []
    captions: list[tuple[int, str]] = []
    known: set[int] = set()
    for row, image in enumerate(content):
        where = f"{splits.name}: dataset_{dataset}.json, image {row}"
        images.append(_image_row(image, members, where))
        image_id = int(images[-1]["image_id"])
        if image_id in known:
            raise _malformed(where, f"imgid: {image_id} stands for an image before it too")
        known.add(image_id)
        captions += [(image_id, caption) for caption in _captions(image, where)]
    caption_table = pd.DataFrame(captions, columns=["image_id", "caption"])
    caption_table.insert(0, "caption_id", range(len(caption_table)))
    return pd.DataFrame(images), caption_table


def _read_json(splits: Path, name: str) -> list[Any]:
    with Archive(splits) as archive:
        try:
            content = decode(archive.read(name), f"{splits}: {name}")
            images = json.loads(content)["images"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = one_line(str(error), _LONGEST)
            raise InputError(
                f"{splits} holds no usable {name}: {reason}.", "fetch the archive again."
            ) from None
    if not isinstance(images, list) or not images:
        raise InputError(f"{splits}: {name} lists no images.", "fetch the archive again.")
    return images


def _members_by_name(archives: Iterable[Path]) -> Mapping[str, tuple[str, str]]:
    """Where each file name stands: archive name and member; macOS's shadow files are no images."""
    found: dict[str, tuple[str, str]] = {}
    for path in archives:
        with Archive(path) as archive:
            for member in archive.sizes:
                if not member.startswith("__MACOSX/"):
                    found.setdefault(PurePosixPath(member).name, (path.name, member))
    return found


def _image_row(
    image: Any, members: Mapping[str, tuple[str, str]], where: str
) -> dict[str, str | int]:
    try:
        image_id, split, name = image["imgid"], SPLIT_OF_NAME[image["split"]], image["filename"]
    except (KeyError, TypeError) as error:
        raise _malformed(where, error) from None
    if not (isinstance(name, str) and _is_text(name)):
        raise _malformed(where, "filename")
    if type(image_id) is not int or not 0 <= image_id <= _LARGEST_ID:
        raise _malformed(where, "imgid")
    fallback = (next(iter(members.values()), ("", ""))[0], name)
    archive, member = members.get(name, fallback)
    return {"image_id": image_id, "split": split, "archive": archive, "member": member}


def _captions(image: Any, where: str) -> list[str]:
    try:
        raw = [sentence["raw"] for sentence in image["sentences"]]
    except (KeyError, TypeError) as error:
        raise _malformed(where, error) from None
    if not all(isinstance(text, str) and _is_text(text) for text in raw):
        raise _malformed(where, "sentence: its raw is no text")
    return [clean_caption(text) for text in raw]


def _is_text(text: str) -> bool:
    """Whether it can be written: JSON may hold one half of a character of two (RFC 8259, 8.2)."""
    try:
        return bool(text.encode("utf-8")) or not text
    except UnicodeEncodeError:
        return False


def _malformed(where: str, error: Exception | str) -> InputError:
    return InputError(
        f"{where} has no usable {one_line(str(error), _LONGEST)}.",
        "fetch caption_datasets.zip again from its source.",
    )
