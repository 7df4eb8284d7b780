"""Tuning on a video as the node needs it: one run folder, a saved result, a loss curve, a report."""

from __future__ import annotations

from pathlib import Path

from ...core.digest import digest
from ...core.finite import not_finite
from ...core.training.one_shot.presets import OneShotSettings
from ...core.weights.tuned_video import TunedFileError, TunedVideo
from ..attention.inflated import Settings
from ..weights.tuned_video import base_of, on_model, read, save
from .one_shot import OneShotInputs, identity_of, run
from .progress import NodeResult, Progress, finished_or_run
from .run import RunCallbacks, RunResult

FILE = "tuned_video.safetensors"


def tune(inputs: OneShotInputs, settings: OneShotSettings, runs: Path, layers: Settings) -> NodeResult:
    """Tune on a video, or return the finished result of a run with the same inputs. A cancelled or killed run resumes.

    Args:
        runs: folder of all runs; a run's own is named after a digest of model, video, prompt and settings.
        layers: of the model that comes out.

    Raises:
        WrongModel, StateError: see there.
        NonFinite: the last good state is kept.
    """
    folder = runs / key(inputs, settings)
    progress = Progress(folder, settings.steps)

    def made(callbacks: RunCallbacks) -> tuple[TunedVideo, RunResult]:
        result = run(inputs, settings, folder, callbacks)
        return TunedVideo(result.tensors, base_of(inputs.model), settings.seed, settings.random_bias), result

    tuned, report = finished_or_run(progress, folder / FILE, kept_tuned, made, lambda file, value: save(file, value, "fp32"))
    return NodeResult(on_model(inputs.model, tuned, layers), tuned, progress.curve(), progress.last_preview(), report)


def kept_tuned(file: Path) -> TunedVideo:
    """The result that a run with the same inputs has saved.

    Raises:
        TunedFileError: it is damaged, or holds inf or NaN.
    """
    tuned = read(file)
    if not_finite(tuned.tensors):
        raise TunedFileError(f"'{file}' holds inf or NaN")
    return tuned


def key(inputs: OneShotInputs, settings: OneShotSettings) -> str:
    """A digest of everything that decides the result, for the names of run folders."""
    return digest(identity_of(inputs, settings), settings.steps, settings.learning_rate, settings.seed, settings.clip)
