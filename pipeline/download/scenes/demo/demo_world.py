"""The size of the embedded world that the demo's models were made for: that of params.yaml."""

from pipeline.params.download import ScenesParams

WORLD = ScenesParams(images=4600, captions_per_image=5, sentences=10_000, sts_pairs=3000, seed=0)
