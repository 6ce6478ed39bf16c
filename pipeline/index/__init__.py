"""What is searched: vectors of texts and images, in files or in a Milvus database."""
