"""One video over several processes, as torchrun starts them: the first runs the command, all make the chunks.

Every process has the whole model, and carries out the same plan with the same noise. The first alone encodes
prompts, decodes, writes, prints and hears Ctrl-C; it tells the others which model to load and which video to
make.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from qvg_cli.config.schema import RunConfig
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.rollout import ChunkResult
from qvg_cli.engine.suggestions import check_processes
from qvg_cli.environment import Launch, find_launch
from qvg_cli.errors import NoAnswerError, QvgError, UsageError, is_out_of_memory
from qvg_cli.models.decoder import Decoder, Pixels, WrappedDecoder
from qvg_cli.models.parallel import CfgGroup, Rows, SequenceGroup, Tokens
from qvg_cli.models.registry import family_of
from qvg_cli.planning.chunks import ChunkPlan
from qvg_cli.planning.ledger import join as join_samples

_FOREVER = timedelta(days=7)
"""The others wait while the first downloads or writes."""
_EXCHANGE_TIMEOUT = timedelta(minutes=10)
"""No exchange inside a model call takes as long: another process hangs."""


@dataclass
class Parallel:
    """This process among those of one video.

    Attributes:
        control: Carries what the first, of rank 0, tells the others, in CPU memory.
        is_amid: Whether the others make a video that is not at its end.
    """

    rank: int
    device: torch.device
    control: dist.ProcessGroup
    tokens: Tokens
    rows: Rows
    is_amid: bool = False

    def begin(self, video: Planned) -> None:
        """Let the others begin `video` too; `QvgError` if they wait in another, as exchanges would mix."""
        if self.is_amid:
            raise QvgError(
                "the other processes are still waiting in a video that was not finished",
                hint="start the command again",
            )
        self.is_amid = True
        self.share(("video", video))

    def make(self, results: Iterator[ChunkResult]) -> Iterator[ChunkResult]:
        """`results` with the memory of all; another video may begin after the last."""
        while True:
            with answered():
                if (result := next(results, None)) is None:
                    break
                samples: list[Any] = [None] * dist.get_world_size()
                dist.all_gather_object(samples, result.memory)
            yield replace(result, memory=join_samples(samples))
        self.is_amid = False

    def share(self, message: Any) -> Any:
        """What the first process has; the others give anything, and all may meet a `NoAnswerError`."""
        messages = [message]
        with answered():
            dist.broadcast_object_list(messages, src=0, group=self.control)
        return messages[0]

    def share_tensors(self, tensors: Any) -> Any:
        """Tensors of the first process, in any container of `torch.utils._pytree`, on the device of each."""
        on_cpu = torch.utils._pytree.tree_map_only(Tensor, Tensor.cpu, tensors)
        return torch.utils._pytree.tree_map_only(
            Tensor, lambda tensor: tensor.to(self.device), self.share(on_cpu)
        )


@contextmanager
def answered() -> Iterator[None]:
    """Tell in one line, by a `NoAnswerError`, that an exchange in the block has failed."""
    try:
        yield
    except RuntimeError as error:
        first, *_ = str(error).splitlines() or [""]
        is_exchange = isinstance(error, dist.DistError) or "gloo" in first or "process group" in first
        if not is_exchange or is_out_of_memory(error):
            raise
        what = f"the exchange with other processes failed: {first}"
        if "imed out" in first or "imeout" in first:
            seconds = _EXCHANGE_TIMEOUT.total_seconds()
            what = f"another process has not answered for {seconds:.0f} s, so that all end"
        elif "peer" in first:
            what = "another process has ended, so that all end"
        raise NoAnswerError(what, hint="what that process said, if anything, stands above") from error


def start(config: RunConfig, device: torch.device) -> Parallel | None:
    """Let the others load the model too; `None` without others, `UsageError` if they cannot share it."""
    launch = find_launch()
    check_processes(config, launch.num_processes)
    if launch.num_processes == 1:
        return None
    if device.type == "cuda" and torch.cuda.device_count() < launch.num_local:
        raise UsageError(
            f"{launch.num_local} processes need as many GPUs; this machine has {torch.cuda.device_count()}",
            hint="start fewer processes",
        )
    control = connect(launch)
    dist.broadcast_object_list([("load", (config, device.type))], src=0, group=control)
    return join(config, launch, device, control)


def end_others() -> None:
    """Let the others end, since this process, the first, ends in order."""
    launch = find_launch()
    if launch.num_processes > 1:
        dist.broadcast_object_list([("end", None)], src=0, group=connect(launch))
        dist.destroy_process_group()


_control: list[dist.ProcessGroup] = []


def connect(launch: Launch) -> dist.ProcessGroup:
    """Meet the other processes; what they tell each other goes through the group that is returned."""
    if not _control:
        # Exchanges inside CUDA graphs have their tensors in memory that graphs share.
        os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, rank=launch.rank, world_size=launch.num_processes, timeout=_EXCHANGE_TIMEOUT
        )
        _control.append(dist.new_group(backend="gloo", timeout=_FOREVER))
    return _control[0]


def join(config: RunConfig, launch: Launch, device: torch.device, control: dist.ProcessGroup) -> Parallel:
    """The groups of this process; every process makes all of them, in the same order."""
    num_rows, num_tokens = check_processes(config, launch.num_processes)
    # Neighbours share tokens, since they exchange most.
    mesh = init_device_mesh(device.type, (num_rows, num_tokens), mesh_dim_names=("rows", "tokens"))
    tokens = Tokens()
    rows = Rows()
    if num_tokens > 1:
        tokens = SequenceGroup(mesh.get_group("tokens"), mesh.get_local_rank("tokens"), num_tokens)
    if num_rows > 1:
        group, world, together = mesh.get_group("rows"), dist.group.WORLD, None
        assert world is not None
        if family_of(config).sizes(config, is_gpu=False).heads % launch.num_processes == 0:
            together = SequenceGroup(
                world, launch.rank, launch.num_processes, twins=group, num_twins=num_rows
            )
        rows = CfgGroup(group, mesh.get_local_rank("rows"), together)
    return Parallel(launch.rank, device, control, tokens, rows)


class SharedDecoder(WrappedDecoder):
    """The decoder of the first process, which lets the others have what a prefill reads."""

    def __init__(self, decoder: Decoder, parallel: Parallel) -> None:
        super().__init__(decoder, nullcontext)
        self._parallel = parallel

    def recall(self, latents: Tensor) -> Tensor:
        return self._parallel.share_tensors(super().recall(latents))


class NoDecoder(Decoder):
    """Stands in the others for the decoder of the first; makes no pixels."""

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel

    def recall(self, latents: Tensor) -> Tensor:
        return self._parallel.share_tensors(None)

    def decode_each(self, latents: Tensor) -> Iterator[Pixels]:
        yield Pixels(torch.empty(len(latents), 0, 1, 1, 3, dtype=torch.uint8))

    def follow(self, frames: Tensor, latents: Tensor) -> None:
        pass

    def skip(self, chunks: Sequence[ChunkPlan], latents: Tensor, num_shown: int) -> None:
        pass
