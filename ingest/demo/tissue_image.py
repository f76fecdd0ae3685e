"""H&E-like pictures of breast tissue and lymph nodes in which cancer differs by morphology, not by colour.

A picture is painted as layers (eosin, haematoxylin, clear space) in micrometres, then stained by Beer-Lambert's law
with vectors, strengths and a scanner tint drawn per slide, whatever the diagnosis. Benign tissue has two-layered
ducts and acini of small regular nuclei, and may be as crowded as a cancer (adenosis, hyperplasia, lymph node);
cancer has large, irregular, unequal nuclei in sheets, nests and cords. Drawn to teach a network and to test code:
not for judging pathologists. One random generator per slide: same seed, same pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float32]
Points = NDArray[np.float64]  # [N, 2] x, y in micrometres
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

Pattern = Literal[
    "normal", "fibrocystic", "fibroadenoma", "adenosis", "hyperplasia", "benign_node",
    "ductal_cancer", "lobular_cancer", "in_situ", "node_metastasis", "atypical",
]  # fmt: skip
Stain = Literal["routine", "frozen", "immuno"]
CANCER_PATTERNS: frozenset[Pattern] = frozenset({"ductal_cancer", "lobular_cancer", "in_situ", "node_metastasis"})
NODE_PATTERNS: frozenset[Pattern] = frozenset({"benign_node", "node_metastasis"})

COARSE_UM = 4.0  # raster of the maps that say which tissue grows where
SUBPIXEL_BITS = 4  # polygons are drawn at 1/16 px
SUBPIXEL = 1 << SUBPIXEL_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What to paint.

    Attributes:
        pattern: the tissue; those of `CANCER_PATTERNS` carry cancer (or carcinoma in situ).
        focus_share: part of the tissue area that carries the pattern's lesion, 0-1; the rest is its background.
        width_um, height_um: of the scanned area; tissue fills about half of it.
        mpp: micrometres per pixel of the scan.
        stain: "immuno" is brown on blue; "frozen" is blurred, with ice clefts.
        seed: of everything random.
    """

    pattern: Pattern
    focus_share: float
    width_um: float
    height_um: float
    mpp: float
    stain: Stain = "routine"
    seed: int


def paint(picture: Picture) -> Pixels:
    """The scan as uint8 RGB [height_um / mpp, width_um / mpp, 3]."""
    generator = np.random.default_rng(picture.seed)
    canvas = _Canvas(picture, generator)
    _PAINTERS[picture.pattern](canvas)
    canvas.draw_nuclei()
    return _stain(canvas, picture)


def paint_glass(width_um: float, height_um: float, mpp: float, seed: int) -> Pixels:
    """An empty slide as scanners see it: uneven light, noise and dust, and no tissue."""
    generator = np.random.default_rng(seed)
    height, width = round(height_um / mpp), round(width_um / mpp)
    dust = np.zeros((height, width), np.uint8)
    for x, y, radius in zip(*generator.uniform(0, 1, (3, 25)), strict=True):
        cv2.circle(
            dust, (int(x * width), int(y * height)), 1 + int(2 * radius), int(90 + 120 * radius), -1, cv2.LINE_AA
        )
    light = _vignette(generator, height, width) * (1 - cv2.GaussianBlur(dust, (0, 0), 1.0).astype(np.float32) / 700)
    rgb = light[..., None] * np.array([243, 243, 245], np.float32)
    return _digitise(rgb, generator, noise=1.5)


