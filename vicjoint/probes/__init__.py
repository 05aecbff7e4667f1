"""Evaluation with its baselines beside it. A probe is called as `probe(model, untrained, source, pair,
device)` and yields (name, value): "row/metric" and a number, or "pictures" and the arrays that the report
shows."""

from vicjoint.probes import classify, many_futures, next_frame, pair_match, regression, retrieval, zero_shot
