"""Tables that the field already has, through the command line: OPAL with tiles of a real file, CLAM, and back to CSV."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ingest.manifest import read_table
from ingest.svs import write_svs

ROOT = Path(__file__).parents[2]


def ingest(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ingest", *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)  # fmt: skip


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Twelve slides of six patients; every slide is the same small file with 4 x 3 tiles of 64 px."""
    write_svs(tmp_path / "slide.svs", np.full((200, 260, 3), 180, np.uint8), mpp=0.5, downsamples=(1,))
    slides, tiles, clam = (
        ["slide,patient,target,slide_path,mccv1"],
        ["slide,x,y,level,mult"],
        ["case_id,slide_id,label"],
    )
    for number in range(12):
        patient = f"INVENTED-{number // 2}"
        part = "val" if number // 2 in (1, 4) else "train"
        slides.append(f"scan{number:03d},{patient},{number // 2 % 2},{tmp_path / 'slide.svs'},{part}")
        tiles += [f"scan{number:03d},{column * 64},{64},0,1" for column in range(3)]
        clam.append(f"{patient},scan{number:03d},{'tumor_tissue' if number // 2 % 2 else 'normal_tissue'}")
    for name, lines in (("slide_data", slides), ("tile_data", tiles), ("clam", clam)):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_opal_tables_become_a_sound_manifest_without_their_identifiers(tables: Path) -> None:
    done = ingest("import", tables / "slide_data.csv", tables / "manifest", tables / "vault", "--tile-data",
                  tables / "tile_data.csv", "--tile-px", "64")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ingest("verify", tables / "manifest").returncode == 0
    rows = read_table(tables / "manifest", "tiles").to_pylist()
    assert [(row["num_tiles"], row["num_columns"], row["num_rows"]) for row in rows] == [(3, 4, 3)] * 12
    splits = read_table(tables / "manifest", "splits").to_pylist()
    assert {(row["scheme"], row["fold"]) for row in splits} == {("mccv1", 0)}
    assert sum(row["split"] == "tune" for row in splits) == 2
    text = b"".join(file.read_bytes() for file in (tables / "manifest").iterdir())
    assert b"INVENTED" not in text
    assert b"scan00" not in text


def test_a_clam_table_is_split_by_patient_and_goes_back_to_csv(tables: Path) -> None:
    done = ingest("import", tables / "clam.csv", tables / "manifest", tables / "vault", "--public-ids")
    assert done.returncode == 0, done.stderr
    done = ingest("export", tables / "manifest", tables / "out", "--layout", "clam")
    assert done.returncode == 0, done.stderr
    lines = (tables / "out" / "dataset.csv").read_text().splitlines()
    assert lines[0].startswith("case_id,slide_id,label")
    assert len(lines) == 13
    assert {line.split(",")[1] for line in lines[1:]} == {f"scan{number:03d}" for number in range(12)}


def test_a_split_table_with_a_patient_on_two_sides_is_red(tables: Path) -> None:
    table = (tables / "slide_data.csv").read_text().replace("scan002,INVENTED-1", "scan002,INVENTED-0")
    (tables / "leaking.csv").write_text(table)
    done = ingest("verify", tables / "leaking.csv")
    assert done.returncode == 4
    assert "error" in done.stderr
    assert "Traceback" not in done.stderr
