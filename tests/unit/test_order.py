import numpy as np
import pytest

from ingest.errors import ConfigError
from pretrain.order import epoch_order


def test_an_epoch_draws_half_of_the_slides_each_once() -> None:
    order = epoch_order(np.ones(40), 0.5, seed=1, epoch=0)
    assert len(order) == len(set(order.tolist())) == 20


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    again = [epoch_order(np.ones(40), 0.5, seed=1, epoch=3).tolist() for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] != epoch_order(np.ones(40), 0.5, seed=1, epoch=4).tolist()
    assert again[0] != epoch_order(np.ones(40), 0.5, seed=2, epoch=3).tolist()


def test_a_slide_of_weight_zero_is_never_drawn_and_a_heavy_one_more_often() -> None:
    weights = np.array([0.0, 1.0, 1.0, 1.0, 3.0])
    drawn = np.concatenate([epoch_order(weights, 0.25, seed=0, epoch=epoch) for epoch in range(4000)])
    share = np.bincount(drawn, minlength=5) / len(drawn)
    assert share[0] == 0
    # One of four is drawn: the chances are exactly 1/6, 1/6, 1/6 and 1/2.
    assert share[1:] == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2], abs=0.03)


def test_no_drawable_slide_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="ingest show"):
        epoch_order(np.zeros(3), 1.0, seed=0, epoch=0)
