"""Is training on many ranks the same as on one? Figure 3 of Campanella et al. 2024, as figure and table.

One run is plain torch: the whole slide through encoder, aggregator and loss, then `loss.backward()`. The others go through
`slide_step` in the layouts asked for. Parameters, gradients and loss are followed over a few optimiser steps, one invented
slide each; their normalised L1 distance is sum |a - b| / sum |b|.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ingest.atomic import atomic_file
from pretrain.aggregator import GatedAttention
from pretrain.config import EncoderConfig, Layout, StepConfig, TaskConfig
from pretrain.encoder import build_encoder
from pretrain.heads import Heads, slide_losses, total_loss
from pretrain.ranks import run_ranks
from pretrain.share import normalise
from pretrain.step import Models, ready_models, slide_step
from pretrain.team import make_team
from pretrain.update import reduce_gradients

TASKS = (TaskConfig(),)
LABELS = {  # names of the paper's Figure 3
    "encoder.conv1.weight": "Encoder Conv 1",
    "encoder.layer4.1.conv1.weight": "Encoder last block",
    "encoder.layer4.2.conv1.weight": "Encoder Conv 51",
    "heads.layers.cancer.weight": "Classifier",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What is trained. The toy is the paper's: an 800 x 2,048 matrix, linear layers and ReLU."""

    network: Literal["toy", "resnet18", "resnet50"] = "toy"
    num_tiles: int = 800
    tile_size_px: int = 32  # ResNets only
    num_steps: int = 5
    learning_rate: float = 1e-3
    double: bool = True  # float64, so that a wrong gradient and rounding cannot be mixed up
    seed: int = 2024

    @property
    def layers(self) -> tuple[str, ...]:
        """Parameters that are followed, as in the paper: first and late convolution, and classifier."""
        encoder = {
            "toy": ("encoder.0.weight", "encoder.2.weight"),
            "resnet18": ("encoder.conv1.weight", "encoder.layer4.1.conv1.weight"),
            "resnet50": ("encoder.conv1.weight", "encoder.layer4.2.conv1.weight"),
        }
        return (*encoder[self.network], "heads.layers.cancer.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How the slide is spread: shares of the encoder ranks, and what is kept resident of them."""

    name: str
    layout: Layout
    counts: tuple[int, ...]
    resident_tiles: int
    chunk_tiles: int
    batch_norm: Literal["per_chunk", "frozen", "synchronised"] = "synchronised"

    @property
    def num_ranks(self) -> int:
        return len(self.counts) + (self.layout == "dedicated")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """After a step: the loss, and of each followed layer the parameter and the gradient that led to it."""

    loss: float
    parameters: dict[str, Tensor]
    gradients: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One point of the figure."""

    spread: str
    step: int
    quantity: Literal["parameter", "gradient", "loss"]
    layer: str
    distance: float


def default_spreads(num_tiles: int) -> list[Spread]:
    """The paper's 4 encoders + 1 aggregator, the same without a free rank, and one device with recomputed tiles."""
    small, rest = divmod(num_tiles, 4)
    ragged = (small + rest + 3, small - 1, small, small - 2)
    return [
        Spread(name="dedicated, 4 + 1 ranks", layout="dedicated", counts=ragged, resident_tiles=num_tiles, chunk_tiles=num_tiles),
        Spread(name="shared, 4 ranks", layout="shared", counts=ragged, resident_tiles=num_tiles, chunk_tiles=num_tiles),
        Spread(name="one rank, all tiles twice", layout="single", counts=(num_tiles,), resident_tiles=0, chunk_tiles=num_tiles),
    ]  # fmt: skip


def measure(experiment: Experiment, spreads: Sequence[Spread], timeout_seconds: float = 600.0) -> list[Difference]:
    """Differences to plain torch for every spread, step, quantity and followed layer; runs the ranks on this machine."""
    (truth,) = run_ranks(1, bare_trace, experiment, timeout_seconds=timeout_seconds)
    differences = []
    for spread in spreads:
        traces = run_ranks(spread.num_ranks, spread_trace, experiment, spread, timeout_seconds=timeout_seconds)
        differences += compare(truth, merge(traces), spread.name)
    return differences


def bare_trace(experiment: Experiment) -> list[Snapshot]:
    """Plain torch: no chunks, no ranks, no code of the step."""
    with _precision(experiment):
        encoder, aggregator, heads = build(experiment)
        optimiser = _optimiser([encoder, aggregator, heads], experiment)
        trace = []
        for step in range(experiment.num_steps):
            tiles, targets = slide(experiment, step)
            encoder.train()
            pooled, _ = aggregator(encoder(tiles))
            logits = heads(pooled)
            loss = total_loss(slide_losses(logits, targets, TASKS), logits, TASKS)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            trace.append(_snapshot(float(loss.detach()), experiment, encoder, aggregator, heads))
        return trace


def spread_trace(experiment: Experiment, spread: Spread) -> list[Snapshot]:
    """The same through the step; a function of one rank. It reports the layers that this rank holds."""
    config = StepConfig(
        layout=spread.layout, resident_tiles=spread.resident_tiles, chunk_tiles=spread.chunk_tiles,
        batch_norm=spread.batch_norm,
    )  # fmt: skip
    team = make_team(spread.layout, device="cpu")
    with _precision(experiment):
        encoder, aggregator, heads = build(experiment)
        models = ready_models(
            Models(
                encoder=encoder if team.is_encoder else None,
                aggregator=aggregator if team.is_aggregator else None,
                heads=heads if team.is_aggregator else None,
            ),
            team,
            config,
        )
        optimiser = _optimiser([models.encoder, models.aggregator, models.heads], experiment)
        trace = []
        for step in range(experiment.num_steps):
            tiles, targets = slide(experiment, step)
            shares = torch.split(tiles, list(spread.counts))
            own = None if team.share_index is None else shares[team.share_index]
            optimiser.zero_grad()
            result = slide_step(
                models,
                own,
                spread.counts,
                targets,
                team,
                config,
                seed=step,
                slide=f"invented-{step}",
                prepare=normalise,
            )
            reduce_gradients(models, team, config, [result], step)
            optimiser.step()
            trace.append(_snapshot(result.loss, experiment, models.encoder, models.aggregator, models.heads))
    team.close()
    return trace


def build(experiment: Experiment) -> tuple[nn.Module, nn.Module, Heads]:
    """The same random weights wherever it is called; GMA without dropout, as in the paper's comparison."""
    torch.manual_seed(experiment.seed)
    if experiment.network == "toy":
        encoder: nn.Module = nn.Sequential(nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 64))
        aggregator = GatedAttention(64, hidden_size=64, gate_size=32, dropout=0.0)
    else:
        encoder = build_encoder(EncoderConfig(name=experiment.network))
        aggregator = GatedAttention(512 if experiment.network == "resnet18" else 2048, dropout=0.0)
    return encoder, aggregator, Heads(aggregator.num_features, TASKS)


