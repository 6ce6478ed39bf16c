"""The embedded teacher and student, and how they are rebuilt."""
