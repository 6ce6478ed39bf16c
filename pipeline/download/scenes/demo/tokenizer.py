"""The WordPiece vocabulary that the demo's teacher and student share.

It holds every word of the embedded world, and all ASCII letters, digits and punctuation marks
as pieces, so that any English text is spelt out where its words are not known.
"""

import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertTokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The first tokens of the vocabulary, in this order."""

LONGEST = 256
"""Most tokens of a text, as the student's positions allow."""

_LETTERS = string.ascii_lowercase + string.digits


def build_tokenizer(sentences: Iterable[str]) -> BertTokenizer:
    """Build the tokenizer with every word of `sentences`; their order does not matter."""
    normalizer, splitter = BertNormalizer(), BertPreTokenizer()
    words = {
        word
        for sentence in sentences
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(sentence))
    }
    return BertTokenizer(_vocabulary(words), model_max_length=LONGEST)


def _vocabulary(words: set[str]) -> dict[str, int]:
    pieces = [*_LETTERS, *string.punctuation, *(f"##{letter}" for letter in _LETTERS)]
    names = [*SPECIALS, *pieces, *sorted(words.difference(pieces))]
    return {name: index for index, name in enumerate(names)}


def save_tokenizer(tokenizer: BertTokenizer, folder: Path) -> None:
    """Write the tokenizer's files, without the padding and truncation of its last use."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
