"""From sources to the corpora's folders: fetch, read, write, count."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.core.errors import InputError
from pipeline.core.files import atomic_folder, reports_unreadable
from pipeline.core.plaintext import is_blank, read_lines
from pipeline.core.progress import log
from pipeline.download import records
from pipeline.download.fetch import fetch
from pipeline.download.folder import write_folder_pairs
from pipeline.download.hub import write_hub_pairs
from pipeline.download.karpathy import read_karpathy
from pipeline.download.pairing import write_rows_to
from pipeline.download.scenes.tables import make_sentences, make_sts, write_scene_pairs
from pipeline.download.scenes.transfer_tasks import make_transfer
from pipeline.download.senteval import read_cased_benchmark, read_mteb_sts, read_senteval
from pipeline.download.sources import BY_NAME, OWN_KINDS, SCENES
from pipeline.download.webdataset import write_webdataset_pairs
from pipeline.params.download import DownloadParams

Metrics = dict[str, int]


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
            left_out = _write_own_pairs(target, params, fetcher.folder)
        else:
            splits, *archives = fetcher(params.pairs)
            dataset, _, part = params.pairs.partition("-")
            rows = read_karpathy(splits, dataset, archives, restval=not part)
            records.write_pairs(target, *rows)
            for archive in archives:
                _link_or_copy(archive, target / archive.name)
    return _account(params.pairs, records.count_pairs(folder)) | left_out


def _write_own_pairs(target: Path, params: DownloadParams, downloads: Path) -> Metrics:
    with write_rows_to(target, params.splits) as rows:
        match params.pairs:
            case "folder":
                write_folder_pairs(rows, params.folder)
            case "webdataset":
                write_webdataset_pairs(rows, params.webdataset, downloads)
            case _:
                write_hub_pairs(rows, params.hub)
    return dict(rows.left_out)


def _link_or_copy(source: Path, target: Path) -> None:
    """Spare the disk a second copy of a large archive where the file system can."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def make_text(folder: Path, params: DownloadParams, fetcher: Fetcher) -> Metrics:
    """Write the text-only sentences that `params.text` names; returns their count."""
    with atomic_folder(folder) as target:
        if params.text == SCENES:
            sentences = make_sentences(params.scenes)
        else:
            sentences = read_sentences_file(fetcher(params.text)[0])
        records.write_sentences(target, sentences)
    return _account(params.text, {"sentences": len(sentences)})


def read_sentences_file(path: Path) -> list[str]:
    """The sentences of a text file, one a line, without surrounding white space and empty lines."""
    with reports_unreadable(path), path.open("rb") as stream:
        lines = (line.strip() for _, line in read_lines(stream, str(path)))
        sentences = [line for line in lines if not is_blank(line)]
    if not sentences:
        raise InputError(f"{path} holds no sentence.", "fetch the file again.")
    return sentences


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
