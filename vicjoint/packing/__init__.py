"""Shards from any source: what becomes of a record (members), videos made anew (films), the tar files with
their index and manifest (folder), and the way from one to the other (work)."""
