"""What the demo's teacher and student share: a WordPiece vocabulary, and small files of weights.

The vocabulary holds every word of the embedded world, and all ASCII letters, digits and punctuation
marks as pieces, so that any English text is spelt out where its words are not known.
"""

import string
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor
from transformers import BertTokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The first tokens of the vocabulary, in this order."""
LONGEST = 256
"""Most tokens of a text, as the student's positions allow."""


def build_tokenizer(sentences: Iterable[str]) -> BertTokenizer:
    """Build the tokenizer with every word of `sentences`; their order does not matter."""
    normalizer, splitter = BertNormalizer(), BertPreTokenizer()
    words = {
        word
        for sentence in sentences
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(sentence))
    }
    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *string.punctuation, *(f"##{letter}" for letter in letters)]
    names = [*SPECIALS, *pieces, *sorted(words.difference(pieces))]
    vocabulary = {name: index for index, name in enumerate(names)}
    return BertTokenizer(vocabulary, model_max_length=LONGEST)


def save_tokenizer(tokenizer: BertTokenizer, folder: Path) -> None:
    """Write the tokenizer's files, without the padding and truncation of its last use."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)


def save_half(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights as safetensors, floating-point ones as float16; integers stay as they are."""
    halved = {
        name: (weight.half() if weight.is_floating_point() else weight).contiguous()
        for name, weight in weights.items()
    }
    save_file(halved, path, metadata={"format": "pt"})
