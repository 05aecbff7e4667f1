"""Embeddings of files and texts: which items there are, how they are read and encoded, the file that keeps
them."""
