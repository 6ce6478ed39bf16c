"""The registry of public sources: data, not code.

An `address` is a URL, or `hf://datasets/ORG/NAME@REVISION/FILE` for a file of the Hub, where the
revision may be left out. No checksum is made up: bytes and sha256 are those that others recorded,
and every file is hashed at first use and verified against that ever after (`fetch.py`). Counts are
those of the public release, to verify what the readers find.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RemoteFile:
    """One public file: its name there, its address and its approximate size."""

    name: str
    address: str
    megabytes: int
    size: int | None = None
    """Its bytes, where they are on record;"""
    sha256: str | None = None
    """and their hash."""
    fallback: "RemoteFile | None" = None
    """What serves as well, where this cannot be fetched: another address, or another file."""

    def candidates(self) -> Iterator["RemoteFile"]:
        """This file and what serves as well, in the order in which they are tried."""
        yield self
        if self.fallback is not None:
            yield from self.fallback.candidates()


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


def _file(
    address: str, megabytes: int, size: int | None = None, fallback: RemoteFile | None = None
) -> RemoteFile:
    return RemoteFile(address.rpartition("/")[2], address, megabytes, size, fallback=fallback)


def _pairs(captions: int, train: int, val: int, test: int) -> dict[str, int]:
    images = {"train_images": train, "val_images": val, "test_images": test}
    return {"images": train + val + test, "captions": captions} | images


_STANFORD = "https://cs.stanford.edu/people/karpathy/deepimagesent"
_DELPHBOY = "https://github.com/Delphboy/karpathy-splits/raw/main"
_RELEASES = "https://github.com/jbrownlee/Datasets/releases/download"
_COCO = "images.cocodataset.org/zips"
_S3 = "https://s3.amazonaws.com"
"""Amazon's own host, whose certificate is valid; that of COCO's host is not."""
_FLICKR30K = "hf://datasets/nlphuji/flickr30k@2b239befc81b6e3f035ce6bd52f5f4d60f5625f7"
_OPENFLAMINGO = "hf://datasets/openflamingo/eval_benchmark@7da41986ce0fa2864509b7585c277cde45910af5"
_SIMCSE = "hf://datasets/princeton-nlp/datasets-for-simcse"
_STSB = "ixa2.si.ehu.eus/stswiki/images/4/48/Stsbenchmark.tar.gz"


_KAGGLE = _file(
    "https://github.com/awsaf49/flickr-dataset/releases/download/v1.0/flickr8k.zip", 1113
)
"""The photos as Kaggle has them."""


def _splits(dataset: str, folder: str, megabytes: int) -> RemoteFile:
    """Karpathy's splits of all data sets in one archive, or of one as plain json elsewhere."""
    plain = _file(f"{folder}/dataset_{dataset}.json", megabytes)
    return _file(f"{_STANFORD}/caption_datasets.zip", 37, 36_745_453, plain)


def _coco(name: str, megabytes: int) -> RemoteFile:
    return _file(
        f"{_S3}/{_COCO}/{name}", megabytes, fallback=_file(f"http://{_COCO}/{name}", megabytes)
    )


_MTEB = {
    "sts12-sts": "a0d554a64d88156834ff5ae9920b964011b16384",
    "sts13-sts": "7e90230a92c190f1bf69ae9002b8cea547a64cca",
    "sts14-sts": "6031580fec1f6af667f0bd2da0a551cf4f0b2375",
    "sts15-sts": "ae752c7c21bf194d8b67fd573edf7ae58183cbe3",
    "sts16-sts": "4d8694f8f0e0100860b497b999b3dbed754a0513",
    "stsbenchmark-sts": "b0fddb56ed78048fa8b90373c8a3cfc37b684831",
    "sickr-sts": "20a6d6f312dd54037fe07a32d58e5e168867909d",
}
"""The revision of each data set that MTEB's own task reads."""
_MTEB_FILES = tuple(
    RemoteFile(
        f"{name}-{split}.jsonl.gz", f"hf://datasets/mteb/{name}@{revision}/{split}.jsonl.gz", 1
    )
    for name, revision in _MTEB.items()
    for split in (("train", "validation", "test") if name == "stsbenchmark-sts" else ("test",))
)


