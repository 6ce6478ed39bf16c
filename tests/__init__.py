"""Tests, one folder a room; no hub is asked and one thread computes, from the first import on."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # sums have one order everywhere
