"""Figures of the data card as SVG text, written by hand: same numbers, same bytes, and no plotting library."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH = 760
_FONT = 'font-family="Helvetica, Arial, sans-serif"'
_BAR, _LINE, _TEXT, _MUTED = "#4878a8", "#b04a3a", "#222222", "#666666"


def funnel_svg(steps: Sequence[tuple[str, int]]) -> str:
    """One bar per step from the widest to the last, with its count and its share of the step before.

    Args:
        steps: (name, count >= 0) in the order in which rows are left out.
    """
    row_height, label_width = 30, 270
    bar_width = WIDTH - label_width - 160
    widest = max((count for _, count in steps), default=0) or 1
    rows = []
    before: int | None = None
    for position, (name, count) in enumerate(steps):
        y = 12 + position * row_height
        length = bar_width * count / widest
        share = f" ({100 * count / before:.1f} %)" if before and count <= before else ""
        rows.append(
            f'<text x="{label_width - 10}" y="{y + 15}" text-anchor="end" fill="{_TEXT}">{escape(name)}</text>'
            f'<rect x="{label_width}" y="{y}" width="{length:.1f}" height="20" fill="{_BAR}"/>'
            f'<text x="{label_width + length + 8:.1f}" y="{y + 15}" fill="{_TEXT}">{count:,}{share}</text>'
        )
        before = count
    return _svg("What became of the rows", 24 + len(steps) * row_height, rows)


def histogram_svg(
    edges: Sequence[int], counts: Sequence[int], marks: Sequence[tuple[str, int]], x_label: str, y_label: str
) -> str:
    """Bars over `edges` with labelled vertical lines, as in Campanella et al. 2024, Figure 1c.

    Args:
        edges, counts: [B + 1] rising and [B]; B >= 1.
        marks: (name, position on the x axis), for example ("99 %", 27218).
    """
    left, right, top, height = 80, 30, 60, 240
    width = WIDTH - left - right
    span = edges[-1] - edges[0]
    tallest = max(counts) or 1
    bottom = top + height

    def x_at(value: float) -> float:
        return left + width * (value - edges[0]) / span

    rows = [
        f'<rect x="{x_at(low):.1f}" y="{bottom - height * count / tallest:.1f}" '
        f'width="{max(x_at(high) - x_at(low) - 1, 0.5):.1f}" height="{height * count / tallest:.1f}" fill="{_BAR}"/>'
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    rows.append(f'<line x1="{left}" y1="{bottom}" x2="{left + width}" y2="{bottom}" stroke="{_MUTED}"/>')
    for quarter in range(5):
        value = edges[0] + span * quarter / 4
        rows.append(
            f'<text x="{x_at(value):.1f}" y="{bottom + 18}" text-anchor="middle" fill="{_MUTED}">{value:,.0f}</text>'
        )
    rows.append(f'<text x="{left - 8}" y="{top + 5}" text-anchor="end" fill="{_MUTED}">{tallest:,}</text>')
    rows.append(f'<text x="{left - 8}" y="{bottom + 5}" text-anchor="end" fill="{_MUTED}">0</text>')
    for position, (name, value) in enumerate(marks):
        x, y = x_at(value), top - 12 - 15 * (position % 3)
        anchor = "end" if x > left + width / 2 else "start"
        rows.append(
            f'<line x1="{x:.1f}" y1="{y + 3}" x2="{x:.1f}" y2="{bottom}" stroke="{_LINE}" stroke-dasharray="4 3"/>'
            f'<text x="{x + (-5 if anchor == "end" else 5):.1f}" y="{y}" text-anchor="{anchor}" fill="{_LINE}">'
            f"{escape(name)} {value:,}</text>"
        )
    rows.append(
        f'<text x="{left + width / 2}" y="{bottom + 42}" text-anchor="middle" fill="{_TEXT}">{escape(x_label)}</text>'
    )
    rows.append(
        f'<text x="20" y="{top + height / 2}" text-anchor="middle" fill="{_TEXT}" '
        f'transform="rotate(-90 20 {top + height / 2})">{escape(y_label)}</text>'
    )
    return _svg(f"{y_label} by {x_label}", bottom + 56, rows)


def _svg(title: str, height: int, rows: Sequence[str]) -> str:
    body = "\n".join(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" {_FONT} font-size="13">\n<title>{escape(title)}</title>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )
