"""Replay decoding steps on a GPU: record one as a CUDA graph, and say why where that cannot be.

A step launches more than a thousand kernels, each of which the host asks for; replayed, the device
has them all at once. A graph reads and writes the very memory it was recorded with, and is of one
shape: rows of the batch, and positions that they see.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from kit.errors import ModelError, first_line, is_out_of_memory

log = logging.getLogger(__name__)

Shape = tuple[int, int]


class Replay:
    """How a base decodes: `said` in words, once it has; an obstacle is met once and remembered."""

    def __init__(self, obstacle: str = "") -> None:
        self.said = ""
        self.obstacle = obstacle

    def give_up(self, error: Exception) -> None:
        """Launch kernels one by one from now on."""
        self.obstacle = f"a step could not be recorded ({first_line(error)})"
        log.warning("decoding without CUDA graphs, which is slower: %s", self.obstacle)

    def player(self, device: torch.device, *, asked: bool, cache_stays: bool) -> Player:
        """What takes the steps of one batch."""
        if device.type != "cuda":
            self.said = "each step is called: there is no GPU"
            return Player()
        reason = "" if asked else "rollout.cuda_graph=false"
        reason = reason or ("" if cache_stays else "the model's attention has a cache that grows")
        reason = reason or self.obstacle
        self.said = f"each step is called: {reason}" if reason else "steps are replayed"
        return Player() if reason else ReplayingPlayer(self)


class Player:
    """Takes each step by calling it."""

    def play(self, step: Callable[[], None], shape: Shape) -> None:
        step()


class ReplayingPlayer(Player):
    """Takes the first step of a shape by calling it, records the second, and replays that."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.shape: Shape | None = None
        self.graph: Any = None
        self.has_room = True

    def play(self, step: Callable[[], None], shape: Shape) -> None:
        if self.replay.obstacle or not self.has_room:
            step()
        elif shape != self.shape:
            self.shape, self.graph = shape, None
            step()  # it loads the kernels, which may not happen while one is recorded
        else:
            self._replay(step)

    def _replay(self, step: Callable[[], None]) -> None:
        try:
            self.graph = self.graph or record(step)
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                self.has_room = False  # a smaller batch may be recorded
                log.warning("no memory for CUDA graphs of a batch, which is decoded without")
            else:
                self.replay.give_up(error)
                self.replay.said = f"each step is called: {self.replay.obstacle}"
            step()
        else:
            self.graph.replay()


def record(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A graph of the kernels that a step launches, none of which runs.

    One that fails leaves the allocator as it was; ModelError where it cannot.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        # a recording that fails leaves its own stream the current one
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            step()
    except RuntimeError:
        _close(pool)
        raise
    return graph


def _close(pool: Any) -> None:
    """End what the allocator does for a recording that failed.

    Before torch 2.12 what the driver refuses to record stays open there (pytorch/pytorch#180395),
    and from then on it fails whenever it should give memory back.
    """
    torch.cuda.synchronize()
    try:
        torch.cuda.empty_cache()  # which is refused where it is open
    except RuntimeError:
        try:
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            torch.cuda.empty_cache()
        except (AttributeError, RuntimeError) as error:
            raise ModelError(
                "a step could not be recorded as a CUDA graph, after which torch "
                f"{torch.__version__} cannot manage the GPU's memory any more "
                f"({first_line(error)}); the same command goes on with rollout.cuda_graph=false, "
                "or with torch 2.12 or newer"
            ) from error
