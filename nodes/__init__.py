"""The nodes, in wiring order: schema, unit conversion, one call to the tier below."""

from ..host.attention import word_chips
from ..host.inputs import frame_route, picture_route
from ..host.weights import folders
from . import (
    attention,
    carry,
    conditioning,
    data,
    evaluation,
    injection,
    inputs,
    inversion,
    keeping,
    motion_lora,
    prompt,
    sampling,
    signals,
    training,
    video,
    video_text,
    weights,
)
from .schema import guarded

folders.register()
picture_route.register()
frame_route.register()
word_chips.register()
STAGES = (inputs, weights, conditioning, signals, attention, sampling, keeping, data, training, evaluation, inversion, injection,
          motion_lora, video, carry, video_text, prompt)
NODES = [guarded(node) for stage in STAGES for node in stage.NODES]
