"""Procedural clips whose motion is known exactly: textured sprites moving over a still, smooth background.

For tests, for measuring extracted signals against the truth, and for training small models. Several sprites, each with
its own shape, texture, path, rotation and scaling; later sprites occlude earlier ones; the camera stands still.

Legend: B scenes, N sprites, T frames, H W pixels. Scene coordinates are (x, y), square, 0 in the picture's middle, 1 at
the nearer pair of borders. Flow is (dx, dy) in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SceneSettings:
    """Ranges that scenes are drawn from; lengths in scene units (half the shorter side)."""

    height: int = 32                                # Pixels.
    width: int = 32
    sprites: tuple[int, int] = (1, 2)               # Fewest and most sprites of a scene.
    radius: tuple[float, float] = (0.25, 0.45)
    shift: tuple[float, float] = (0.2, 0.55)        # Length of the path over the whole clip.
    turn: float = 26.0                              # Largest rotation over the clip, degrees either way.
    growth: float = 0.15                            # Largest change of scale over the clip, either way.
    texture: int = 4                                # Texture cells across a sprite.
    contrast: float = 0.5                           # Standard deviation of the texture around the sprite's colour.


class Scenes(NamedTuple):
    """Everything that makes B scenes. A sprite that a scene does not have is `present` False."""

    present: Tensor     # (B, N) bool
    centre: Tensor      # (B, N, T, 2)
    angle: Tensor       # (B, N, T) radians
    scale: Tensor       # (B, N, T)
    radius: Tensor      # (B, N)
    exponent: Tensor    # (B, N) of the superellipse: 2 a disc, large a square
    texture: Tensor     # (B, N, 3, k, k) in [0, 1]
    background: Tensor  # (B, 3, H, W) in [0, 1]


class Correspondence(NamedTuple):
    """Where each target pixel comes from.

    flow: (B, 2, H, W) displacement from the target pixel to its place in the source.
    visible: (B, H, W) whether that place shows the same object in the source and lies inside the picture.
    owner: (B, H, W) the sprite that the target pixel shows, counted from 1; 0 is background.
    """

    flow: Tensor
    visible: Tensor
    owner: Tensor


def draw_scenes(count: int, frames: int, settings: SceneSettings, generator: torch.Generator) -> Scenes:
    """Draw B = count scenes of T = frames frames. Same generator state, same scenes."""
    most = settings.sprites[1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    number = torch.randint(settings.sprites[0], most + 1, (count, 1), generator=generator)
    reach = torch.tensor([settings.width, settings.height]) / min(settings.width, settings.height)
    length = uniform(*settings.shift, count, most, 1, 1)
    heading = uniform(0, 2 * math.pi, count, most, 1)
    step = length * torch.stack([heading.cos(), heading.sin()], -1)  # (B, N, 1, 2)
    middle = uniform(-0.55, 0.55, count, most, 1, 2) * reach
    time = torch.linspace(-0.5, 0.5, frames) if frames > 1 else torch.zeros(1)
    turn = math.radians(settings.turn)
    colour = torch.rand(count, most, 3, 1, 1, generator=generator)
    noise = torch.randn(count, most, 3, settings.texture, settings.texture, generator=generator)
    square = torch.rand(count, most, generator=generator) < 0.5
    return Scenes(
        present=torch.arange(most)[None] < number,
        centre=middle + step * time[:, None],
        angle=uniform(0, 2 * math.pi, count, most, 1) + uniform(-turn, turn, count, most, 1) * time,
        scale=1 + uniform(-settings.growth, settings.growth, count, most, 1) * time,
        radius=uniform(*settings.radius, count, most),
        exponent=torch.where(square, 10.0, 2.0),
        texture=(colour + settings.contrast * noise).clamp(0, 1),
        background=_background(count, settings, generator),
    )


def _background(count: int, settings: SceneSettings, generator: torch.Generator) -> Tensor:
    """Three slow waves a channel around a random colour: (B, 3, H, W)."""
    x, y = _pixel_centres(settings.height, settings.width).unbind(-1)
    frequency = torch.randn(count, 3, 3, 2, 1, 1, generator=generator) * 1.2
    phase = torch.rand(count, 3, 3, 1, 1, generator=generator) * 2 * math.pi
    waves = torch.cos(frequency[:, :, :, 0] * x + frequency[:, :, :, 1] * y + phase).sum(2)
    return (0.25 + 0.5 * torch.rand(count, 3, 1, 1, generator=generator) + 0.08 * waves).clamp(0, 1)


def _pixel_centres(height: int, width: int) -> Tensor:
    """Scene coordinates of all pixel centres, (H, W, 2) as (x, y)."""
    half = min(height, width) / 2
    y, x = torch.meshgrid((torch.arange(height) + 0.5 - height / 2) / half, (torch.arange(width) + 0.5 - width / 2) / half,
                          indexing="ij")
    return torch.stack([x, y], -1)


def _rotate(points: Tensor, angle: Tensor) -> Tensor:
    """Rotate (..., 2) by angles (...)."""
    x, y = points.unbind(-1)
    return torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], -1)


def _into_sprites(scenes: Scenes, points: Tensor, frame: int) -> Tensor:
    """Scene points (B, ..., 2) in each sprite's own coordinates at a frame: (B, N, ..., 2), its edge at distance 1."""
    shape = (*scenes.radius.shape, *[1] * (points.ndim - 2))
    local = points[:, None] - scenes.centre[:, :, frame].reshape(*shape, 2)
    local = _rotate(local, -scenes.angle[:, :, frame].reshape(shape))
    return local / (scenes.scale[:, :, frame] * scenes.radius).reshape(*shape, 1)


