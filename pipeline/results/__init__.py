"""Scores over seeds and configurations: summaries, comparisons, tables, grids."""
