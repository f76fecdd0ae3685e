"""The step on gloo ranks against plain torch on one: float64, relative difference of every gradient below 1e-12."""

from typing import Any

import pytest

from pretrain.config import Layout, Precision
from tests.distributed.ranks import Found, Work, largest_difference, plain_gradients, rank_outcomes, run_ranks, work

EXACT = 1e-12


def run(task: Work) -> list[Found]:
    num_encoders = len(task.counts[0]) + (task.layout == "dedicated")
    return run_ranks(num_encoders * len(task.slides_of_team), work, task)


def the_same(found: Found, expected: Found) -> float:
    differences = [
        largest_difference(mine, its)
        for mine, its in ((found.encoder, expected.encoder), (found.aggregator, expected.aggregator))
        if mine is not None and its is not None
    ]
    return max(differences)


@pytest.mark.parametrize("resident_tiles", [0, 9, 1000])
@pytest.mark.parametrize(
    ("layout", "counts"),
    [
        ("single", (37,)),
        ("dedicated", (37,)),
        ("dedicated", (19, 18)),
        ("dedicated", (30, 1, 6)),
        ("shared", (19, 18)),
        ("shared", (0, 30, 7)),
    ],
)
def test_every_layout_and_any_share_gives_the_gradients_of_one_process(
    layout: Layout, counts: tuple[int, ...], resident_tiles: int
) -> None:
    losses, encoder, aggregator, _ = plain_gradients((37,))
    for found in run(Work(layout=layout, counts=(counts,), resident_tiles=resident_tiles)):
        assert found.losses == pytest.approx(losses, rel=EXACT)
        if found.encoder is not None:
            assert largest_difference(found.encoder, encoder) < EXACT
        if found.aggregator is not None:
            assert largest_difference(found.aggregator, aggregator) < EXACT
            assert found.attention_T is not None
            assert float(found.attention_T.sum()) == pytest.approx(1.0)


def test_more_ranks_than_tiles_leaves_some_without_a_tile() -> None:
    losses, encoder, _, _ = plain_gradients((2,))
    found = run(Work(layout="dedicated", counts=((1, 1, 0, 0),)))
    assert found[0].losses == pytest.approx(losses, rel=EXACT)
    for rank in (1, 2, 3, 4):
        gradients = found[rank].encoder
        assert gradients is not None
        assert largest_difference(gradients, encoder) < EXACT


@pytest.mark.parametrize(
    ("layout", "counts", "slides_of_team"),
    [
        ("dedicated", ((9, 4), (0, 6), (7, 5)), ((0, 2), (1,))),
        ("shared", ((9, 4), (0, 6), (7, 5)), ((0, 1, 2), ())),
        ("single", ((13,), (6,), (12,)), ((0,), (1,), (2,))),
    ],
)
def test_slides_in_flight_and_accumulated_give_the_mean_over_all_slides(
    layout: Layout, counts: tuple[tuple[int, ...], ...], slides_of_team: tuple[tuple[int, ...], ...]
) -> None:
    losses, encoder, aggregator, _ = plain_gradients((13, 6, 12))
    found = run(Work(layout=layout, counts=counts, slides_of_team=slides_of_team, resident_tiles=6))
    assert {round(loss, 12) for rank in found for loss in rank.losses} == {round(loss, 12) for loss in losses}
    for rank in found:
        assert rank.encoder is None or largest_difference(rank.encoder, encoder) < EXACT
        assert rank.aggregator is None or largest_difference(rank.aggregator, aggregator) < EXACT


@pytest.mark.parametrize(("layout", "counts"), [("dedicated", (8, 5)), ("shared", (8, 0, 5)), ("shared", (13,))])
def test_synchronised_batch_norm_is_that_of_the_whole_slide(layout: Layout, counts: tuple[int, ...]) -> None:
    _, encoder, aggregator, buffers = plain_gradients((13,), policy="synchronised")
    for found in run(Work(layout=layout, counts=(counts,), batch_norm="synchronised", chunk_tiles=100)):
        if found.encoder is not None and found.statistics is not None:
            assert largest_difference(found.encoder, encoder) < EXACT
            assert largest_difference(found.statistics, buffers) < EXACT
        assert found.aggregator is None or largest_difference(found.aggregator, aggregator) < EXACT


def test_synchronised_chunks_of_ragged_shares_do_not_hang() -> None:
    (one,) = run(Work(layout="single", counts=((13,),), batch_norm="synchronised", chunk_tiles=100))
    found = run(Work(layout="shared", counts=((10, 3),), batch_norm="synchronised", chunk_tiles=2))
    assert found[0].losses[0] == found[1].losses[0] != one.losses[0]  # 5 chunks of 2 + 0.6 tiles each


@pytest.mark.parametrize(("layout", "counts"), [("single", (13,)), ("dedicated", (8, 5)), ("shared", (5, 8))])
def test_recomputed_chunks_see_the_same_dropout_augmentation_and_batch_norm(
    layout: Layout, counts: tuple[int, ...]
) -> None:
    task: dict[str, Any] = {
        "layout": layout,
        "counts": (counts,),
        "batch_norm": "per_chunk",
        "dropout": 0.4,
        "augmented": True,
    }
    resident = run(Work(**task))
    for resident_tiles in (0, 6):
        for found, expected in zip(run(Work(**task, resident_tiles=resident_tiles)), resident, strict=True):
            assert the_same(found, expected) < EXACT
            if found.statistics is not None and expected.statistics is not None:
                assert largest_difference(found.statistics, expected.statistics) == 0  # the same bits: moved once


