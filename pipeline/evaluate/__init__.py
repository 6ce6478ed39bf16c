"""Scores of a sentence encoder."""
