"""The nodes, in wiring order: schema, unit conversion, one call down."""

from ..host import folders
from . import (
    attention,
    attention_matching,
    conditioning,
    dataset,
    evaluation,
    inversion,
    keeping,
    motion_lora,
    sampling,
    signals,
    training,
    video,
    weights,
)

folders.register()

NODES = [*weights.NODES, *conditioning.NODES, *signals.NODES, *attention.NODES, *sampling.NODES, *keeping.NODES,
         *dataset.NODES, *training.NODES, *evaluation.NODES,
         *inversion.NODES, *attention_matching.NODES, *motion_lora.NODES, *video.NODES]
