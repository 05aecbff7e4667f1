"""Facts that a modality and its encoders share: token ids as words (hashing), the columns of a graph
(graphs)."""
