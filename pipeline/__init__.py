"""KDMCSE: sentence embeddings distilled from a frozen CLIP teacher."""