class _Canvas:
    """The layers of one picture while it is painted; positions are in micrometres."""

    def __init__(self, picture: Picture, generator: np.random.Generator) -> None:
        self.generator = generator
        self.mpp = picture.mpp
        self.focus_share = picture.focus_share
        self.width_um, self.height_um = picture.width_um, picture.height_um
        self.shape = (round(picture.height_um / picture.mpp), round(picture.width_um / picture.mpp))
        self.coarse_shape = (round(picture.height_um / COARSE_UM), round(picture.width_um / COARSE_UM))
        self.tissue = self._grow_tissue()
        self.focus = self._choose_focus()
        self.fibre_shift = [self._wave(95, 13), self._wave(95, 13)]
        self.fibre_angle = generator.uniform(0, np.pi)
        self.eosin = self._collagen()
        self.epithelium = np.zeros(self.shape, np.uint8)  # cover of cytoplasm, 0-255
        self.clear = np.zeros(self.shape, np.uint8)  # cover of lumen, fat and clefts, 0-255
        self.nuclei = np.zeros(self.shape, np.uint8)  # haematoxylin, 0-255
        self.basophilia = np.zeros(self.coarse_shape, np.float32)  # bluish ground substance, coarse
        self._pending: list[tuple[Points, _Nuclei]] = []

    # --- where tissue and lesion are -------------------------------------------------------------------------

    def _grow_tissue(self) -> Mask:
        """An irregular island, or two, or a core."""
        rows, columns = np.mgrid[: self.coarse_shape[0], : self.coarse_shape[1]].astype(np.float32)
        x, y = columns / self.coarse_shape[1] - 0.5, rows / self.coarse_shape[0] - 0.5
        x = x + 0.045 * noise(self.generator, self.coarse_shape, 30)
        y = y + 0.045 * noise(self.generator, self.coarse_shape, 30)
        ragged = 0.02 * noise(self.generator, self.coarse_shape, 5)
        angle = self.generator.uniform(0, np.pi)
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        shape = self.generator.choice(["island", "pair", "core"], p=[0.5, 0.25, 0.25])
        if shape == "pair":
            inside = np.minimum(np.hypot((u - 0.2) / 0.19, v / 0.33), np.hypot((u + 0.22) / 0.17, (v - 0.05) / 0.28))
        elif shape == "core":
            inside = np.hypot(u / 0.43, np.abs(v + 0.2 * u**2) / 0.22)
        else:
            inside = np.hypot(u / 0.37, v / 0.31)
        mask = (inside + ragged < 1.0) & (np.abs(columns / self.coarse_shape[1] - 0.5) < 0.46)
        return np.asarray(mask & (np.abs(rows / self.coarse_shape[0] - 0.5) < 0.46), np.bool_)

    def _choose_focus(self) -> Mask:
        """The `focus_share` of the tissue where a smooth random field is highest."""
        field = noise(self.generator, self.coarse_shape, 130 / COARSE_UM) + 0.15 * noise(
            self.generator, self.coarse_shape, 5
        )
        threshold = np.quantile(field[self.tissue], 1 - self.focus_share)
        return np.asarray(self.tissue & (field > threshold), np.bool_)

    def _wave(self, cell_um: float, amplitude_um: float) -> Floats:
        return amplitude_um * noise(self.generator, self.coarse_shape, cell_um / COARSE_UM)

    def at(self, map_coarse: Mask | Floats, points: Points) -> NDArray[np.generic]:
        """Values of a coarse map at positions."""
        columns = np.clip((points[:, 0] / COARSE_UM).astype(int), 0, self.coarse_shape[1] - 1)
        rows = np.clip((points[:, 1] / COARSE_UM).astype(int), 0, self.coarse_shape[0] - 1)
        return np.asarray(map_coarse[rows, columns])

    def enlarge(self, map_coarse: Mask | Floats) -> Floats:
        """A coarse map at full resolution, smoothly."""
        size = (self.shape[1], self.shape[0])
        return np.asarray(cv2.resize(map_coarse.astype(np.float32), size, interpolation=cv2.INTER_CUBIC), np.float32)

    def scatter(self, where: Mask, spacing_um: float) -> Points:
        """Random points of the region, densely packed but no two closer than `spacing_um`."""
        step = spacing_um * 0.5
        xs, ys = np.meshgrid(np.arange(0, self.width_um, step), np.arange(0, self.height_um, step))
        points = np.stack([xs.ravel(), ys.ravel()], axis=1)
        points = points + self.generator.uniform(-0.7, 0.7, points.shape) * step
        points = points[self.generator.permutation(len(points))]
        points = points[np.asarray(self.at(where, points), bool)]
        return thin_out(points, spacing_um)

    # --- stroma ----------------------------------------------------------------------------------------------

    def _collagen(self) -> Floats:
        """Wavy bundles: noise that is long along x and short along y, turned and bent. Painted at 0.5 mpp, enlarged."""
        mpp = max(self.mpp, 0.5)
        height, width = round(self.height_um / mpp), round(self.width_um / mpp)
        side = round(np.hypot(height, width) * 1.15)
        bundles = noise(self.generator, (side, side), (70 / mpp, 5 / mpp))
        fibres = noise(self.generator, (side, side), (28 / mpp, 1.6 / mpp))
        patches = noise(self.generator, (side, side), 60 / mpp)
        texture = (0.66 + 0.10 * bundles + 0.07 * fibres + 0.10 * patches).astype(np.float32)
        cleft = np.clip((-1.75 - (bundles + 0.45 * fibres + 0.3 * patches)) * 2.5, 0, 1)  # between bundles
        texture *= 1 - 0.9 * cleft
        cosine, sine = np.cos(self.fibre_angle), np.sin(self.fibre_angle)
        dx, dy = (cv2.resize(shift, (width, height), interpolation=cv2.INTER_CUBIC) / mpp for shift in self.fibre_shift)
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        x, y = columns - width / 2 + dx, rows - height / 2 + dy
        u = (x * cosine + y * sine + side / 2).astype(np.float32)
        v = (y * cosine - x * sine + side / 2).astype(np.float32)
        bent = cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        return self.enlarge(bent)

    def fibre_direction(self, points: Points) -> NDArray[np.float64]:
        """Angle of the fibres at positions, in radians."""
        fields = []
        for shift, (weight_x, weight_y) in zip(
            self.fibre_shift, ((-np.sin(self.fibre_angle), 0), (0, np.cos(self.fibre_angle))), strict=True
        ):
            weight = weight_x + weight_y
            fields.append([weight * np.gradient(shift, COARSE_UM, axis=axis) for axis in (1, 0)])
        slope_x = -np.sin(self.fibre_angle) + fields[0][0] + fields[1][0]
        slope_y = np.cos(self.fibre_angle) + fields[0][1] + fields[1][1]
        direction = np.arctan2(-slope_x, slope_y).astype(np.float32)  # along the lines of constant v
        return np.asarray(self.at(direction, points), np.float64)

    def fibroblasts(self, where: Mask, spacing_um: float) -> None:
        points = self.scatter(where, spacing_um)
        self.add_nuclei(points, _Nuclei(radius_um=2.5, spread=0.15, aspect=3.8, ragged=0.05, dark=0.75, stromal=True),
                        self.fibre_direction(points))  # fmt: skip

    def lymphocytes(self, where: Mask, spacing_um: float) -> None:
        self.add_nuclei(
            self.scatter(where, spacing_um),
            _Nuclei(radius_um=2.9, spread=0.08, aspect=1.08, ragged=0.03, dark=1.0, stromal=True),
        )

    def fat(self, where: Mask) -> None:
        """Bubbles with thin walls: the Voronoi cells of scattered points, each a little rounded."""
        centres = self.scatter(where, 33.0)
        if len(centres) < 3:
            return
        rows, columns = np.mgrid[: self.coarse_shape[0] * 2, : self.coarse_shape[1] * 2]
        grid = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1) * (COARSE_UM / 2)
        distances, _ = cKDTree(centres).query(grid, k=2)
        wall = (distances[:, 1] - distances[:, 0]).reshape(rows.shape)
        inside = np.minimum(wall - 2.2, 30.0 - distances[:, 0].reshape(rows.shape))
        doubled = cv2.resize(where.astype(np.uint8), rows.shape[::-1], interpolation=cv2.INTER_NEAREST)
        depth = cv2.distanceTransform(doubled, cv2.DIST_L2, 5) * (COARSE_UM / 2)
        inside = cv2.GaussianBlur(np.minimum(inside, depth - 2.0).astype(np.float32), (0, 0), 1.0)
        cover = np.clip(self.enlarge(inside) * 0.8 + 0.3, 0, 1)
        self.clear = np.maximum(self.clear, (cover * 255).astype(np.uint8))
        around = self.generator.uniform(0, 2 * np.pi, len(centres))
        flat = centres + 15.5 * np.stack([np.cos(around), np.sin(around)], axis=1)
        self.add_nuclei(flat, _Nuclei(radius_um=2.0, spread=0.1, aspect=3.2, ragged=0.05, dark=0.9), around + np.pi / 2)

    # --- epithelium ------------------------------------------------------------------------------------------

    def duct(self, centre: NDArray[np.float64], radius_um: float, *, lumen: float, contents: "_Nuclei | None" = None,
             squeeze: float = 1.0) -> None:  # fmt: skip
        """A duct or acinus: flat outer (myoepithelial) cells, one inner layer of regular cells, and a lumen.

        `lumen` is its radius as a share of the whole; `contents` fills it with cells instead.
        """
        generator = self.generator
        angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        ripple = _ripple(generator, angles, 0.05 if contents is None else 0.03)
        turn = generator.uniform(0, np.pi)

        def outline(radius: float, at_angles: NDArray[np.float64], ripples: NDArray[np.float64]) -> Points:
            x, y = radius * ripples * np.cos(at_angles), radius * ripples * np.sin(at_angles) * squeeze
            return np.asarray(centre + _turned(np.stack([x, y], axis=1), turn))

        self._fill(self.clear, outline(radius_um + 2.5, angles, ripple), 60)  # loose stroma around the duct
        self._fill(self.epithelium, outline(radius_um, angles, ripple), 255)
        self._fill(self.clear, outline(radius_um, angles, ripple), 0)
        perimeter = np.pi * radius_um * (1 + squeeze)
        outer = np.linspace(0, 2 * np.pi, max(5, int(perimeter / 15)), endpoint=False) + generator.uniform(0, 6)
        tangent = outer + np.pi / 2 + turn
        self.add_nuclei(outline(radius_um - 1.6, outer, np.interp(outer, angles, ripple, period=2 * np.pi)),
                        _Nuclei(radius_um=2.3, spread=0.12, aspect=2.6, ragged=0.04, dark=0.95), tangent)  # fmt: skip
        if contents is not None:
            self._fill_duct(centre, radius_um - 4.5, contents, squeeze, turn)
            return
        if lumen > 0.1:
            self._fill(self.clear, outline(radius_um * lumen, angles, _ripple(generator, angles, 0.09)), 240)
            self._fill(self.epithelium, outline(radius_um * lumen, angles, ripple), 30)
        middle = (radius_um - 3.5 + radius_um * max(lumen, 0.15)) / 2
        inner = np.linspace(0, 2 * np.pi, max(4, int(2 * np.pi * middle / 7.6)), endpoint=False)
        inner = inner + generator.normal(0, 0.05, len(inner))
        self.add_nuclei(
            outline(middle, inner, np.interp(inner, angles, ripple, period=2 * np.pi)), BENIGN, inner + turn
        )

    def _fill_duct(
        self, centre: NDArray[np.float64], radius_um: float, cells: "_Nuclei", squeeze: float, turn: float
    ) -> None:
        step = cells.radius_um * 2.0
        offsets = np.stack(np.meshgrid(*[np.arange(-radius_um, radius_um, step)] * 2), axis=-1).reshape(-1, 2)
        offsets = offsets + self.generator.uniform(-0.4, 0.4, offsets.shape) * step
        offsets = offsets[np.hypot(offsets[:, 0], offsets[:, 1]) < radius_um - cells.radius_um * 0.5]
        necrosis = 0.38 * radius_um if cells is not HYPERPLASTIC and radius_um > 45 else 0.0
        distance = np.hypot(offsets[:, 0], offsets[:, 1])
        kept = offsets[distance > necrosis]
        if cells is HYPERPLASTIC:  # slit-like second lumens at the edge
            for angle in self.generator.uniform(0, 2 * np.pi, int(self.generator.integers(2, 5))):
                slit = 0.55 * radius_um * np.array([np.cos(angle), np.sin(angle)])
                away = np.hypot(*(kept - slit).T) > 6.5
                kept = kept[away]
                ring = np.linspace(0, 2 * np.pi, 16, endpoint=False)
                size = np.stack([7.5 * np.cos(ring), 3.2 * np.sin(ring)], axis=1)
                self._fill(self.clear, centre + slit + _turned(size, angle + 1.2), 235)
        placed = centre + _turned(kept * [1.0, squeeze], turn)
        self.add_nuclei(placed, cells)
        if necrosis:
            ring = np.linspace(0, 2 * np.pi, 30, endpoint=False)
            edge = necrosis * _ripple(self.generator, ring, 0.1)
            self._fill(self.epithelium, centre + np.stack([edge * np.cos(ring), edge * np.sin(ring)], axis=1), 150)
            debris = centre + self.generator.normal(0, necrosis * 0.45, (int(necrosis * 0.9), 2))
            self.add_nuclei(debris, _Nuclei(radius_um=1.0, spread=0.4, aspect=1.4, ragged=0.2, dark=1.0))

    def sheet(self, where: Mask, cells: "_Nuclei", *, nest_um: float, cover: float) -> None:
        """Solid nests without order: cytoplasm over `cover` of the region, filled with `cells`."""
        field = noise(self.generator, self.coarse_shape, nest_um / COARSE_UM)
        if not where.any():
            return
        nests = where & (field > np.quantile(field[where], 1 - cover))
        smooth = cv2.GaussianBlur(nests.astype(np.float32), (0, 0), 0.7)
        cytoplasm = np.clip((self.enlarge(smooth) - 0.4) * 4, 0, 1)
        self.epithelium = np.maximum(self.epithelium, (cytoplasm * 255).astype(np.uint8))
        self.clear = np.minimum(self.clear, (255 * (1 - cytoplasm)).astype(np.uint8))
        self.add_nuclei(self.scatter(nests, cells.radius_um * 2.1), cells)

    def cords(self, where: Mask, cells: "_Nuclei", spacing_um: float) -> None:
        """Single files of cells that run along the fibres."""
        step = cells.radius_um * 2.1
        for start in self.scatter(where, spacing_um):
            file = [start]
            for _ in range(int(self.generator.integers(3, 9))):
                angle = float(self.fibre_direction(file[-1][None])[0]) + self.generator.normal(0, 0.15)
                file.append(file[-1] + step * np.array([np.cos(angle), np.sin(angle)]))
            line = np.array(file)
            line = line[np.asarray(self.at(where, line), bool)]
            if len(line) < 2:
                continue
            points = np.round(line / self.mpp * SUBPIXEL).astype(np.int32)
            thickness = max(1, round(cells.radius_um * 2.3 / self.mpp))
            cv2.polylines(self.epithelium, [points], False, 230, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
            self.add_nuclei(line + self.generator.normal(0, 0.6, line.shape), cells)

    # --- nuclei ----------------------------------------------------------------------------------------------

    def add_nuclei(self, points: Points, kind: "_Nuclei", angles: NDArray[np.float64] | None = None) -> None:
        """Queue nuclei; those outside the tissue are dropped. They are drawn last, over everything."""
        inside = np.asarray(self.at(self.tissue, points), bool)
        if angles is None:
            angles = self.generator.uniform(0, np.pi, len(points))
        self._pending.append((np.column_stack([points, angles])[inside], kind))

    def draw_nuclei(self) -> None:
        for placed, kind in self._pending:
            if kind.stromal:  # connective tissue cells do not lie in lumens, fat or epithelium
                columns, rows = np.clip((placed[:, :2] / self.mpp).astype(int), 0, np.array(self.shape[::-1]) - 1).T
                placed = placed[(self.epithelium[rows, columns] < 60) & (self.clear[rows, columns] < 90)]
            if len(placed):
                self._draw(placed, kind)

    def _draw(self, placed: Points, kind: "_Nuclei") -> None:
        generator, count = self.generator, len(placed)
        radius = kind.radius_um * np.exp(generator.normal(0, kind.spread, count))
        aspect = 1 + (kind.aspect - 1) * generator.uniform(0.7, 1.3, count)
        theta = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        ripple = 1 + sum(
            generator.normal(0, kind.ragged, (count, 1)) * np.cos(order * theta + generator.uniform(0, 6.3, (count, 1)))
            for order in (2, 3, 4, 5)
        )
        along = (radius * np.sqrt(aspect))[:, None] * ripple * np.cos(theta)
        across = (radius / np.sqrt(aspect))[:, None] * ripple * np.sin(theta)
        cosine, sine = np.cos(placed[:, 2])[:, None], np.sin(placed[:, 2])[:, None]
        outline = np.stack([along * cosine - across * sine, along * sine + across * cosine], axis=-1)
        outline_px = np.round((placed[:, None, :2] + outline) / self.mpp * SUBPIXEL).astype(np.int32)
        dark = np.clip(255 * kind.dark * generator.uniform(0.72, 1.0, count), 40, 255)
        open_chromatin = generator.uniform(0, 1, count) < kind.vesicular
        has_nucleolus = generator.uniform(0, 1, count) < kind.nucleolus
        spot = placed[:, :2] + generator.normal(0, 0.25, (count, 2)) * radius[:, None]
        spot_px = np.round(spot / self.mpp * SUBPIXEL).astype(np.int32)
        rim = max(1, round(0.6 / self.mpp))
        for index in range(count):
            colour = int(dark[index])
            polygon = [outline_px[index]]
            if open_chromatin[index]:
                cv2.fillPoly(self.nuclei, polygon, int(colour * 0.45), cv2.LINE_AA, SUBPIXEL_BITS)
                cv2.polylines(self.nuclei, polygon, True, colour, rim, cv2.LINE_AA, SUBPIXEL_BITS)
            else:
                cv2.fillPoly(self.nuclei, polygon, colour, cv2.LINE_AA, SUBPIXEL_BITS)
                cv2.polylines(self.nuclei, polygon, True, int(colour * 0.8), 1, cv2.LINE_AA, SUBPIXEL_BITS)
            if has_nucleolus[index]:
                size = max(SUBPIXEL, round(radius[index] * 0.24 / self.mpp * SUBPIXEL))
                cv2.circle(
                    self.nuclei, spot_px[index].tolist(), size, min(255, colour + 50), -1, cv2.LINE_AA, SUBPIXEL_BITS
                )

    def _fill(self, layer: Pixels, outline_um: Points, value: int) -> None:
        polygon = np.round(outline_um / self.mpp * SUBPIXEL).astype(np.int32)
        cv2.fillPoly(layer, [polygon], value, cv2.LINE_AA, SUBPIXEL_BITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nuclei:
    """A population of nuclei: mean radius, its log-normal spread, length to width, irregularity of the outline."""

    radius_um: float
    spread: float
    aspect: float
    ragged: float
    dark: float  # haematoxylin, 0-1
    vesicular: float = 0.0  # share with open chromatin and a dark rim
    nucleolus: float = 0.0  # share with a nucleolus
    stromal: bool = False  # left out where epithelium, fat or a lumen has been painted


BENIGN = _Nuclei(radius_um=3.5, spread=0.07, aspect=1.35, ragged=0.025, dark=0.85, vesicular=0.25, nucleolus=0.05)
HYPERPLASTIC = _Nuclei(radius_um=3.6, spread=0.12, aspect=1.55, ragged=0.04, dark=0.8, vesicular=0.3, nucleolus=0.1)
LYMPHOCYTE = _Nuclei(radius_um=2.9, spread=0.08, aspect=1.08, ragged=0.03, dark=1.0, stromal=True)
GERMINAL = _Nuclei(radius_um=3.9, spread=0.15, aspect=1.2, ragged=0.05, dark=0.6, vesicular=0.6, nucleolus=0.2)


def _malignant(generator: np.random.Generator) -> _Nuclei:
    """Of one slide: large, unequal, most with open chromatin and a nucleolus; no darker in sum than benign crowds."""
    return _Nuclei(
        radius_um=generator.uniform(6.2, 7.4),
        spread=generator.uniform(0.20, 0.30),
        aspect=generator.uniform(1.2, 1.5),
        ragged=generator.uniform(0.06, 0.10),
        dark=generator.uniform(0.55, 0.85),
        vesicular=generator.uniform(0.55, 0.95),
        nucleolus=generator.uniform(0.7, 1.0),
    )


# --- the patterns: each paints background and, in canvas.focus, its lesion -------------------------------------------


def _background(canvas: _Canvas, *, fat: float, lobules: bool = True) -> None:
    """Breast stroma with fat, a few normal ducts and lobules, and scattered lymphocytes."""
    rest = canvas.tissue & ~canvas.focus
    field = noise(canvas.generator, canvas.coarse_shape, 110 / COARSE_UM)
    if rest.any() and fat > 0:
        fatty = rest & (field > np.quantile(field[rest], 1 - fat))
        canvas.fat(fatty)
        rest = rest & ~fatty
    canvas.fibroblasts(rest, 17.0)
    canvas.lymphocytes(rest & (noise(canvas.generator, canvas.coarse_shape, 15) > 1.2), 9.0)
    if lobules:
        for centre in canvas.scatter(_shrunk(rest, 24), 135.0):
            if canvas.generator.uniform() < 0.5:
                _lobule(canvas, centre, 48.0, 13.0)
            else:
                canvas.duct(
                    centre, canvas.generator.uniform(20, 36), lumen=0.5, squeeze=canvas.generator.uniform(0.6, 1)
                )


def _lobule(canvas: _Canvas, centre: NDArray[np.float64], size_um: float, acinus_um: float) -> None:
    """A cluster of acini."""
    offsets = canvas.generator.uniform(-size_um, size_um, (40, 2))
    offsets = offsets[np.hypot(offsets[:, 0], offsets[:, 1]) < size_um]
    for offset in thin_out(offsets, 2.35 * acinus_um):
        radius = acinus_um * canvas.generator.uniform(0.8, 1.15)
        canvas.duct(centre + offset, radius, lumen=0.22, squeeze=canvas.generator.uniform(0.7, 1.0))


def _normal(canvas: _Canvas) -> None:
    _background(canvas, fat=canvas.generator.uniform(0.0, 0.3))
    canvas.fibroblasts(canvas.focus, 12.0)
    for centre in canvas.scatter(_shrunk(canvas.focus, 8), 92.0):
        _lobule(canvas, centre, 50.0, 13.0)


def _fibrocystic(canvas: _Canvas) -> None:
    _background(canvas, fat=canvas.generator.uniform(0.0, 0.2))
    canvas.fibroblasts(canvas.focus, 12.0)
    for centre in canvas.scatter(_shrunk(canvas.focus, 14), 105.0):
        canvas.duct(centre, canvas.generator.uniform(26, 48), lumen=0.78, squeeze=canvas.generator.uniform(0.7, 1))
    canvas.lymphocytes(canvas.focus & (noise(canvas.generator, canvas.coarse_shape, 14) > 0.5), 7.5)


def _fibroadenoma(canvas: _Canvas) -> None:
    """Cellular, bluish stroma that compresses ducts to slits."""
    _background(canvas, fat=canvas.generator.uniform(0.0, 0.3), lobules=False)
    canvas.basophilia += 0.05 * canvas.focus
    canvas.fibroblasts(canvas.focus, 9.5)
    for centre in canvas.scatter(_shrunk(canvas.focus, 8), 62.0):
        canvas.duct(centre, canvas.generator.uniform(22, 40), lumen=0.35, squeeze=canvas.generator.uniform(0.3, 0.45))


def _adenosis(canvas: _Canvas) -> None:
    """Crowded, compressed small acini: as many nuclei as a cancer, but small, even and two-layered."""
    _background(canvas, fat=canvas.generator.uniform(0.0, 0.35))
    canvas.fibroblasts(canvas.focus, 15.0)
    for centre in canvas.scatter(_shrunk(canvas.focus, 3), 23.0):
        canvas.duct(centre, canvas.generator.uniform(9.5, 13), lumen=0.15, squeeze=canvas.generator.uniform(0.5, 0.9))


def _hyperplasia(canvas: _Canvas) -> None:
    """Ducts filled with small overlapping nuclei around slit-like lumens."""
    _background(canvas, fat=canvas.generator.uniform(0.0, 0.35))
    canvas.fibroblasts(canvas.focus, 15.0)
    for centre in canvas.scatter(_shrunk(canvas.focus, 10), 72.0):
        canvas.duct(centre, canvas.generator.uniform(28, 36), lumen=0, contents=HYPERPLASTIC,
                    squeeze=canvas.generator.uniform(0.8, 1.0))  # fmt: skip


def _lymphoid(canvas: _Canvas, where: Mask) -> None:
    canvas.basophilia += 0.10 * where
    pulp = np.clip(canvas.enlarge(cv2.GaussianBlur(where.astype(np.float32), (0, 0), 1.0)), 0, 1)
    canvas.eosin = (
        canvas.eosin * (1 - pulp) + (0.42 + 0.06 * noise(canvas.generator, canvas.shape, 8 / canvas.mpp)) * pulp
    )
    field = noise(canvas.generator, canvas.coarse_shape, 16)
    centres = where & (field > 1.0)
    sinuses = where & (np.abs(noise(canvas.generator, canvas.coarse_shape, 22)) < 0.16)
    canvas.lymphocytes(where & ~centres & ~sinuses, 6.3)
    canvas.add_nuclei(canvas.scatter(centres & ~sinuses, 8.0), GERMINAL)
    canvas.add_nuclei(canvas.scatter(sinuses, 13.0), GERMINAL)


def _capsule(canvas: _Canvas) -> Mask:
    """The node inside its capsule; the capsule's own cells are placed."""
    inner = _shrunk(canvas.tissue, 14)
    canvas.fibroblasts(canvas.tissue & ~inner, 13.0)
    return inner


def _benign_node(canvas: _Canvas) -> None:
    inner = _capsule(canvas)
    hilum = inner & ~canvas.focus & (noise(canvas.generator, canvas.coarse_shape, 30) > 0.7)
    canvas.fat(hilum)
    _lymphoid(canvas, inner & ~hilum)


def _node_metastasis(canvas: _Canvas) -> None:
    inner = _capsule(canvas)
    tumour = inner & canvas.focus
    _lymphoid(canvas, inner & ~tumour)
    canvas.fibroblasts(tumour, 18.0)
    canvas.sheet(tumour, _malignant(canvas.generator), nest_um=40, cover=0.7)


def _ductal_cancer(canvas: _Canvas) -> None:
    _background(canvas, fat=canvas.generator.uniform(0.2, 0.7))
    canvas.fibroblasts(canvas.focus, 15.0)
    canvas.sheet(canvas.focus, _malignant(canvas.generator), nest_um=canvas.generator.uniform(28, 55),
                 cover=canvas.generator.uniform(0.55, 0.75))  # fmt: skip
    canvas.lymphocytes(canvas.focus & (noise(canvas.generator, canvas.coarse_shape, 12) > 1.3), 8.0)


def _lobular_cancer(canvas: _Canvas) -> None:
    _background(canvas, fat=canvas.generator.uniform(0.2, 0.7))
    canvas.fibroblasts(canvas.focus, 17.0)
    cells = _Nuclei(radius_um=canvas.generator.uniform(5.6, 6.4), spread=0.2, aspect=1.2, ragged=0.08,
                    dark=canvas.generator.uniform(0.5, 0.75), vesicular=0.6, nucleolus=0.8)  # fmt: skip
    canvas.cords(canvas.focus, cells, 30.0)
    canvas.sheet(canvas.focus & (noise(canvas.generator, canvas.coarse_shape, 12) > 0.9), cells, nest_um=30, cover=0.5)


def _in_situ(canvas: _Canvas) -> None:
    """Big round ducts, outer layer kept, filled with malignant cells; dead in the middle."""
    _background(canvas, fat=canvas.generator.uniform(0.0, 0.35))
    canvas.fibroblasts(canvas.focus, 15.0)
    cells = _malignant(canvas.generator)
    for centre in canvas.scatter(_shrunk(canvas.focus, 10), 96.0):
        canvas.duct(centre, canvas.generator.uniform(38, 56), lumen=0, contents=cells, squeeze=0.92)


def _atypical(canvas: _Canvas) -> None:
    """Between hyperplasia and carcinoma in situ; the report does not decide either."""
    _background(canvas, fat=0.2)
    canvas.fibroblasts(canvas.focus, 15.0)
    cells = _Nuclei(radius_um=4.2, spread=0.12, aspect=1.2, ragged=0.04, dark=0.8, vesicular=0.4, nucleolus=0.3)
    for centre in canvas.scatter(_shrunk(canvas.focus, 10), 84.0):
        canvas.duct(centre, canvas.generator.uniform(26, 36), lumen=0, contents=cells)


_PAINTERS: dict[Pattern, Callable[[_Canvas], None]] = {
    "normal": _normal,
    "fibrocystic": _fibrocystic,
    "fibroadenoma": _fibroadenoma,
    "adenosis": _adenosis,
    "hyperplasia": _hyperplasia,
    "benign_node": _benign_node,
    "ductal_cancer": _ductal_cancer,
    "lobular_cancer": _lobular_cancer,
    "in_situ": _in_situ,
    "node_metastasis": _node_metastasis,
    "atypical": _atypical,
}


# --- stain, light, camera ---------------------------------------------------------------------------------------------


def _stain(canvas: _Canvas, picture: Picture) -> Pixels:
    """Layers to light: optical densities of the stains add, then the camera sees 255 * 10^-density."""
    generator, mpp = np.random.default_rng([picture.seed, 1]), canvas.mpp  # its own: colour cannot know the pattern
    haematoxylin = _unit(np.array([0.60, 0.72, 0.33]) + generator.normal(0, 0.012, 3))
    eosin = _unit(np.array([0.14, 0.86, 0.46]) + generator.normal(0, 0.017, 3))
    if picture.stain == "immuno":
        eosin = _unit(np.array([0.27, 0.57, 0.78]))
    strength_h, strength_e = generator.uniform(0.66, 0.84), generator.uniform(0.34, 0.46)
    cytoplasm_e, cytoplasm_h = generator.uniform(0.55, 0.8), generator.uniform(0.08, 0.2)
    thickness = 1 + 0.08 * noise(generator, canvas.shape, 180 / mpp)

    edge = cv2.GaussianBlur(canvas.tissue.astype(np.float32), (0, 0), 0.8)
    tissue = np.clip((canvas.enlarge(edge) - 0.5) * 5 + 0.5, 0, 1)
    epithelium = canvas.epithelium.astype(np.float32) / 255
    opaque = 1 - canvas.clear.astype(np.float32) / 255
    if picture.stain == "frozen":
        opaque *= np.clip(1.5 - np.abs(noise(generator, canvas.shape, 9 / mpp)) * 0.5, 0.25, 1)
    grain = noise(generator, canvas.shape, 2.5 / mpp)
    chromatin = noise(generator, canvas.shape, 0.9 / mpp)
    nuclei = canvas.nuclei.astype(np.float32) / 255 * np.clip(1 + 0.16 * chromatin, 0.4, 1.5)
    matter = canvas.eosin * (1 - epithelium) + (cytoplasm_e + 0.08 * grain) * epithelium
    eosin_amount = np.clip(matter, 0, 1.5) * opaque * (1 - 0.55 * np.clip(nuclei, 0, 1)) * tissue * thickness
    ground = np.clip(canvas.enlarge(canvas.basophilia), 0, None) + 0.05
    haze = (ground * (1 - epithelium) + (cytoplasm_h + 0.03 * grain) * epithelium) * opaque
    haematoxylin_amount = (np.clip(haze, 0, None) + nuclei) * tissue * thickness

    density_h = cv2.GaussianBlur(haematoxylin_amount * strength_h, (0, 0), generator.uniform(0.3, 0.5) / mpp)
    density_e = cv2.GaussianBlur(eosin_amount * strength_e, (0, 0), generator.uniform(0.3, 0.5) / mpp)
    light = _vignette(generator, *canvas.shape) * 244
    tint = 1 + generator.normal(0, 0.008, 3)
    gamma = generator.uniform(0.95, 1.05)
    rgb = np.empty((*canvas.shape, 3), np.float32)
    for channel in range(3):
        density = density_h * haematoxylin[channel] + density_e * eosin[channel]
        rgb[..., channel] = light * tint[channel] * np.exp(-np.log(10) * gamma * density)
    if picture.stain == "frozen":
        rgb = cv2.GaussianBlur(rgb, (0, 0), 0.7 / mpp)
    return _digitise(rgb, generator, noise=generator.uniform(1.0, 2.5))


def _vignette(generator: np.random.Generator, height: int, width: int) -> Floats:
    """Uneven illumination, a few per cent, darkest at one side."""
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    centre_x, centre_y = generator.uniform(-0.4, 0.4, 2)
    light = 1 - generator.uniform(0.005, 0.02) * ((x - centre_x) ** 2 + (y - centre_y) ** 2)
    return np.asarray(light, np.float32)


def _digitise(rgb: Floats, generator: np.random.Generator, noise: float) -> Pixels:
    grain = generator.standard_normal(rgb.shape, dtype=np.float32)
    return np.asarray(np.clip(rgb + grain * noise, 0, 255), np.uint8)


# --- geometry ---------------------------------------------------------------------------------------------------------


def noise(generator: np.random.Generator, shape: tuple[int, int], cell_px: float | tuple[float, float]) -> Floats:
    """Smooth random field [height, width]: mean about 0, deviation about 1, features of `cell_px` (or x, y) pixels."""
    cell_x, cell_y = cell_px if isinstance(cell_px, tuple) else (cell_px, cell_px)
    height, width = shape
    rows, columns = int(height / max(cell_y, 1)) + 4, int(width / max(cell_x, 1)) + 4
    knots = generator.standard_normal((rows, columns), dtype=np.float32)
    size = (round(columns * max(cell_x, 1)), round(rows * max(cell_y, 1)))
    field = cv2.resize(knots, size, interpolation=cv2.INTER_CUBIC)
    top, left = round(1.5 * max(cell_y, 1)), round(1.5 * max(cell_x, 1))
    return np.asarray(field[top : top + height, left : left + width] * 1.35, np.float32)


def thin_out(points: Points, spacing: float) -> Points:
    """Drop points until no two are closer than `spacing`; earlier points stay."""
    if len(points) < 2:
        return points
    keep = np.ones(len(points), bool)
    for first, second in sorted(cKDTree(points).query_pairs(spacing)):
        if keep[first]:
            keep[second] = False
    return points[keep]


def _shrunk(mask: Mask, by_um: float) -> Mask:
    side = 2 * round(by_um / COARSE_UM) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.asarray(cv2.erode(mask.astype(np.uint8), kernel), np.bool_)


def _turned(offsets: Points, angle: float) -> Points:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.asarray(offsets @ np.array([[cosine, sine], [-sine, cosine]]))


def _ripple(generator: np.random.Generator, angles: NDArray[np.float64], amount: float) -> NDArray[np.float64]:
    """Factors around 1 for the radius of a closed outline."""
    waves = (generator.normal(0, amount) * np.cos(k * angles + generator.uniform(0, 6.3)) for k in (2, 3, 4, 5))
    return np.asarray(1 + sum(waves))


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))
