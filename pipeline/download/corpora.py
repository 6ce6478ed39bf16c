"""From sources to the corpora's folders: fetch, read, write, count."""

import shutil
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
from pipeline.download.pairing import PairRows, write_rows_to
from pipeline.download.scenes.tables import make_sentences, make_sts, write_scene_pairs
from pipeline.download.scenes.transfer_tasks import make_transfer
from pipeline.download.sentences import read_own_sentences, read_sentences_file
from pipeline.download.senteval import read_cased_benchmark, read_mteb_sts, read_senteval
from pipeline.download.sources import BY_NAME, OWN_KINDS, SCENES
from pipeline.download.webdataset import write_webdataset_pairs
from pipeline.params.download import DownloadParams

Metrics = dict[str, int]

_FEW = 100
"""Fewer images of test are warned of."""


@dataclass(frozen=True)
class Fetcher:
    """Where fetched files are kept, and the mirror to take them from, if any."""

    folder: Path
    mirror: str | None

    def __call__(self, source: str) -> list[Path]:
        """Fetch all files of a source."""
        return [fetch(file, self.folder, self.mirror) for file in BY_NAME[source].files]


def make_pairs(folder: Path, params: DownloadParams, fetcher: Fetcher) -> Metrics:
    """Write the images with captions that `params.pairs` names.

    Returns:
        Their counts; for one's own data also of what was left out of it.
    """
    left_out: Metrics = {}
    with atomic_folder(folder) as target:
        if params.pairs == SCENES:
            write_scene_pairs(target, params.scenes)
        elif params.pairs in OWN_KINDS:
            with write_rows_to(target, params.splits) as rows:
                add_own_pairs(rows, params, fetcher.folder)
            left_out = dict(rows.left_out)
        else:
            splits, *archives = fetcher(params.pairs)
            dataset, _, part = params.pairs.partition("-")
            tables = read_karpathy(splits, dataset, archives, restval=not part)
            records.write_pairs(target, *tables)
            for archive in archives:
                _link_or_copy(archive, target / archive.name)
    return _account(params.pairs, records.count_pairs(folder)) | left_out


def add_own_pairs(rows: PairRows, params: DownloadParams, downloads: Path) -> None:
    """Add one's own images and captions."""
    match params.pairs:
        case "folder":
            write_folder_pairs(rows, params.folder)
        case "webdataset":
            write_webdataset_pairs(rows, params.webdataset, downloads)
        case _:
            write_hub_pairs(rows, params.hub)
    if rows.in_split["test"] < _FEW:
        log.warning(
            "%d of %d images are in test, too few for retrieval scores that mean much; "
            "download.splits.test is their share where the splits are drawn",
            rows.in_split["test"],
            rows.images,
        )


def _link_or_copy(source: Path, target: Path) -> None:
    """Spare the disk a second copy of a large archive where the file system can."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def make_text(folder: Path, params: DownloadParams, fetcher: Fetcher) -> Metrics:
    """Write the text-only sentences that `params.text` names, which may be none; counts them."""
    left_out: Metrics = {}
    with atomic_folder(folder) as target:
        match params.text:
            case "scenes":
                sentences = make_sentences(params.scenes)
            case "file":
                sentences, left_out = read_own_sentences(params)
            case "none":
                sentences = []
            case source:
                sentences = read_sentences_file(fetcher(source)[0], "fetch the file again.")
        records.write_sentences(target, sentences)
    return _account(params.text, {"sentences": len(sentences)}) | left_out


def make_evaluation(folder: Path, params: DownloadParams, fetcher: Fetcher) -> Metrics:
    """Write the tasks that `params.evaluation` names; returns the samples of each."""
    with atomic_folder(folder) as target:
        if params.evaluation == SCENES:
            sts, transfer = make_sts(params.scenes), make_transfer(params.scenes)
        elif params.evaluation == "mteb-sts":
            sts = read_mteb_sts(fetcher(params.evaluation))
            transfer = pd.DataFrame(columns=records.TRANSFER.names)
        else:
            senteval, *cased_benchmark = fetcher(params.evaluation)
            sts, transfer = read_senteval(senteval)
            sts = pd.concat([sts, *map(read_cased_benchmark, cased_benchmark)])
        records.write_sts(target, sts)
        if len(transfer):
            records.write_transfer(target, transfer)
    counted = pd.concat([sts["task"], transfer["task"]]).value_counts(sort=False)
    counts = {str(task).lower().replace("-", "_"): int(n) for task, n in counted.items()}
    return _account(params.evaluation, counts)


def _account(source: str, counts: dict[str, int]) -> Metrics:
    """Counts, compared with the public ones where those are known."""
    public = BY_NAME[source].counts if source in BY_NAME else {}
    differing = {key: count for key, count in public.items() if counts.get(key) != count}
    for key, count in differing.items():
        log.warning("%s has %s %s, the public release %s", source, counts.get(key, 0), key, count)
    return counts | ({"as_published": int(not differing)} if public else {})
