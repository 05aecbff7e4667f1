"""Evaluation with its baselines beside it: what is read and encoded, once (features), all of it for a run
(evaluation), and a file for each kind of measurement."""

from vicjoint.probes import (
    attentive,
    classify,
    detection,
    geometry,
    many_futures,
    next_frame,
    pair_match,
    regression,
    retrieval,
    rollout,
    surprise,
    zero_shot,
)
