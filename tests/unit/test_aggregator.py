"""Aggregators and heads against formulas written out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from ingest.errors import InputError
from pretrain.aggregator import GatedAttention, Max, Mean, TransMIL, build_aggregator, pseudo_inverse
from pretrain.config import AggregatorConfig, TaskConfig
from pretrain.heads import Heads, probabilities, slide_losses, targets_of, total_loss

FEATURES = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 7.0]])
BINARY, GRADE = TaskConfig(), TaskConfig(name="grade", num_classes=3)


def test_gma_has_the_shapes_of_the_authors_code() -> None:
    model = build_aggregator(AggregatorConfig(), 2048)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {
        "hidden.0.weight": (512, 2048), "hidden.0.bias": (512,), "hidden.3.weight": (512, 512), "hidden.3.bias": (512,),
        "content.0.weight": (384, 512), "content.0.bias": (384,), "gate.0.weight": (384, 512), "gate.0.bias": (384,),
        "score.weight": (1, 384), "score.bias": (1,),
    }  # fmt: skip
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.25] * 4
    weight = model.get_parameter("hidden.0.weight").detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (2048 + 512)), rel=0.01)  # Xavier, normal
    assert float(model.get_parameter("hidden.0.bias").detach().abs().max()) == 0


def test_gma_is_the_formula_of_gated_attention() -> None:
    torch.manual_seed(0)
    model = GatedAttention(2, hidden_size=4, gate_size=3, num_hidden_layers=1).eval()
    pooled, attention = model(FEATURES)
    weights = dict(model.named_parameters())
    hidden = torch.relu(FEATURES @ weights["hidden.0.weight"].T)
    content = torch.tanh(hidden @ weights["content.0.weight"].T)
    gate = torch.sigmoid(hidden @ weights["gate.0.weight"].T)
    scores = ((content * gate) @ weights["score.weight"].T)[:, 0]
    expected = torch.exp(scores) / torch.exp(scores).sum()
    assert attention is not None
    assert torch.allclose(attention, expected)
    assert torch.allclose(pooled, (expected[:, None] * hidden).sum(0))


def test_gma_that_recomputes_its_blocks_draws_the_same_dropout_as_one_that_does_not() -> None:
    features = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept, recomputed = GatedAttention(6, 8, 4).double(), GatedAttention(6, 8, 4).double()
    kept.load_state_dict(recomputed.state_dict())
    torch.manual_seed(2)
    hidden, scores = kept._hidden_and_score(features)  # the inner function: nothing is recomputed
    (scores.softmax(0) @ hidden).square().sum().backward()  # type: ignore[no-untyped-call]
    torch.manual_seed(2)
    recomputed(features)[0].square().sum().backward()
    for ours, its in zip(recomputed.parameters(), kept.parameters(), strict=True):
        assert ours.grad is not None
        assert its.grad is not None
        assert torch.allclose(ours.grad, its.grad, rtol=1e-12, atol=1e-15)
    assert float(kept.get_parameter("score.weight").grad.norm()) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("block_tiles", [1, 3, 7])
def test_size_of_gma_blocks_does_not_change_the_numbers(block_tiles: int) -> None:
    torch.manual_seed(0)
    one = GatedAttention(6, 8, 4, dropout=0.0).double()
    other = GatedAttention(6, 8, 4, dropout=0.0, block_tiles=block_tiles).double()
    other.load_state_dict(one.state_dict())
    features = torch.randn(7, 6, dtype=torch.float64)
    assert torch.allclose(one(features)[0], other(features)[0], rtol=1e-13)


def test_mean_and_max_hand_on_what_their_names_say() -> None:
    assert Mean(2)(FEATURES)[0].tolist() == [3.0, 3.0]
    assert Max(2)(FEATURES)[0].tolist() == FEATURES.tolist()


def test_max_pool_mil_lets_the_best_tile_of_each_task_decide() -> None:
    heads = Heads(2, (BINARY, TaskConfig(name="other"), TaskConfig(name="size", kind="number")))
    with torch.no_grad():
        for name, weight in (
            ("cancer", [[0.0, 0.0], [1.0, 0.0]]),
            ("other", [[0.0, 0.0], [-1.0, 0.0]]),
            ("size", [[0.0, 1.0]]),
        ):
            heads.get_parameter(f"layers.{name}.weight").copy_(torch.tensor(weight))
    outputs = heads(FEATURES)
    assert outputs["cancer"].tolist() == [0.0, 5.0]
    assert outputs["other"].tolist() == [0.0, -1.0]
    assert outputs["size"].tolist() == [7.0]


@pytest.mark.parametrize("num_tiles", [1, 2, 10, 300])
def test_transmil_gives_one_vector_for_any_number_of_tiles(num_tiles: int) -> None:
    torch.manual_seed(0)
    model = build_aggregator(AggregatorConfig(name="transmil", hidden_size=64), 10)
    assert isinstance(model, TransMIL)
    pooled, attention = model(torch.randn(num_tiles, 10))
    assert pooled.shape == (64,)
    assert attention is None
    pooled.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_pseudo_inverse_is_that_of_linear_algebra() -> None:
    torch.manual_seed(0)
    matrix = (torch.eye(6, dtype=torch.float64) * 3 + torch.randn(2, 6, 6, dtype=torch.float64)).softmax(-1)
    assert torch.allclose(pseudo_inverse(matrix, iterations=12), torch.linalg.pinv(matrix), atol=1e-8)


@pytest.mark.parametrize("name", ["gma", "mean", "max", "transmil"])
def test_every_aggregator_learns_from_every_tile_set_and_names_its_width(name: str) -> None:
    torch.manual_seed(0)
    model = build_aggregator(AggregatorConfig(name=name, hidden_size=16, gate_size=8), 5)
    features = torch.randn(9, 5, requires_grad=True)
    pooled, _ = model(features)
    assert pooled.shape[-1] == model.num_features
    Heads(model.num_features, (BINARY,))(pooled)["cancer"][1].backward()
    assert features.grad is not None
    assert float(features.grad.abs().sum()) > 0


# Heads and loss


def test_null_labels_are_left_out_of_the_loss_and_get_no_gradient() -> None:
    heads = Heads(2, (BINARY, GRADE))
    outputs = heads(torch.tensor([1.0, 2.0]))
    losses = slide_losses(outputs, torch.tensor([1.0, float("nan")]), heads.tasks)
    assert list(losses) == ["cancer"]
    total_loss(losses, outputs, heads.tasks).backward()  # type: ignore[no-untyped-call]
    assert _gradient_size(heads, "cancer") > 0
    assert _gradient_size(heads, "grade") == 0


def _gradient_size(heads: Heads, task: str) -> float:
    gradient = heads.get_parameter(f"layers.{task}.weight").grad
    assert gradient is not None
    return float(gradient.abs().sum())


def test_loss_of_two_tasks_by_hand() -> None:
    tasks = (TaskConfig(class_weights=(1.0, 3.0)), TaskConfig(name="size", kind="number", weight=0.5))
    outputs = {"cancer": torch.tensor([0.0, 0.0]), "size": torch.tensor([1.5])}
    losses = slide_losses(outputs, torch.tensor([1.0, 2.0]), tasks)
    assert float(losses["cancer"]) == pytest.approx(3 * math.log(2))  # a weight is not divided out again
    assert float(losses["size"]) == pytest.approx(0.25)
    assert float(total_loss(losses, outputs, tasks)) == pytest.approx((3 * math.log(2) + 0.5 * 0.25) / 1.5)


def test_a_slide_without_any_label_has_loss_0_and_gradient_0() -> None:
    heads = Heads(2, (BINARY,))
    outputs = heads(torch.tensor([1.0, 2.0]))
    loss = total_loss(slide_losses(outputs, torch.tensor([float("nan")]), heads.tasks), outputs, heads.tasks)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert _gradient_size(heads, "cancer") == 0


def test_targets_come_from_the_columns_of_the_manifest_and_null_is_not_negative() -> None:
    targets = targets_of({"y_cancer": 0, "y_grade": None, "y_other": 1}, (BINARY, GRADE))
    assert targets[0] == 0
    assert targets[1].isnan()


def test_a_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(InputError, match=r"task cancer: label 2 is not a class number 0 to 1"):
        slide_losses({"cancer": torch.zeros(2)}, torch.tensor([2.0]), (BINARY,))


def test_probabilities_of_classes_and_of_numbers() -> None:
    found = probabilities({"cancer": torch.tensor([0.0, math.log(3)]), "size": torch.tensor([4.0])})
    assert found["cancer"].tolist() == pytest.approx([0.25, 0.75])
    assert found["size"].tolist() == [4.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"class_weights": (1.0,)}, "1 class_weights for 2 classes"),
        ({"class_weights": (1.0, -1.0)}, "must not be negative"),
        ({"kind": "number", "class_weights": (1.0, 1.0)}, "need kind = classes"),
    ],
)
def test_class_weights_that_do_not_fit_the_task_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig(**wrong)
