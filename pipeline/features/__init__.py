"""Teacher features: computed once, cached by content."""