def test_running_statistics_are_the_same_on_all_encoder_ranks() -> None:
    found = run(Work(layout="shared", counts=((9, 0, 4),), batch_norm="per_chunk"))
    for rank in found[1:]:
        assert rank.statistics is not None
        assert found[0].statistics is not None
        assert largest_difference(rank.statistics, found[0].statistics) == 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_gives_the_same_gradients_resident_recomputed_and_on_ranks(precision: Precision) -> None:
    task: dict[str, Any] = {
        "precision": precision,
        "double": False,
        "loss_scale": 1024.0 if precision == "float16" else 1.0,
        "chunk_tiles": 4,
    }
    (one,) = run(Work(layout="single", counts=((12,),), **task))
    (twice,) = run(Work(layout="single", counts=((12,),), resident_tiles=0, **task))
    ranks = run(Work(layout="dedicated", counts=((4, 8),), resident_tiles=4, **task))
    _, encoder, _, _ = plain_gradients((12,), double=False)
    assert one.encoder is not None
    assert largest_difference(one.encoder, encoder) < 0.05  # half precision, but the same gradient
    assert the_same(twice, one) < 1e-5
    assert the_same(ranks[1], one) < 0.05  # other chunks, other rounding
    assert ranks[0].losses == pytest.approx(one.losses, rel=1e-2)


def test_float32_agrees_to_1e_5() -> None:
    _, encoder, _, _ = plain_gradients((37,), double=False)
    for found in run(Work(layout="dedicated", counts=((20, 17),), resident_tiles=6, double=False)):
        assert found.encoder is None or largest_difference(found.encoder, encoder) < 1e-5


def test_a_frozen_encoder_gets_no_gradient_and_the_aggregator_the_usual_one() -> None:
    _, _, aggregator, buffers = plain_gradients((13,))
    for found in run(Work(layout="dedicated", counts=((8, 5),), frozen=True, batch_norm="per_chunk")):
        assert not found.encoder
        assert found.aggregator is None or largest_difference(found.aggregator, aggregator) < EXACT
        assert found.statistics is None or largest_difference(found.statistics, buffers) == 0


def test_gradient_norm_is_the_same_on_every_rank_of_every_layout() -> None:
    norms = [found.norm for found in run(Work(layout="dedicated", counts=((8, 5),)))]
    norms += [found.norm for found in run(Work(layout="shared", counts=((5, 8),)))]
    _, encoder, aggregator, _ = plain_gradients((13,))
    squares = sum(float(value.square().sum()) for value in (*encoder.values(), *aggregator.values()))
    assert norms == pytest.approx([squares**0.5] * 5, rel=EXACT)


def test_overflow_in_float16_is_seen_by_every_rank_and_skips_the_update() -> None:
    task = Work(layout="dedicated", counts=((8, 5),), precision="float16", double=False, loss_scale=2.0**60)
    assert [found.finite for found in run(task)] == [False] * 3


def test_overflow_without_a_loss_scale_stops_every_rank() -> None:
    task = Work(layout="dedicated", counts=((8, 5),), double=False, loss_scale=1e39)  # above the largest float32
    for outcome in rank_outcomes(3, work, task):
        assert outcome.error is not None
        assert "StepError: step 1: gradients are not finite (slides of this team: S-0)" in outcome.error


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_gradients_of_the_plain_one_dropout_included() -> None:
    task: dict[str, Any] = {
        "layout": "single",
        "counts": ((13,),),
        "dropout": 0.4,
        "resident_tiles": 6,
        "double": False,
    }
    plain = run(Work(**task))
    (compiled,) = run_ranks(1, work, Work(**task, compile=True), timeout_seconds=600)
    assert the_same(compiled, plain[0]) < 1e-3


# What the tests above would miss if it were gone.


def test_control_without_the_factor_n_the_encoder_gradient_is_wrong() -> None:
    _, encoder, _, _ = plain_gradients((37,))
    found = run(Work(layout="dedicated", counts=((19, 18),), broken="mean"))
    assert found[1].encoder is not None
    assert largest_difference(found[1].encoder, encoder) == pytest.approx(0.5)


def test_control_without_the_generator_recomputed_dropout_is_another() -> None:
    task: dict[str, Any] = {"layout": "single", "counts": ((13,),), "dropout": 0.4, "broken": "generator"}
    (resident,), (twice,) = run(Work(**task)), run(Work(**task, resident_tiles=0))
    assert the_same(twice, resident) > 1e-3


def test_control_without_holding_them_running_statistics_move_twice() -> None:
    task: dict[str, Any] = {"layout": "single", "counts": ((13,),), "batch_norm": "per_chunk", "broken": "statistics"}
    (resident,), (twice,) = run(Work(**task)), run(Work(**task, resident_tiles=0))
    assert resident.statistics is not None
    assert twice.statistics is not None
    assert largest_difference(twice.statistics, resident.statistics) > 1e-3