def slide(experiment: Experiment, step: int) -> tuple[Tensor, Tensor]:
    """An invented slide: noise, and a label that alternates."""
    generator = torch.Generator().manual_seed(experiment.seed + step)
    size = (2048,) if experiment.network == "toy" else (3, experiment.tile_size_px, experiment.tile_size_px)
    tiles = torch.randn(experiment.num_tiles, *size, generator=generator, dtype=torch.get_default_dtype())
    return tiles, torch.tensor([float(step % 2)])


def merge(traces: Sequence[list[Snapshot]]) -> list[Snapshot]:
    """One trace out of the traces of all ranks; a layer that several ranks hold must be the same on all, bit for bit."""
    merged = []
    for snapshots in zip(*traces, strict=True):
        for name in {name for snapshot in snapshots for name in snapshot.parameters}:
            copies = [snapshot.parameters[name] for snapshot in snapshots if name in snapshot.parameters]
            assert all(torch.equal(copy, copies[0]) for copy in copies), f"{name} differs between ranks"
        parameters = {name: value for snapshot in snapshots for name, value in snapshot.parameters.items()}
        gradients = {name: value for snapshot in snapshots for name, value in snapshot.gradients.items()}
        merged.append(Snapshot(snapshots[0].loss, parameters, gradients))
    return merged