_COCO_FILES = (
    _splits("coco", _OPENFLAMINGO, 144),
    _coco("train2014.zip", 13_511),
    _coco("val2014.zip", 6_646),
)
_SENTEVAL = _file(f"{_SIMCSE}/senteval.tar", 18)
_SPLITS = "Karpathy and Fei-Fei, CVPR 2015 (splits)"
_COCO_LICENCE = "photos: Flickr's terms; captions: CC BY 4.0"
_SENTEVAL_LICENCE = "STS: CC BY-SA 4.0; SICK: CC BY-NC-SA 3.0; transfer tasks: research use"
_SENTEVAL_CITATION = "Conneau and Kiela, LREC 2018 (SentEval)"
_STSB_PAIRS = 5_749 + 1_500 + 1_379
_YEARS_COUNTS = {"sts12": 3_108, "sts13": 1_500, "sts14": 3_750, "sts15": 3_000, "sts16": 1_186}
_SICK_PAIRS = 4_500 + 500 + 4_927
_SENTEVAL_COUNTS = _YEARS_COUNTS | {
    "sts_b": _STSB_PAIRS,
    "sick_r": _SICK_PAIRS,
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
        (
            _splits("flickr8k", _DELPHBOY, 9),
            _file(f"{_RELEASES}/Flickr8k/Flickr8k_Dataset.zip", 1116, 1_115_419_746, _KAGGLE),
        ),
        licence="photos: Flickr's terms, research use; captions: CC BY-SA 3.0",
        citation=f"Hodosh, Young and Hockenmaier, JAIR 2013; {_SPLITS}",
        counts=_pairs(40_000, 6_000, 1_000, 1_000),
    ),
    Source(
        "flickr30k",
        "pairs",
        (
            _splits("flickr30k", _OPENFLAMINGO, 38),
            RemoteFile(
                "flickr30k-images.zip",
                f"{_FLICKR30K}/flickr30k-images.zip",
                megabytes=4390,
                size=4_390_240_817,
                sha256="f78a015e45ea38d4367367223b2bb63cec0d549d5da13c6211663e5439a93216",
            ),
        ),
        licence="photos: Flickr's terms, research use; captions: CC BY 3.0",
        citation=f"Young et al., TACL 2014; {_SPLITS}",
        counts=_pairs(155_070, 29_000, 1_014, 1_000),
    ),
    Source(
        "coco",
        "pairs",
        _COCO_FILES,
        licence=_COCO_LICENCE,
        citation=f"Lin et al., ECCV 2014; {_SPLITS}",
        counts=_pairs(616_767, 113_287, 5_000, 5_000),
    ),
    Source(
        "coco-train2014",
        "pairs",
        _COCO_FILES,
        licence=_COCO_LICENCE,
        citation=f"Lin et al., ECCV 2014; {_SPLITS}, of which `restval` is left out",
        counts=_pairs(464_133, 82_783, 5_000, 5_000),
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
        (_SENTEVAL, _file(f"https://{_STSB}", 1, fallback=_file(f"http://{_STSB}", 1))),
        licence=_SENTEVAL_LICENCE,
        citation=f"{_SENTEVAL_CITATION}; Cer et al., SemEval 2017 (STS-B)",
        counts=_SENTEVAL_COUNTS | {"sts_b_cased": _STSB_PAIRS},
    ),
    Source(
        "mteb-sts",
        "evaluation",
        _MTEB_FILES,
        licence="STS: CC BY-SA 4.0; SICK: CC BY-NC-SA 3.0",
        citation="Muennighoff et al., EACL 2023 (MTEB)",
        counts=_YEARS_COUNTS | {"sts_b_cased": _STSB_PAIRS, "sick_r": _SICK_PAIRS},
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
