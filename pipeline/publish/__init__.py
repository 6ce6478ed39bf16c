"""A student as others receive it: the folder, its card, its provenance."""
