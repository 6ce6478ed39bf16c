"""Parquet files that hold the images themselves, of the Hub or of this machine: packed once."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.core.checksums import hash_strings
from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.progress import progress
from pipeline.download.archives import MAX_MEMBER_BYTES, Packer
from pipeline.download.caption_table import as_list, join_captions
from pipeline.download.packed_images import IMAGE_ENDINGS
from pipeline.download.pairing import SPLIT_OF_NAME, PairRows, draw_split, named_split
from pipeline.download.parquet import ParquetRows, has_images, has_text
from pipeline.params.download import FolderParams, HubParams
from pipeline.params.places import why_missing

PARQUET = ".parquet"

_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_OF_NAME)})(?![a-z])", re.IGNORECASE)
_SPLIT_FOLDER = re.compile(rf"(partial-)?({'|'.join(SPLIT_OF_NAME)})[-_]?\d*", re.IGNORECASE)
_LONGEST_NAME = 200
_SHOWN = 5


def local_files(written: str, key: str) -> tuple[Path, list[str]]:
    """The folder that the param `key` names, and the files in and below it; or one file of it.

    Hidden files and folders, such as those of download tools, are left out.
    """
    path = Path(written).absolute()
    with reports_unreadable(written):
        if path.is_file():
            return path.parent, [path.name]
        if not path.is_dir():
            raise InputError(*why_missing(written, key))
        found = (one.relative_to(path) for one in path.rglob("*") if one.is_file())
        names = [one.as_posix() for one in found if not any(p[0] == "." for p in one.parts)]
    return path, sorted(names)


def configs_of(files: Sequence[str]) -> list[str]:
    """The configs that files are of: their folders, without those that only name a split.

    The Hub's own branch refs/convert/parquet has CONFIG/SPLIT/0000.parquet; others have
    data/train-00000-of-00003.parquet, CONFIG/train-0.parquet or train/0.parquet. `.` is the top.
    """
    folders = (PurePosixPath(file).parent.parts for file in files)
    kept = (filter(lambda part: not _SPLIT_FOLDER.fullmatch(part), parts) for parts in folders)
    return sorted({str(PurePosixPath(*parts)) for parts in kept})


def require_one_config(files: Sequence[str], name: str, fix: str) -> None:
    """Refuse files of several configs; `fix` gets the name of one of them."""
    if len(configs := configs_of(files)) > 1:
        shown = ", ".join(configs[:_SHOWN]) + (", ..." if len(configs) > _SHOWN else "")
        raise InputError(
            f"{name} has files of several configs: {shown}; they may hold the same pictures in "
            "other splits.",
            fix.format(configs[-1]),
        )


def split_in_name(file: str) -> str | None:
    """The split in a file's name, or else in the nearest of its folders that names one.

    `data/train-00000-of-00003.parquet` is train, `test/0.tar` is test; None: no part names one.
    """
    for part in reversed(PurePosixPath(file).parts):
        if found := _SPLIT.search(part):
            return SPLIT_OF_NAME[found[0].lower()]
    return None


def add_tables(
    rows: PairRows, tables: Iterable[ParquetRows], params: FolderParams | HubParams
) -> None:
    """Repack the images of every table into its own zip, and add them with their captions."""
    rows.left_out.update(files=0, samples_without_image=0)
    for table in tables:
        with rows.pack(archive_of(table.name)) as packer:
            _repack(table, packer, rows, params)
        rows.left_out["files"] += 1
        rows.left_out["samples_without_image"] += table.count - packer.members
    if not rows.images:
        raise InputError(
            f"the Parquet files hold no image bytes in column {params.image_column}.",
            f"set {key_of(params)}.image_column to a column with the images themselves, not their "
            "addresses.",
        )


def key_of(params: FolderParams | HubParams) -> str:
    """The block of params.yaml."""
    return "download.folder" if isinstance(params, FolderParams) else "download.hub"


def archive_of(file: str) -> str:
    """The name of the zip for a Parquet file's images; no two files have the same."""
    name = file.removesuffix(PARQUET).replace("/", "--")
    if len(name.encode()) <= _LONGEST_NAME and name.replace("--", "/") + PARQUET == file:
        return f"{name}.zip"
    return f"{name[-40:]}-{hash_strings([file])[:12]}.zip"


def _repack(
    table: ParquetRows, packer: Packer, rows: PairRows, params: FolderParams | HubParams
) -> None:
    """Pack the images by the number of their row."""
    archive, split_of_file = archive_of(table.name), split_in_name(table.name)
    key, split_column = key_of(params), params.split_column
    table.find({f"{key}.image_column": params.image_column}, has_images)
    (captions,) = table.find(
        {f"{key}.caption_column": as_list(params.caption_column)}, has_text
    ).values()
    if isinstance(params, HubParams) and not table.has(split_column, has_text):
        split_column = None  # it is a guess
    elif split_column is not None:
        table.find({f"{key}.split_column": split_column}, has_text)
    columns = [params.image_column, *captions, *filter(None, [split_column])]
    every = table.rows(columns, at_once=64)
    for row, cells in progress(every, what=archive, unit="row", total=table.count):
        content, ending = _image(cells[params.image_column])
        if not content or len(content) > MAX_MEMBER_BYTES:
            continue
        where, member = f"{table.name} row {row:,}", f"{row:08d}{ending}"
        # Drawn by its bytes: paths are often missing or alike, and rows move between files.
        split = split_of_file or draw_split(content, rows.splits)
        if split_column:
            split = named_split(cells[split_column], where)
        packer.add(member, content)
        texts = join_captions({column: cells[column] for column in captions}, where)
        rows.add(split, archive, member, texts)


def _image(cell: Any) -> tuple[bytes | None, str]:
    """The bytes of an image, and the ending of its path where that is an image's."""
    if not isinstance(cell, dict):
        return cell, ""
    ending = PurePosixPath(str(cell.get("path") or "")).suffix.lower()
    return cell["bytes"], ending if ending.removeprefix(".") in IMAGE_ENDINGS else ""
