"""What mteb calls the tasks and data that it has too."""

from collections.abc import Mapping

from pipeline.params.evaluate import Retrieval

STS_NAMES: Mapping[str, str] = {
    **{name: name for name in ("STS12", "STS13", "STS14", "STS15", "STS16", "SICK-R")},
    "STS-B": "STSBenchmark",
}
"""Its STS tasks by our names."""
RETRIEVAL_NAMES: Mapping[Retrieval, Mapping[str, str]] = {
    "karpathy": {},
    "mieb-flickr30k": {
        "text_to_image": "Flickr30kT2IRetrieval",
        "image_to_text": "Flickr30kI2TRetrieval",
    },
    "mieb-coco": {"text_to_image": "MSCOCOT2IRetrieval", "image_to_text": "MSCOCOI2TRetrieval"},
}
"""Its retrieval tasks by convention and direction."""
