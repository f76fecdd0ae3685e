"""Paint and write the scans of the demo hospital, and break those that the plan wants broken."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from ingest.demo.hospital import Hospital, Scan
from ingest.progress import track

KEPT_OF_TRUNCATED = 0.6  # of the bytes; the directory of a BigTIFF lies behind the pixels, so it is lost
JPEG_QUALITY = 85


def write_slides(hospital: Hospital, folder: Path, num_workers: int = 2) -> int:
    """Write every scan of the plan into `folder`; the number of files written.

    The files do not depend on `num_workers`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scans = [scan for scan in hospital.scans() if scan.damage != "missing_file"]
    context = multiprocessing.get_context("spawn")  # fork of a process with threads may hang
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_one_thread) as pool:
        for _ in track(pool.map(partial(write_scan, folder=folder), scans), total=len(scans), title="demo slides"):
            pass
    return len(scans)


def write_scan(scan: Scan, folder: Path) -> None:
    """Paint one scan and write it, broken as planned."""
    from ingest.demo.tissue_image import paint, paint_glass
    from ingest.svs import write_svs

    picture = scan.picture
    if scan.damage == "blank":
        pixels = paint_glass(picture.width_um, picture.height_um, picture.mpp, picture.seed)
    else:
        pixels = paint(picture)
    path = folder / scan.file_name
    mpp = None if scan.damage == "no_mpp" else picture.mpp
    write_svs(path, pixels, mpp=mpp, quality=JPEG_QUALITY, scanner=scan.scanner)
    if scan.damage == "truncated":
        os.truncate(path, int(path.stat().st_size * KEPT_OF_TRUNCATED))


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)  # the pool uses the cores already
