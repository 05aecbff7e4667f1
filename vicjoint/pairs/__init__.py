"""Pairs: from one record of a source to the raw views of both branches.

A pair class gives `sample(record, rng) -> (a, b)`, both with a leading dimension of
`samples_per_record` (several windows of one video); all randomness comes from `rng`, so a sample is a
function of (seed, epoch, index) alone.
"""

from vicjoint.pairs import augment, cross_modal, next_frame
