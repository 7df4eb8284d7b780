"""What the long-video job keeps: its keys, and how a stage is read from the disk, waited for or computed.

A key is a digest of everything that changes a stage's result. If something on a model cannot be identified there is no key: the
stage is computed, and neither read from the disk nor kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import comfy.model_management as mm
from comfy.model_patcher import ModelPatcher

from ...core.digest import digest
from ...core.inversion import trajectory
from ...core.inversion.trajectory import Trajectory, TrajectoryError
from ...core.video.store import Store
from ..models.earlier import sampled_digest
from ..models.identity import Identity, part_of, patches_of, precision_of, weights_of

Result = TypeVar("Result")


class Models(NamedTuple):
    """The models of a job; they are not changed."""

    model: ModelPatcher
    clip_vision: Any
    vae: Any


class Key(NamedTuple):
    """name: "" if the stage cannot be identified.  earlier: what an earlier version kept it under; "" for none.

    Earlier versions did not see patches on the model, and looked at 64 values of each weight. What they kept is taken over once, by
    the first job of the same inputs, so that a job that they began goes on.
    """

    name: str
    earlier: str = ""


class Keys:
    """Keys of the stages that run on some models.

    Training sees the weights alone, patches included; sampling sees whatever else is put onto a model, too.
    """

    def __init__(self, models: Models):
        self.models = models
        parts = [weights_of(models.model), part_of(models.vae), part_of(models.clip_vision)]
        self.training = Identity(digest(*(p.digest for p in parts)), tuple(name for p in parts for name in p.unknown))
        patches = patches_of(models.model)
        self.sampling = Identity(digest(self.training.digest, patches.digest, precision_of(models.model)),
                                 (*self.training.unknown, *patches.unknown))

    def of_training(self, *parts: Any) -> Key:
        return self._key(self.training, parts, True)

    def of_sampling(self, *parts: Any, changed: bool = False) -> Key:
        """
        Args:
            changed: whether earlier versions gave another result.
        """
        return self._key(self.sampling, parts, not changed)

    def _key(self, models: Identity, parts: tuple, as_earlier: bool) -> Key:
        if models.unknown:
            return Key("")
        return Key(digest(models.digest, *parts), digest(self._sampled, *parts) if as_earlier else "")

    @cached_property
    def _sampled(self) -> str:
        models = self.models
        return digest(sampled_digest(models.model, True), models.vae.first_stage_model.state_dict(),
                      models.clip_vision.model.state_dict())

    def refusal(self) -> str:
        """The reason why something is not kept, or ""."""
        unknown = ", ".join(dict.fromkeys(self.sampling.unknown))
        kept = "nothing is taken from the disk or kept" if self.training.unknown else (
            "inversions and edits are neither taken from the disk nor kept; motion LoRAs are")
        return f"the models carry patches by other nodes that cannot be identified ({unknown}), so {kept}" if unknown else ""


class Files(Protocol):
    """How results of one kind are read and written; see Store."""

    def get(self, stage: str, key: str) -> Any: ...

    def put(self, stage: str, key: str, result: Any) -> Any: ...

    def adopt(self, stage: str, earlier: str, key: str) -> Any: ...


class Trajectories:
    """Trajectories in a store's folder; their files carry digests of their own."""

    def __init__(self, store: Store, told: Callable[[str], None]):
        self.store, self.told = store, told

    def get(self, stage: str, key: str) -> Trajectory | None:
        try:
            return trajectory.load(self.store.path(stage, key))
        except FileNotFoundError:
            return None
        except TrajectoryError as error:
            self.told(f"{error} This clip is inverted again.")
            return None

    def put(self, stage: str, key: str, result: Trajectory) -> None:
        trajectory.save(self.store.path(stage, key), result)

    def adopt(self, stage: str, earlier: str, key: str) -> Trajectory | None:
        found, path = self.get(stage, earlier), self.store.path(stage, earlier)
        if found is not None:
            path.replace(self.store.path(stage, key))
        return found


class Kept:
    """The stages' results in a folder.

    Args:
        told: told what was taken from the disk, as a line.
    """

    def __init__(self, store: Store, told: Callable[[str], None]):
        self.store, self.told = store, told

    def result(self, stage: str, key: Key, name: str, make: Callable[[], Result], files: Files | None = None,
               usable: Callable[[Result], bool] = lambda _: True) -> Result:
        """A stage's result, from the disk if it is there. If another job is making it, that is waited for.

        Args:
            name: of the result, for the report.  files: how it is kept; None for tensors by name.
            usable: tells whether what was found serves; if not, it is made again.
        """
        files = self.store if files is None else files
        if not key.name:
            return make()
        before = self.store.written(stage, key.name)
        found = self._found(stage, key, name, files, usable)
        if found is None:
            with self.store.claimed(stage, key.name, self._waiting(name)):
                if self.store.written(stage, key.name) != before:  # by another job meanwhile
                    found = self._found(stage, key, name, files, usable)
                if found is None:
                    found = make()
                    files.put(stage, key.name, found)
        return found

    @contextmanager
    def folder(self, kind: str, key: Key) -> Iterator[Path]:
        """Where a stage keeps what is done so far; a temporary one if it cannot be identified."""
        path = self.store.folder / f"{kind}-{key.name}"
        earlier = self.store.folder / f"{kind}-{key.earlier}"
        if key.name and key.earlier and earlier.is_dir() and not path.exists():
            earlier.rename(path)
        with nullcontext(path) if key.name else tempfile.TemporaryDirectory(prefix="framepainter-") as place:
            yield Path(place)

    def _found(self, stage: str, key: Key, name: str, files: Files, usable: Callable[[Any], bool]) -> Any:
        found, by = files.get(stage, key.name), ""
        if found is None and key.earlier and self.store.path(stage, key.earlier).is_file():
            found, by = files.adopt(stage, key.earlier, key.name), ", kept by an earlier version"
        if found is None:
            return None
        if not usable(found):
            self.told(f"{name} on the disk cannot be used and is made again")
            return None
        self.told(f"{name} taken from the disk{by}")
        return found

    def _waiting(self, name: str) -> Callable[[], None]:
        said: list[str] = []

        def waiting() -> None:
            if not said:
                said.append(name)
                self.told(f"{name}: another job is making it; this one waits")
            mm.throw_exception_if_processing_interrupted()

        return waiting
