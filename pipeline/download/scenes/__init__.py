"""The embedded world: rendered pictures, captions, sentences, sentence pairs, transfer tasks."""
