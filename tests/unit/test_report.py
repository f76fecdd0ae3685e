import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from evaluate.metrics import EvaluationConfig, Selection, evaluate_predictions
from evaluate.report.build import ErrorCase, FunnelStage, ReportFiles, TileImage, build_report, worst_errors
from evaluate.report.chart import even_ticks, thinned
from evaluate.report.images import embed_images
from evaluate.report.training import read_training_log, smoothed
from ingest.errors import InputError
from tests.invented_predictions import invented_predictions, some

QUICK = EvaluationConfig(num_resamples=200, target_prevalence=0.1)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def picture(seed: int, side: int = 224) -> Any:
    noise = np.random.default_rng(seed).integers(0, 255, (side // 8, side // 8, 3)).astype(np.uint8)
    return cv2.imencode(".png", cv2.resize(noise, (side, side)))[1].tobytes()


def write_log(path: Path, num_steps: int = 300) -> None:
    lines = []
    for step in range(1, num_steps + 1):
        lines.append({"kind": "step", "step": step, "epoch": 0, "loss": 1 / step, "seconds": {"wait": 0.1}})
        if step % 100 == 0:
            tune = {"cancer": 0.5 + step / 1000, "grade": None}
            lines.append({"kind": "epoch", "step": step, "loss": 0.5, "tune_loss": 0.6, "tune_auc": tune})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("run")
    write_log(folder / "metrics.jsonl")
    frame = invented_predictions(200)
    evaluation = evaluate_predictions(frame, QUICK, selection=Selection("step_300", "tune", 3))
    errors = [
        ErrorCase(
            item.slide_key, item.label, item.score, "breast <core>", picture(k), (TileImage(picture(k + 50), "rank 99 %"),) * 6,
        )
        for k, item in enumerate(worst_errors(frame, evaluation, 6))
    ]  # fmt: skip
    return build_report(
        evaluation, folder / "report", title="Cancer & co", training=read_training_log(folder / "metrics.jsonl"),
        funnel=[FunnelStage("slides found", 900, {}), FunnelStage("scored", 700, {"no label": 150, "unreadable": 50})],
        errors=errors, resolved_config="[run]\nseed = 0\n", environment={"versions": {"torch": "2.14"}},
    )  # fmt: skip


class Checker(HTMLParser):
    """Elements that are left open, and everything that would be fetched."""

    VOID = frozenset({"meta", "img", "br", "rect", "circle", "line", "polyline", "polygon", "path", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset", "poster", "data")]

    def handle_endtag(self, tag: Any) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_one_file_below_a_megabyte_that_fetches_nothing(report: ReportFiles) -> None:
    page = report.html.read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(value.startswith("data:image/jpeg;base64,") for value in checker.fetched)
    assert len(checker.fetched) == 6 * 7
    assert "://" not in page
    assert "@import" not in page
    assert re.search(r"url\((?!#)", page) is None
    assert report.html.stat().st_size < 1_000_000


def test_the_page_says_what_was_selected_on_what_beside_every_number(report: ReportFiles) -> None:
    page = report.html.read_text()
    table = page.split('id="numbers"')[1].split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall(r"<tr><th>.*?</tr>", table, flags=re.S)
    assert len(rows) > 15
    assert all("tune (best of 3)" in row for row in rows)
    document = json.loads(report.metrics.read_text())
    auroc = document["levels"]["slide"]["metrics"]["auroc"]
    assert f"{auroc['low']:.3f} to {auroc['high']:.3f}" in page
    for section in ("headline", "curves", "threshold", "subgroups", "errors", "training", "flow", "methods"):
        assert f'id="{section}"' in page


def test_text_is_escaped(report: ReportFiles) -> None:
    page = report.html.read_text()
    assert "Cancer &amp; co" in page
    assert "breast &lt;core&gt;" in page


def test_figures_are_there_in_three_forms_and_the_points_as_csv(report: ReportFiles) -> None:
    names = {path.name for path in report.figures}
    stems = (
        "roc",
        "precision_recall",
        "calibration",
        "scores",
        "net_benefit",
        "training_loss",
        "training_auc",
        "subgroups",
    )
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg", "pdf")}
    assert all(path.stat().st_size > 1000 for path in report.figures)
    assert (report.html.parent / "roc.csv").read_text().startswith("level,threshold,false_positive_rate")
    assert json.loads((report.html.parent / "operating_point.json").read_text())["chosen_on"] == "tune"


def test_the_same_evaluation_gives_the_same_bytes(tmp_path: Path) -> None:
    evaluation = evaluate_predictions(invented_predictions(40), QUICK)
    files = [build_report(evaluation, tmp_path / name, title="t") for name in ("a", "b")]
    assert files[0].html.read_bytes() == files[1].html.read_bytes()
    for one, two in zip(files[0].figures, files[1].figures, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_a_one_class_report_says_not_defined_and_shows_no_curve(tmp_path: Path) -> None:
    evaluation = evaluate_predictions(invented_predictions(30).query("label == 1"), QUICK)
    files = build_report(evaluation, tmp_path / "report", title="one class")
    page = files.html.read_text()
    assert "not defined" in page
    assert "one class only" in page
    assert 'id="curves"' not in page
    assert "0.500" not in page


def test_worst_errors_are_the_furthest_wrong_slides_of_the_scored_split() -> None:
    frame = invented_predictions(100)
    evaluation = evaluate_predictions(frame, QUICK)
    threshold = some(evaluation.headline.operating_point).point.threshold
    found = worst_errors(frame, evaluation, 4)
    wrong = frame[(frame["split"] == "test") & ((frame["score"] >= threshold) != (frame["label"] == 1))]
    assert {item.slide_key for item in found} <= set(wrong["slide_key"])
    alarms = [item.score for item in found if item.kind == "false alarm"]
    assert alarms[0] == wrong.query("label == 0")["score"].max()
    missed = [item.score for item in found if item.kind == "missed positive"]
    assert missed[:1] == sorted(wrong.query("label == 1")["score"])[:1]


def test_pictures_shrink_until_they_fit_and_bad_ones_are_named() -> None:
    images = [picture(k) for k in range(10)]
    large, small = embed_images(images, 10_000_000), embed_images(images, 40_000)
    assert sum(map(len, small)) <= 40_000 < sum(map(len, large))
    with pytest.raises(InputError, match="show fewer cases"):
        embed_images(images, 1000)
    with pytest.raises(InputError, match="picture 2 is neither PNG nor JPEG"):
        embed_images([images[0], b"GIF"], 1_000_000)


def test_the_training_log_keeps_the_last_value_of_a_step_and_forgives_only_a_cut_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"kind": "step", "step": 2, "loss": 0.5, "seconds": {"wait": 1}}\n{"kind": "start"}\n'
        '{"kind": "step", "step": 1, "loss": 0.9}\n{"kind": "step", "step": 2, "loss": 0.4}\n{"kind": "st'
    )
    curves = read_training_log(path)
    assert [values.tolist() for values in curves["step/loss"]] == [[1, 2], [0.9, 0.4]]
    assert [values.tolist() for values in curves["step/seconds/wait"]] == [[2], [1]]
    path.write_text('{"kind": "st\n{"kind": "step", "step": 1, "loss": 0.9}\n')
    with pytest.raises(InputError, match="line 1 is not JSON"):
        read_training_log(path)


def test_the_running_mean_is_centred_and_skips_nan() -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0])
    np.testing.assert_allclose(smoothed(values), [1.5, 7 / 3, 3.0, 17 / 4, 5.0, 5.0])


def test_ticks_are_round_and_a_thinned_curve_keeps_its_corners() -> None:
    assert [text for _, text in even_ticks(0, 5000)] == ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]
    assert [text for _, text in even_ticks(-0.06, 0.44)] == ["0", "0.1", "0.2", "0.3", "0.4"]
    x, y = np.array([0, 0, 0.5, 1.0]), np.array([0, 1.0, 1.0, 1.0])
    assert [part.tolist() for part in thinned(x, y, (0, 1), (0, 1))] == [[0, 0, 1.0], [0, 1.0, 1.0]]


def test_evaluation_and_report_load_without_torch() -> None:
    names = "attention, bootstrap, compare, mccv, metrics, predictions, qupath, viewer, report.build"
    imports = "; ".join(f"import evaluate.{name}" for name in names.split(", "))
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; apt-get install chromium to draw the report")
@pytest.mark.parametrize(("width", "scheme"), [(1200, 0), (1200, 1), (420, 1)])
def test_chromium_draws_the_page_in_dark_and_light_and_on_a_phone(
    report: ReportFiles, tmp_path: Path, width: int, scheme: int
) -> None:
    shot = tmp_path / "report.png"
    arguments = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=2000",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1600",
        f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}", report.html.as_uri(),
    ]  # fmt: skip
    subprocess.run(arguments, check=True, capture_output=True, timeout=60)
    drawn = some(cv2.imread(str(shot)))
    assert drawn.shape == (1600, width, 3)
    background = drawn[4, 4].mean()
    assert background < 60 if scheme == 0 else background > 240
    assert (np.abs(drawn.astype(int) - drawn[4, 4]).max(axis=-1) > 40).mean() > 0.01  # something is written on it