def _edge_distance(scenes: Scenes, local: Tensor) -> Tensor:
    """1 on a sprite's edge, less inside: (B, N, ..., 2) -> (B, N, ...). Infinite for sprites that are not there."""
    shape = (*scenes.radius.shape, *[1] * (local.ndim - 3))
    power = scenes.exponent.reshape(shape)
    distance = (local.abs() ** power[..., None]).sum(-1) ** (1 / power)
    return distance.masked_fill(~scenes.present.reshape(shape), math.inf)


def render(scenes: Scenes) -> Tensor:
    """Render all frames: (B, T, 3, H, W) in [0, 1], edges one pixel soft."""
    count, most = scenes.radius.shape
    height, width = scenes.background.shape[-2:]
    points = _pixel_centres(height, width).expand(count, -1, -1, -1)
    half = min(height, width) / 2
    frames = []
    for frame in range(scenes.centre.shape[2]):
        local = _into_sprites(scenes, points, frame)  # (B, N, H, W, 2)
        size = (scenes.scale[:, :, frame] * scenes.radius)[..., None, None] * half  # pixels
        cover = ((1 - _edge_distance(scenes, local)) * size + 0.5).clamp(0, 1)
        picture = scenes.background
        for n in range(most):
            skin = F.grid_sample(scenes.texture[:, n], local[:, n], mode="bilinear", padding_mode="border",
                                 align_corners=True)
            picture = torch.lerp(picture, skin, cover[:, n, None])
        frames.append(picture)
    return torch.stack(frames, 1)


def _front(inside: Tensor) -> Tensor:
    """The frontmost sprite at each place, counted from 1, 0 for none: (B, N, ...) bool -> (B, ...)."""
    number = torch.arange(1, inside.shape[1] + 1).reshape(1, -1, *[1] * (inside.ndim - 2))
    return (inside * number).amax(1)


def correspondence(scenes: Scenes, source: int, target: int) -> Correspondence:
    """The exact correspondence from a target frame to a source frame."""
    count = scenes.radius.shape[0]
    height, width = scenes.background.shape[-2:]
    half = min(height, width) / 2
    points = _pixel_centres(height, width).expand(count, -1, -1, -1)
    local = _into_sprites(scenes, points, target)  # (B, N, H, W, 2)
    owner = _front(_edge_distance(scenes, local) <= 1)
    # Each sprite's points, carried by its own motion into the source; then every pixel takes its owner's.
    shape = (*scenes.radius.shape, 1, 1)
    carried = local * (scenes.scale[:, :, source] * scenes.radius).reshape(*shape, 1)
    carried = _rotate(carried, scenes.angle[:, :, source].reshape(shape)) + scenes.centre[:, :, source].reshape(*shape, 2)
    places = torch.cat([points[:, None], carried], 1)  # (B, 1 + N, H, W, 2), the background first
    origin = places.gather(1, owner[:, None, ..., None].expand(-1, 1, -1, -1, 2))[:, 0]
    shown = _front(_edge_distance(scenes, _into_sprites(scenes, origin, source)) <= 1 + 1e-4)
    limit = torch.tensor([width, height]) / 2 / half
    visible = (shown == owner) & (origin.abs() <= limit).all(-1)
    return Correspondence(((origin - points) * half).movedim(-1, 1), visible, owner)
