import io
from typing import Any

import pytest
from rich.console import Console

from pretrain.live import live_line


def line(loss: float) -> dict[str, Any]:
    return {"loss": loss, "num_tiles": 1200, "tiles_per_second": 300.0, "peak_memory_bytes": 2**31,
            "seconds": {"wait": 1.0, "step": 4.0}}  # fmt: skip


def test_a_terminal_shows_one_moving_line_with_what_matters() -> None:
    screen = io.StringIO()
    with live_line("epoch 3", 2, Console(file=screen, force_terminal=True, width=160)) as show:
        show(line(0.5))
        show(line(0.25))
    text = screen.getvalue()
    assert "epoch 3" in text
    assert "2/2" in text
    assert "loss 0.250, 1,200 tiles, 300/s, waited 25%, 2.0 GiB" in text


def test_elsewhere_it_is_a_plain_line_every_20_steps_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with live_line("epoch 1", 45, Console(file=io.StringIO())) as show:
        for number in range(45):
            show(line(number / 100))
    printed = capsys.readouterr().err.splitlines()
    assert [text.split(",")[0] for text in printed] == ["epoch 1: 20/45", "epoch 1: 40/45", "epoch 1: 45/45"]
    assert printed[-1].endswith("loss 0.440, 1,200 tiles, 300/s, waited 25%, 2.0 GiB")
