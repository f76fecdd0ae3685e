"""Build a cohort with real breast pixels for the end-to-end test: `python real_pixels.py DATA_FOLDER OUTPUT_FOLDER`.

THE SPECIMENS ARE CONSTRUCTED. The source (IDC patches of Cruz-Roa and Janowczyk, 50 px at about 4 mpp, 97 patients, all
of whom have cancer) has a label per patch but no benign patients. For every patient with enough patches of both classes
two specimens are made: A of class-0 patches only, B that holds class-1 patches as well. A specimen is one slide: real
patches laid on the tile grid (50 px at 4 mpp) of a white canvas, in an order of our own. What is learned here is whether
the pipeline can learn from real pixels; an AUC measured on it says nothing about a clinical task.
The LIS rows are invented and follow `ingest/source/copath_schema.sql`. Same input, same output.
"""

import io
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.svs import write_svs

PATCHES = Path("tiles") / "idc_breast_patches.parquet"
SCHEMA_FILE = Path(__file__).parents[2] / "ingest" / "source" / "copath_schema.sql"
TILE_PX = 50
MPP = 4.0
WHITE = 255
MARGIN_TILES = 1  # white tiles around the tissue
MIN_CANCER_PATCHES = 3  # a patient with fewer is left out
MIN_BENIGN_PATCHES = 6
MAX_PATCHES = 24  # per specimen
BESIDE_CANCER = 1.0  # class-0 patches per class-1 patch in specimen B


@dataclass(frozen=True, slots=True, kw_only=True)
class RealCohort:
    """What was built; `labels` maps "accession/part" to "benign" or "cancer"."""

    database: Path
    slide_folder: Path
    labels: dict[str, str]
    num_patients: int


def build_cohort(data_folder: Path, output_folder: Path, max_patients: int | None = None) -> RealCohort:
    """Write `lis.sqlite` and `slides/*.svs`; two specimens per patient, one slide each."""
    patients = _read_patches(data_folder / PATCHES)
    chosen = [name for name, (benign, cancer) in sorted(patients.items())
              if len(benign) >= MIN_BENIGN_PATCHES and len(cancer) >= MIN_CANCER_PATCHES][:max_patients]  # fmt: skip
    slide_folder = output_folder / "slides"
    slide_folder.mkdir(parents=True, exist_ok=True)
    database = output_folder / "lis.sqlite"
    database.unlink(missing_ok=True)
    labels: dict[str, str] = {}
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(SCHEMA_FILE.read_text(encoding="utf-8"))
        for number, name in enumerate(chosen):
            accession = f"S21-{number + 1:05d}"
            for part, patches in zip("AB", _compose(*patients[name], seed=number), strict=True):
                _write_slide(slide_folder / f"{accession}-{part}.svs", patches, seed=number)
            _write_case(connection, number, accession)
            labels |= {f"{accession}/A": "benign", f"{accession}/B": "cancer"}
        connection.commit()
    return RealCohort(database=database, slide_folder=slide_folder, labels=labels, num_patients=len(chosen))


Patches = list[NDArray[np.uint8]]


def _read_patches(path: Path) -> dict[str, tuple[Patches, Patches]]:
    """Whole patches (some at slide edges are narrower) per patient, class 0 and class 1, in the order of the file."""
    import pyarrow.parquet as parquet
    from PIL import Image

    patients: dict[str, tuple[Patches, Patches]] = {}
    for row in parquet.read_table(path).to_pylist():
        patch = np.asarray(Image.open(io.BytesIO(row["png"])).convert("RGB"))
        if patch.shape == (TILE_PX, TILE_PX, 3):
            patients.setdefault(str(row["patient_id"]), ([], []))[int(row["label"])].append(patch)
    return patients


def _compose(benign: Patches, cancer: Patches, seed: int) -> tuple[Patches, Patches]:
    """Specimen A and specimen B of equal size; no patch is in both."""
    generator = np.random.default_rng(seed)
    benign = [benign[i] for i in generator.permutation(len(benign))]
    cancer = [cancer[i] for i in generator.permutation(len(cancer))]
    num_cancer = min(len(cancer), round(MAX_PATCHES / (1 + BESIDE_CANCER)))
    num_beside = min(round(num_cancer * BESIDE_CANCER), len(benign) // 2)
    with_cancer, rest = cancer[:num_cancer] + benign[:num_beside], benign[num_beside:]
    size = min(len(with_cancer), len(rest))
    return rest[:size], with_cancer[:size]


def _write_slide(path: Path, patches: Patches, seed: int) -> None:
    """Patches side by side in a block that is about square, on the tile grid, white around it."""
    order = np.random.default_rng(seed).permutation(len(patches))
    columns = int(np.ceil(np.sqrt(len(patches))))
    rows = -(-len(patches) // columns)
    shape = ((rows + 2 * MARGIN_TILES) * TILE_PX, (columns + 2 * MARGIN_TILES) * TILE_PX, 3)
    canvas = np.full(shape, WHITE, np.uint8)
    for place, index in enumerate(order):
        row, column = divmod(place, columns)
        top, left = (row + MARGIN_TILES) * TILE_PX, (column + MARGIN_TILES) * TILE_PX
        canvas[top : top + TILE_PX, left : left + TILE_PX] = patches[index]
    write_svs(path, canvas, mpp=MPP, quality=95, subsampling="444", downsamples=(1,), scanner="CONSTRUCTED")


def _write_case(connection: sqlite3.Connection, number: int, accession: str) -> None:
    patient, case = f"P{number + 1:04d}", f"{number + 1}"
    accessioned, signed = "2021-03-01 08:00:00", "2021-03-03 16:00:00"
    report = (
        "FINAL DIAGNOSIS:\n"
        "A. BREAST, LEFT, EXCISION, MARGIN:\n   - BENIGN BREAST TISSUE.\n   - NO EVIDENCE OF CARCINOMA.\n\n"
        "B. BREAST, LEFT, EXCISION, MASS:\n   - INVASIVE DUCTAL CARCINOMA."
    )
    rows: list[tuple[str, tuple[str | None, ...]]] = [
        ("r_pat_demograph", (patient, f"{7000000 + number}", None, None)),
        ("r_medrec", (patient, "NORTH", f"{number + 1:08d}")),
        ("c_specimen", (case, accession, "S", patient, "NORTH", accessioned, signed)),
        ("c_spec_text", (case, "$final", "0", report)),
    ]
    for part_number, part, title in ((1, "A", "MARGIN"), (2, "B", "MASS")):
        instance, barcode = str(part_number), f"{accession};{part}1;HE;1"
        rows += [
            ("p_part", (case, instance, part, "BREAST; EXCISION", f"LEFT BREAST, {title}")),
            ("p_block", (case, instance, "1", f"{part}1")),
            ("p_stainprocess", (case, instance, "1", "1", "HE", "H&E", barcode)),
            (
                "scanned_slides",
                (f"{accession}-{part}", barcode, f"{accession}-{part}.svs", "CONSTRUCTED", None, signed),
            ),
        ]
    for table, row in rows:
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: real_pixels.py DATA_FOLDER OUTPUT_FOLDER")
    cohort = build_cohort(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{cohort.num_patients} patients, {len(cohort.labels)} constructed specimens with one slide each")


if __name__ == "__main__":
    main()
