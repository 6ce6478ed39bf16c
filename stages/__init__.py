"""One typer command a step of the pipeline."""
