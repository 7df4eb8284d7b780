"""Modules at dotted paths, so that a state dict of additions reads like that of the network they belong to."""

from __future__ import annotations

from torch import nn


def put_at(root: nn.Module, path: str, module: nn.Module) -> None:
    """Add a module under a dotted path; missing parents are created."""
    *folders, leaf = path.split(".")
    for folder in folders:
        if folder not in root._modules:
            root.add_module(folder, nn.Module())
        root = root._modules[folder]
    root.add_module(leaf, module)
