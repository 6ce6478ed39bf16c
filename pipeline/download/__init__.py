"""Corpora: fetching, reading and the tables they become."""
