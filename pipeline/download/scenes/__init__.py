"""The embedded world: rendered pictures, captions, sentences and graded sentence pairs."""
