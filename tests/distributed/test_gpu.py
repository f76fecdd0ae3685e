"""The step on a CUDA device against the same step on the CPU. Run with `python -m pytest -m gpu` where there is one."""

import pytest
import torch

from pretrain.batchnorm import running_statistics
from pretrain.config import StepConfig
from pretrain.share import _on_device
from pretrain.step import slide_step
from pretrain.team import make_team
from tests.distributed.ranks import gradients, largest_difference, networks, of_rank, slide

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def step_gradients(
    device: str, resident_tiles: int, dropout: float
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Encoder gradients and running statistics after one step over 37 tiles, brought to the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    team = make_team("single", device=device)
    config = StepConfig(layout="single", resident_tiles=resident_tiles, chunk_tiles=5, batch_norm="per_chunk")
    models = of_rank(*networks(dropout), team, config)
    tiles, targets = slide(0, 37)
    slide_step(models, tiles, (37,), targets, team, config, seed=11, slide="S-0")
    assert models.encoder is not None
    found = {name: gradient.cpu() for name, gradient in gradients(models.encoder).items()}
    return found, [tensor.cpu() for tensor in running_statistics(models.encoder)]


def test_a_step_on_the_gpu_gives_the_gradients_of_the_cpu() -> None:
    on_cpu, _ = step_gradients("cpu", resident_tiles=12, dropout=0.0)
    on_gpu, _ = step_gradients("cuda", resident_tiles=12, dropout=0.0)
    assert largest_difference(on_gpu, on_cpu) < 1e-4  # float32 sums in another order


def test_recomputed_chunks_on_the_gpu_see_the_same_dropout_and_move_statistics_once() -> None:
    resident, statistics = step_gradients("cuda", resident_tiles=1000, dropout=0.4)
    twice, statistics_twice = step_gradients("cuda", resident_tiles=0, dropout=0.4)
    assert largest_difference(twice, resident) < 1e-4
    assert all(torch.equal(one, other) for one, other in zip(statistics, statistics_twice, strict=True))


def test_tiles_reach_the_gpu_through_page_locked_memory_unchanged() -> None:
    slot_KHW3 = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8)
    positions = torch.tensor([7, 0, 39, 7])
    moved = _on_device(slot_KHW3.permute(0, 3, 1, 2), positions, torch.device("cuda"))
    assert torch.equal(moved.cpu(), slot_KHW3[positions].permute(0, 3, 1, 2))
