"""The pipeline, broken on purpose: every fault ends in the right result or in one clear line."""
