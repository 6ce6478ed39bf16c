"""The student: its directory, its encoder and its heads."""
