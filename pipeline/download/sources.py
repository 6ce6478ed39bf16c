"""The registry of public sources: data, not code.

An `address` is a URL, or `hf://datasets/ORG/NAME/FILE` for a file of the model hub. No checksum is
invented: the bytes of each file are hashed at first use and held against that ever after
(`fetch.py`). Counts are those of the public release, to hold the readers' results against.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RemoteFile:
    """One public file: its name there, its address and its size."""

    name: str
    address: str
    megabytes: int
    """Approximate size, for people."""


@dataclass(frozen=True)
class Source:
    """One public data set."""

    name: str
    kind: str
    """Which part of the corpora it can be: pairs, text or evaluation."""
    files: tuple[RemoteFile, ...]
    licence: str
    citation: str
    counts: Mapping[str, int] = field(default_factory=dict)
    """Public row counts by metric name."""


_KARPATHY = RemoteFile(
    "caption_datasets.zip",
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    36,
)
_SPLITS = "Karpathy and Fei-Fei, CVPR 2015 (splits)"
_SIMCSE = "hf://datasets/princeton-nlp/datasets-for-simcse"
_SENTEVAL = RemoteFile("senteval.tar", f"{_SIMCSE}/senteval.tar", 18)
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
        name="flickr8k",
        kind="pairs",
        files=(
            _KARPATHY,
            RemoteFile(
                "Flickr8k_Dataset.zip",
                "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/Flickr8k_Dataset.zip",
                1116,
            ),
        ),
        licence="photos: Flickr's terms, research use; captions: CC BY-SA 3.0",
        citation=f"Hodosh, Young and Hockenmaier, JAIR 2013; {_SPLITS}",
        counts={
            "images": 8_000,
            "captions": 40_000,
            "train_images": 6_000,
            "val_images": 1_000,
            "test_images": 1_000,
        },
    ),
    Source(
        name="flickr30k",
        kind="pairs",
        files=(
            _KARPATHY,
            RemoteFile(
                "flickr30k-images.zip",
                "hf://datasets/nlphuji/flickr30k/flickr30k-images.zip",
                4440,
            ),
        ),
        licence="photos: Flickr's terms, research use; captions: CC BY 3.0",
        citation=f"Young et al., TACL 2014; {_SPLITS}",
        counts={
            "images": 31_014,
            "captions": 155_070,
            "train_images": 29_000,
            "val_images": 1_014,
            "test_images": 1_000,
        },
    ),
    Source(
        name="coco",
        kind="pairs",
        files=(
            _KARPATHY,
            RemoteFile("train2014.zip", "http://images.cocodataset.org/zips/train2014.zip", 13_511),
            RemoteFile("val2014.zip", "http://images.cocodataset.org/zips/val2014.zip", 6_646),
        ),
        licence="photos: Flickr's terms; captions: CC BY 4.0",
        citation=f"Lin et al., ECCV 2014; {_SPLITS}",
        counts={
            "images": 123_287,
            "captions": 616_767,
            "train_images": 113_287,
            "val_images": 5_000,
            "test_images": 5_000,
        },
    ),
    Source(
        name="wiki1m",
        kind="text",
        files=(RemoteFile("wiki1m_for_simcse.txt", f"{_SIMCSE}/wiki1m_for_simcse.txt", 121),),
        licence="CC BY-SA 3.0 (Wikipedia)",
        citation="Gao, Yao and Chen, EMNLP 2021 (SimCSE)",
        counts={"sentences": 1_000_000},
    ),
    Source(
        name="senteval",
        kind="evaluation",
        files=(_SENTEVAL,),
        licence=_SENTEVAL_LICENCE,
        citation=_SENTEVAL_CITATION,
        counts=_SENTEVAL_COUNTS,
    ),
    Source(
        name="mteb",
        kind="evaluation",
        files=(
            _SENTEVAL,
            RemoteFile(
                "Stsbenchmark.tar.gz",
                "http://ixa2.si.ehu.eus/stswiki/images/4/48/Stsbenchmark.tar.gz",
                1,
            ),
        ),
        licence=_SENTEVAL_LICENCE,
        citation=f"{_SENTEVAL_CITATION}; Cer et al., SemEval 2017 (STS-B)",
        counts=_SENTEVAL_COUNTS | {"sts_b_cased": _STSB_PAIRS},
    ),
)

BY_NAME: Mapping[str, Source] = {source.name: source for source in SOURCES}

SCENES = "scenes"
"""The embedded world; it is rendered, not fetched."""

OWN_DATA = (
    Source(
        name="folder",
        kind="pairs",
        files=(),
        licence="as its owner states",
        citation="a folder of images and a table of captions (download.folder)",
    ),
    Source(
        name="webdataset",
        kind="pairs",
        files=(),
        licence="as its owner states",
        citation="tar shards as img2dataset writes them (download.webdataset)",
    ),
    Source(
        name="hub",
        kind="pairs",
        files=(),
        licence="as its page on the hub states",
        citation="a data set of the Hugging Face hub (download.hub)",
    ),
)
"""Pairs of one's own: what they are follows from the params."""

OWN_KINDS: Mapping[str, Source] = {source.name: source for source in OWN_DATA}
