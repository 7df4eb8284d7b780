"""The nodes, in wiring order: schema, unit conversion, one call down."""

from ..host.weights import folders
from . import (
         attention,
         conditioning,
         data,
         evaluation,
         injection,
         inversion,
         keeping,
         motion_lora,
         prompt,
         sampling,
         signals,
         training,
         video,
         weights,
)

folders.register()
NODES = [*weights.NODES, *conditioning.NODES, *signals.NODES, *attention.NODES, *sampling.NODES, *keeping.NODES,
         *data.NODES, *training.NODES, *evaluation.NODES,
         *inversion.NODES, *injection.NODES, *motion_lora.NODES, *video.NODES,
         *prompt.NODES]
