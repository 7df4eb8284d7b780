"""Several processes that train one network: each computes its share of a step's batches, gradients are averaged.

Started by `torchrun` or `accelerate launch`, which give each process its place through RANK, WORLD_SIZE and LOCAL_RANK. Batch m of
process r in a run of P processes is drawn as batch m * P + r of a single process, so 2 processes with one batch each make the
step that one process makes with two accumulated ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .loop import BatchLoss, step_generator


@dataclass(frozen=True)
class Processes:
    """This process's place: rank of count, and its number on this machine."""

    rank: int = 0
    count: int = 1
    local: int = 0


def join(device_type: str) -> Processes:
    """Join the other processes if a launcher started this one; "cpu" talks by gloo, "cuda" by nccl."""
    places = Processes(*(int(os.environ.get(name, default)) for name, default in
                         (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))
    if places.count > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return places


def leave() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait(places: Processes) -> None:
    """Wait until every process is here."""
    if places.count > 1:
        dist.barrier()


def any_asks(flag: bool, places: Processes, device: torch.device | str = "cpu") -> bool:
    """Whether any process raised its flag, so that all of them stop at the same step."""
    if places.count == 1:
        return flag
    told = torch.tensor([float(flag)], device=device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told.item())


def distribute(network: nn.Module, places: Processes, blocks: Iterable[nn.Module] = (), sharded: bool = False) -> nn.Module:
    """The module to call in place of the network.

    Args:
        blocks: modules whose weights are gathered together, in the order they run; for `sharded`.
        sharded: keep a part of the weights, gradients and moments in each process (FSDP) instead of all in each (DDP).
    """
    if places.count == 1:
        return network
    if not sharded:
        return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = next(network.parameters()).device.type
    mesh = init_device_mesh(kind, (places.count,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def shared(loss: BatchLoss, call: nn.Module, accumulate: int, seed: int, places: Processes) -> BatchLoss:
    """A batch's loss as one of several processes computes it; for a single process the loss as it is.

    Args:
        loss: of one process.
        call: what `distribute` returned; told when the gradients of a step are complete.
        accumulate: batches a step in each process.
    """
    if places.count == 1:
        return loss

    def one(step: int, micro: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        last = micro == accumulate - 1
        if hasattr(call, "set_requires_gradient_sync"):  # FSDP
            call.set_requires_gradient_sync(last)
        elif isinstance(call, nn.parallel.DistributedDataParallel):
            call.require_backward_grad_sync = last
        return _mean(dict(loss(step, micro, step_generator(seed, step, micro * places.count + places.rank))), places)

    return one


def _mean(out: dict[str, Tensor], places: Processes) -> dict[str, Tensor]:
    """The same losses and gradients, but the numbers are the means over all processes."""
    numbers = torch.stack([value.detach().float() for value in out.values()])
    dist.all_reduce(numbers)
    means = dict(zip(out, numbers / places.count, strict=True))
    return {name: value + (means[name] - value).detach() if name == "loss" else means[name] for name, value in out.items()}
