"""The contracts between parts: what a source, a modality, a pair, an objective, a predictor and a probe are.

Inherit, override what differs, register; every default stands here. Two halves meet only in a batch.
*Reading* (source, pair, the modality's `read`) goes from a record to raw views, on CPUs, and knows nothing of
models. *Learning* (the modality's `forward`, encoder, predictor, objective) goes from raw views to a loss,
and knows nothing of files. A probe sees what both of them give: arrays.

    from vicjoint.parts import Modality, Pair, Probe, Source
    from vicjoint import register

    @register("modality", "temperature")
    class Temperature(Modality):
        reads = "text"

        def read(self, value, rng=None, window=None):
            return torch.tensor([[float(value)]])
"""

from vicjoint.parts.evaluation import EvaluationData, Features, Metric, Probe
from vicjoint.parts.learning import Objective, Predictor
from vicjoint.parts.reading import Gives, Modality, Pair, Raw, Reading, Record, Source, View
from vicjoint.wants import Items, Side, Space, Split, Spread, Want
