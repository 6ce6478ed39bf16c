"""Tests, one folder a room; no hub is asked, from the first import on."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
