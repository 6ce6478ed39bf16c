"""The parameter blocks of params.yaml, one file a block."""