def compare(truth: Sequence[Snapshot], trace: Sequence[Snapshot], spread: str) -> list[Difference]:
    differences = []
    for step, (expected, found) in enumerate(zip(truth, trace, strict=True), start=1):
        for name in expected.parameters:
            differences += [
                Difference(
                    spread=spread, step=step, quantity="parameter", layer=name,
                    distance=distance(found.parameters[name], expected.parameters[name]),
                ),
                Difference(
                    spread=spread, step=step, quantity="gradient", layer=name,
                    distance=distance(found.gradients[name], expected.gradients[name]),
                ),
            ]  # fmt: skip
        loss = abs(found.loss - expected.loss)
        differences.append(Difference(spread=spread, step=step, quantity="loss", layer="loss", distance=loss))
    return differences


def distance(found: Tensor, expected: Tensor) -> float:
    """Normalised L1 distance: sum |found - expected| / sum |expected|."""
    return float((found - expected).abs().sum() / expected.abs().sum())


def write_equivalence(folder: Path, experiment: Experiment, differences: Sequence[Difference]) -> list[Path]:
    """`equivalence.csv`, `equivalence.svg` and `equivalence.json` (largest distance per quantity) in `folder`."""
    table, figure, summary = (folder / f"equivalence.{suffix}" for suffix in ("csv", "svg", "json"))
    with atomic_file(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(asdict(differences[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(difference) for difference in differences)
    with atomic_file(summary) as temporary:
        largest = {
            quantity: max(item.distance for item in differences if item.quantity == quantity)
            for quantity in ("parameter", "gradient", "loss")
        }
        temporary.write_text(
            json.dumps({"experiment": asdict(experiment), "largest": largest}, indent=2) + "\n", encoding="utf-8"
        )
    with atomic_file(figure) as temporary:
        _draw(temporary, differences)
    return [table, figure, summary]


def _draw(path: Path, differences: Sequence[Difference]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = [
        ("parameter", "Parameters: normalised L1 distance"),
        ("loss", "Loss: absolute difference"),
        ("gradient", "Gradients: normalised L1 distance"),
    ]
    for axes, (quantity, title) in zip(figure.subplots(1, 3), panels, strict=True):
        chosen = [item for item in differences if item.quantity == quantity]
        for spread, layer in dict.fromkeys((item.spread, item.layer) for item in chosen):
            points = [
                (item.step, max(item.distance, 1e-18))
                for item in chosen
                if (item.spread, item.layer) == (spread, layer)
            ]
            label = spread if quantity == "loss" else f"{LABELS.get(layer, layer)}; {spread}"
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axes.set(yscale="log", xlabel="optimiser step", title=title)
        axes.legend(fontsize=5)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _snapshot(loss: float, experiment: Experiment, *modules: nn.Module | None) -> Snapshot:
    followed = {
        f"{prefix}.{name}": parameter
        for prefix, module in zip(("encoder", "aggregator", "heads"), modules, strict=True)
        if module is not None
        for name, parameter in module.named_parameters()
        if f"{prefix}.{name}" in experiment.layers
    }
    gradients = {name: parameter.grad.clone() for name, parameter in followed.items() if parameter.grad is not None}
    return Snapshot(loss, {name: parameter.detach().clone() for name, parameter in followed.items()}, gradients)


def _optimiser(modules: Sequence[nn.Module | None], experiment: Experiment) -> torch.optim.Optimizer:
    parameters = [parameter for module in modules if module is not None for parameter in module.parameters()]
    return torch.optim.SGD(parameters, lr=experiment.learning_rate, momentum=0.9)


@contextmanager
def _precision(experiment: Experiment) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if experiment.double else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
