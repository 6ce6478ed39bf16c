"""The embedded world: rendered pictures, captions, sentences, graded pairs, transfer tasks."""
