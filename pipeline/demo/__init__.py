"""The small models of the embedded world, trained once and kept with the project."""
