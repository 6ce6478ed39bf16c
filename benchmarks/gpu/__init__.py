"""On a GPU: one command that measures everything the documentation claims or leaves open.

    python -m benchmarks.gpu --out DIR [--minutes 8] [--only training,features] [--tiny] [--profile]
    python -m benchmarks.gpu --docs DIR

The first writes DIR/gpu.json, anew after every single measurement; the second fills the tables of
docs/gpu.md from it. No network, data set or download is needed: models have random weights, texts
and pictures are made up. Parts run one after another, the most important first, each in a process
of its own with its own time limit; what a part leaves of its time goes to those behind it. A
measurement whose packages are missing is skipped and named, one that fails is named with its
reason, and all others go on. `--tiny` runs everything in small, on a CPU too.
"""
