"""From sources to the corpora's folders: fetch, read, write, count."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.core.files import atomic_folder
from pipeline.core.progress import log
from pipeline.download import records
from pipeline.download.fetch import fetch
from pipeline.download.folder import write_folder_pairs
from pipeline.download.hub import write_hub_pairs
from pipeline.download.karpathy import read_karpathy
from pipeline.download.pairing import PairRows
from pipeline.download.scenes.tables import make_sentences, make_sts, write_pairs_corpus
from pipeline.download.scenes.transfer_tasks import make_transfer
from pipeline.download.senteval import read_cased_benchmark, read_senteval
from pipeline.download.sources import BY_NAME, OWN_KINDS, SCENES
from pipeline.download.webdataset import write_webdataset_pairs
from pipeline.download.wiki import read_sentences_file
from pipeline.params.download import DownloadParams

Metrics = dict[str, int]


@dataclass(frozen=True)
class Fetcher:
    """Where fetched files are kept, and the mirror to take them from, if any."""

    folder: Path
    mirror: str | None

    def __call__(self, source: str) -> list[Path]:
        """Fetch all files of a source."""
        return [fetch(file, self.folder, self.mirror).path for file in BY_NAME[source].files]


def make_pairs(folder: Path, params: DownloadParams, fetcher: Fetcher) -> Metrics:
    """Write the images with captions that `params.pairs` names.

    Returns:
        Their counts; for one's own data also of what was left out of it.
    """
    left_out: Metrics = {}

    def write(target: Path) -> None:
        if params.pairs == SCENES:
            write_pairs_corpus(target, params.scenes)
        elif params.pairs in OWN_KINDS:
            left_out.update(_write_own_pairs(target, params, fetcher))
        else:
            _write_public_pairs(target, params.pairs, fetcher)

    _replace(folder, write)
    return _account(params.pairs, records.count_pairs(folder)) | left_out


def make_text(folder: Path, params: DownloadParams, fetcher: Fetcher) -> Metrics:
    """Write the text-only sentences that `params.text` names; returns their count."""

    def write(target: Path) -> None:
        if params.text == SCENES:
            sentences = make_sentences(params.scenes)
        else:
            sentences = read_sentences_file(fetcher(params.text)[0])
        records.write_sentences(target, sentences)

    _replace(folder, write)
    return _account(params.text, {"sentences": len(records.read_sentences(folder))})


def make_evaluation(folder: Path, params: DownloadParams, fetcher: Fetcher) -> Metrics:
    """Write the tasks that `params.evaluation` names; returns the samples of each."""

    def write(target: Path) -> None:
        if params.evaluation == SCENES:
            sts, transfer = make_sts(params.scenes), make_transfer(params.scenes)
        else:
            sts, transfer = _read_public_tasks(fetcher(params.evaluation))
        records.write_sts(target, sts)
        records.write_transfer(target, transfer)

    _replace(folder, write)
    return _account(params.evaluation, _count_tasks(folder))


def _replace(folder: Path, write: Callable[[Path], None]) -> None:
    with atomic_folder(folder) as target:
        write(target)


def _write_own_pairs(target: Path, params: DownloadParams, fetcher: Fetcher) -> Metrics:
    with records.PairsWriter(target) as writer, PairRows(writer) as rows:
        match params.pairs:
            case "folder":
                write_folder_pairs(target, rows, params.folder, params.splits)
            case "webdataset":
                write_webdataset_pairs(rows, params.webdataset, params.splits, fetcher.folder)
            case _:
                write_hub_pairs(target, rows, params.hub, params.splits)
    return dict(rows.left_out)


def _write_public_pairs(folder: Path, dataset: str, fetcher: Fetcher) -> None:
    splits, *archives = fetcher(dataset)
    images, captions = read_karpathy(splits, dataset, archives)
    records.write_pairs(folder, images, captions)
    for archive in archives:
        _link_or_copy(archive, folder / archive.name)


def _read_public_tasks(files: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    senteval, *cased_benchmark = files
    sts, transfer = read_senteval(senteval)
    return pd.concat([sts, *map(read_cased_benchmark, cased_benchmark)]), transfer


def _link_or_copy(source: Path, target: Path) -> None:
    """Spare the disk a second copy of a large archive where the file system can."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _count_tasks(folder: Path) -> dict[str, int]:
    return {
        str(task).lower().replace("-", "_"): int(count)
        for table in (records.read_sts(folder), records.read_transfer(folder))
        for task, count in table["task"].value_counts(sort=False).items()
    }


def _account(source: str, counts: dict[str, int]) -> Metrics:
    """Counts, held against the public ones where those are known."""
    public = BY_NAME[source].counts if source in BY_NAME else {}
    differing = {key: count for key, count in public.items() if counts.get(key) != count}
    for key, count in differing.items():
        log.warning("%s has %s %s, the public release %s", source, counts.get(key, 0), key, count)
    return counts | ({"as_published": int(not differing)} if public else {})
