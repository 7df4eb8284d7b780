"""The nodes, in wiring order: schema, unit conversion, one call down."""

from ..host import folders
from . import attention, conditioning, dataset, evaluation, sampling, signals, training, weights

folders.register()

NODES = [*weights.NODES, *conditioning.NODES, *signals.NODES, *attention.NODES, *sampling.NODES,
         *dataset.NODES, *training.NODES, *evaluation.NODES]
