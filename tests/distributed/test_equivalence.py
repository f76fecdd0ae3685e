"""The paper's gradient equivalence, asserted: the toy with all 800 rows, and ResNets with GMA over five optimiser steps."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pretrain.config import StepConfig
from pretrain.equivalence import (
    TASKS,
    Experiment,
    Spread,
    build,
    default_spreads,
    measure,
    slide,
    write_equivalence,
)
from pretrain.heads import slide_losses, total_loss
from pretrain.share import normalise
from pretrain.step import Models, ready_models, slide_step
from pretrain.team import make_team
from tests.distributed.ranks import run_ranks

EXACT = 1e-12
ROWS = 800


def rows_of_rank(counts: tuple[int, ...], resident_tiles: int) -> Tensor:
    """Gradient of the loss at the features of every row of this rank, [K, 64], caught as it enters the encoder."""
    torch.set_default_dtype(torch.float64)
    team = make_team("dedicated", timeout_seconds=60, device="cpu")
    config = StepConfig(layout="dedicated", resident_tiles=resident_tiles, chunk_tiles=90)
    encoder, aggregator, heads = build(Experiment())
    caught = torch.full((ROWS, 64), float("nan"))
    current: list[Tensor] = []

    def prepare(tiles: Tensor, tile_ids: Tensor, generator: torch.Generator) -> Tensor:
        current[:] = [tile_ids]
        return normalise(tiles, tile_ids, generator)

    def catch(module: nn.Module, inputs: Any, output: Tensor) -> None:
        ids = current[0]
        if output.requires_grad:
            output.register_hook(lambda gradient: caught.__setitem__(ids, gradient))  # type: ignore[no-untyped-call]

    encoder.register_forward_hook(catch)
    models = ready_models(
        Models(
            encoder=encoder if team.is_encoder else None,
            aggregator=aggregator if team.is_aggregator else None,
            heads=heads if team.is_aggregator else None,
        ),
        team,
        config,
    )
    tiles, targets = slide(Experiment(), 0)
    own = None if team.share_index is None else torch.split(tiles, list(counts))[team.share_index]
    slide_step(models, own, counts, targets, team, config, seed=0, slide="S-0", prepare=prepare)
    return caught


def plain_rows() -> Tensor:
    torch.set_default_dtype(torch.float64)
    encoder, aggregator, heads = build(Experiment())
    tiles, targets = slide(Experiment(), 0)
    features = encoder(tiles)
    features.retain_grad()
    logits = heads(aggregator(features)[0])
    total_loss(slide_losses(logits, targets, TASKS), logits, TASKS).backward()  # type: ignore[no-untyped-call]
    gradient: Tensor | None = features.grad
    assert gradient is not None
    return gradient


@pytest.mark.parametrize(
    ("counts", "resident_tiles"), [((800,), 800), ((500, 300), 200), ((1, 266, 533), 0), ((203, 0, 397, 200), 800)]
)
def test_all_800_rows_of_the_toy_get_their_gradient(counts: tuple[int, ...], resident_tiles: int) -> None:
    (expected,) = run_ranks(1, plain_rows)
    ranks = run_ranks(1 + len(counts), rows_of_rank, counts, resident_tiles)
    found = torch.stack(ranks[1:]).nan_to_num().sum(0)
    times_seen = torch.stack([~rank.isnan().any(1) for rank in ranks[1:]]).sum(0)
    assert times_seen.tolist() == [1] * ROWS
    relative = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(relative.max()) < EXACT


def test_the_toy_followed_for_five_steps_in_every_layout() -> None:
    experiment = Experiment(learning_rate=0.1)
    spreads = default_spreads(experiment.num_tiles)
    spreads += [
        Spread(
            name=f"dedicated {n}",
            layout="dedicated",
            counts=counts,
            resident_tiles=100,
            chunk_tiles=64,
            batch_norm="frozen",
        )
        for n, counts in enumerate([(800,), (399, 401), (100, 300, 400)], start=1)
    ]
    differences = measure(experiment, spreads)
    assert len(differences) == 6 * 5 * (3 + 3 + 1)
    assert max(difference.distance for difference in differences) < EXACT


def test_resnet18_with_gma_and_synchronised_batch_norm_followed_for_five_steps(tmp_path: Path) -> None:
    experiment = Experiment(network="resnet18", num_tiles=10, learning_rate=0.01)
    spreads = [
        Spread(name="2 + 1", layout="dedicated", counts=(7, 3), resident_tiles=10, chunk_tiles=10),
        Spread(name="2", layout="shared", counts=(3, 7), resident_tiles=10, chunk_tiles=10),
        Spread(name="1, twice", layout="single", counts=(10,), resident_tiles=0, chunk_tiles=10),
    ]
    differences = measure(experiment, spreads)
    assert max(difference.distance for difference in differences) < EXACT
    table, figure, _ = write_equivalence(tmp_path, experiment, differences)
    with table.open() as stream:
        assert len(list(csv.DictReader(stream))) == len(differences)
    assert "Encoder Conv 1" in figure.read_text()


def test_resnet50_with_gma_and_synchronised_batch_norm_followed_for_five_steps() -> None:
    experiment = Experiment(network="resnet50", num_tiles=6, learning_rate=0.01)
    spread = Spread(name="2 + 1", layout="dedicated", counts=(4, 2), resident_tiles=6, chunk_tiles=6)
    differences = measure(experiment, [spread])
    assert {difference.step for difference in differences} == {1, 2, 3, 4, 5}
    assert max(difference.distance for difference in differences) < EXACT


def test_in_float32_resnet18_agrees_to_1e_5_after_one_step() -> None:
    experiment = Experiment(network="resnet18", num_tiles=10, num_steps=1, double=False)
    spread = Spread(name="2 + 1", layout="dedicated", counts=(6, 4), resident_tiles=10, chunk_tiles=10)
    differences = measure(experiment, [spread])
    assert max(difference.distance for difference in differences) < 1e-5


def test_control_statistics_of_each_rank_alone_are_not_those_of_the_slide() -> None:
    experiment = Experiment(network="resnet18", num_tiles=10, num_steps=1)
    spread = Spread(
        name="2 + 1", layout="dedicated", counts=(6, 4), resident_tiles=10, chunk_tiles=10, batch_norm="per_chunk"
    )
    assert max(difference.distance for difference in measure(experiment, [spread])) > 1e-3
