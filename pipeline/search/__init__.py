"""Queries over an index, and the page and API that serve them."""
