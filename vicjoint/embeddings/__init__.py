"""Embeddings of many items: how they are kept in a file, compared, and looked at."""
