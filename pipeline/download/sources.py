"""The registry of public sources: data, not code.

An `address` is a URL, or `hf://datasets/ORG/NAME/FILE` for a file of the Hub. No checksum is made
up: the bytes of each file are hashed at first use and verified against that ever after
(`fetch.py`). Counts are those of the public release, to verify what the readers find.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RemoteFile:
    """One public file: its name there, its address and its approximate size."""

    name: str
    address: str
    megabytes: int


@dataclass(frozen=True)
class Source:
    """One public data set; it is `pairs`, `text` or `evaluation`."""

    name: str
    kind: str
    files: tuple[RemoteFile, ...]
    licence: str
    citation: str
    counts: Mapping[str, int] = field(default_factory=dict)
    """Public row counts by metric name."""


def _file(address: str, megabytes: int) -> RemoteFile:
    return RemoteFile(address.rpartition("/")[2], address, megabytes)


def _pairs(captions: int, train: int, val: int, test: int) -> dict[str, int]:
    images = {"train_images": train, "val_images": val, "test_images": test}
    return {"images": train + val + test, "captions": captions} | images


_STANFORD = "https://cs.stanford.edu/people/karpathy/deepimagesent"
_RELEASES = "https://github.com/jbrownlee/Datasets/releases/download"
_COCO = "http://images.cocodataset.org/zips"
_FLICKR30K = "hf://datasets/nlphuji/flickr30k"
_SIMCSE = "hf://datasets/princeton-nlp/datasets-for-simcse"
_STS_WIKI = "http://ixa2.si.ehu.eus/stswiki/images"

_KARPATHY = _file(f"{_STANFORD}/caption_datasets.zip", 36)
_SENTEVAL = _file(f"{_SIMCSE}/senteval.tar", 18)
_SPLITS = "Karpathy and Fei-Fei, CVPR 2015 (splits)"
_SENTEVAL_LICENCE = "STS: CC BY-SA 4.0; SICK: CC BY-NC-SA 3.0; transfer tasks: research use"
_SENTEVAL_CITATION = "Conneau and Kiela, LREC 2018 (SentEval)"
_STSB_PAIRS = 5_749 + 1_500 + 1_379
_SENTEVAL_COUNTS = {
    "sts12": 3_108,
    "sts13": 1_500,
    "sts14": 3_750,
    "sts15": 3_000,
    "sts16": 1_186,
    "sts_b": _STSB_PAIRS,
    "sick_r": 4_500 + 500 + 4_927,
    "mr": 10_662,
    "cr": 3_775,
    "subj": 10_000,
    "mpqa": 10_606,
    "sst2": 67_349 + 872 + 1_821,
    "trec": 5_452 + 500,
    "mrpc": 4_076 + 1_725,
}

SOURCES = (
    Source(
        "flickr8k",
        "pairs",
        (_KARPATHY, _file(f"{_RELEASES}/Flickr8k/Flickr8k_Dataset.zip", 1116)),
        licence="photos: Flickr's terms, research use; captions: CC BY-SA 3.0",
        citation=f"Hodosh, Young and Hockenmaier, JAIR 2013; {_SPLITS}",
        counts=_pairs(40_000, 6_000, 1_000, 1_000),
    ),
    Source(
        "flickr30k",
        "pairs",
        (_KARPATHY, _file(f"{_FLICKR30K}/flickr30k-images.zip", 4440)),
        licence="photos: Flickr's terms, research use; captions: CC BY 3.0",
        citation=f"Young et al., TACL 2014; {_SPLITS}",
        counts=_pairs(155_070, 29_000, 1_014, 1_000),
    ),
    Source(
        "coco",
        "pairs",
        (_KARPATHY, _file(f"{_COCO}/train2014.zip", 13_511), _file(f"{_COCO}/val2014.zip", 6_646)),
        licence="photos: Flickr's terms; captions: CC BY 4.0",
        citation=f"Lin et al., ECCV 2014; {_SPLITS}",
        counts=_pairs(616_767, 113_287, 5_000, 5_000),
    ),
    Source(
        "wiki1m",
        "text",
        (_file(f"{_SIMCSE}/wiki1m_for_simcse.txt", 121),),
        licence="CC BY-SA 3.0 (Wikipedia)",
        citation="Gao, Yao and Chen, EMNLP 2021 (SimCSE)",
        counts={"sentences": 1_000_000},
    ),
    Source(
        "senteval",
        "evaluation",
        (_SENTEVAL,),
        licence=_SENTEVAL_LICENCE,
        citation=_SENTEVAL_CITATION,
        counts=_SENTEVAL_COUNTS,
    ),
    Source(
        "mteb",
        "evaluation",
        (_SENTEVAL, _file(f"{_STS_WIKI}/4/48/Stsbenchmark.tar.gz", 1)),
        licence=_SENTEVAL_LICENCE,
        citation=f"{_SENTEVAL_CITATION}; Cer et al., SemEval 2017 (STS-B)",
        counts=_SENTEVAL_COUNTS | {"sts_b_cased": _STSB_PAIRS},
    ),
)

BY_NAME: Mapping[str, Source] = {source.name: source for source in SOURCES}

_OWNER = "as its owner states"

SCENES = "scenes"
"""The embedded world; it is rendered, not fetched."""

NO_TEXT = "none"
"""The text of a run that trains on captions alone."""

OWN_KINDS: Mapping[str, Source] = {
    name: Source(name, kind, (), licence, f"{what} (download.{key})")
    for name, kind, key, licence, what in (
        ("folder", "pairs", "folder", _OWNER, "a folder of images and a table of captions"),
        ("webdataset", "pairs", "webdataset", _OWNER, "tar shards as img2dataset writes them"),
        ("hub", "pairs", "hub", "as its page on the Hub states", "a data set of the Hub"),
        ("file", "text", "text_file", _OWNER, "sentences in files"),
    )
}
"""Your own data: what they are follows from the params."""
