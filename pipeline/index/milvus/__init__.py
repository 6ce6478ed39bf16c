"""The index in a Milvus server."""
