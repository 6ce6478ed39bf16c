"""A student as others get it: the folder, its card, its provenance."""
