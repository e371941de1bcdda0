"""Work handed to a GPU without waiting for it: captured passes, and uploads from pinned memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Capture:
    """CUDA graphs that share one side stream and one pool of memory: they never run at the same time."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()

    def captured(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """What replays `compute`: its inputs are tensors that stay where they are, and so is the result."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = compute()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on a device. From pageable memory an upload would wait for all that the GPU has to do; from
    pinned memory it takes its turn there, and the host goes on."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
