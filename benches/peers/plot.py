"""Tokens a second against batch as an SVG, one panel a model: every system, and the machine's limit as a line.

Both axes are logarithmic. The colours are those of Okabe and Ito, which colour-blind readers tell apart; each series
has a marker of its own as well.
"""

import math
import statistics
from xml.sax.saxutils import escape

from . import report, rows

COLUMNS, PANEL, GAP_X, GAP_Y = 2, (360, 250), 84, 88
LEFT, TOP, RIGHT, BOTTOM = 76, 132, 36, 70
INK, SOFT, GRID = "#222222", "#555555", "#e3e3e3"
STYLES = {  # colour, marker
    "chrysalis": ("#0072b2", "circle"),
    "ik_llama.cpp": ("#d55e00", "square"),
    "llama.cpp": ("#009e73", "triangle"),
    "candle": ("#cc79a7", "diamond"),
}
LIMIT = "the machine's limit"


def svg(state):
    panels = [(about["title"], series(state, model)) for model, about in state["models"].items()]
    panels = [(title, lines) for title, lines in panels if lines]
    count = -(-len(panels) // COLUMNS)
    width = LEFT + COLUMNS * PANEL[0] + (COLUMNS - 1) * GAP_X + RIGHT
    height = TOP + count * PANEL[1] + max(0, count - 1) * GAP_Y + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="13" role="img">',
        "<title>Decode speed against batch</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        words(LEFT, 32, "Decode speed against batch", size=18, weight="bold"),
        words(LEFT, 53, caption(state), size=12, fill=SOFT),
        *legend(panels),
    ]
    for index, (title, lines) in enumerate(panels):
        x = LEFT + index % COLUMNS * (PANEL[0] + GAP_X)
        y = TOP + index // COLUMNS * (PANEL[1] + GAP_Y)
        parts += panel(x, y, title, lines)
    return "\n".join([*parts, "</svg>", ""])


def caption(state):
    lengths = state["settings"]
    return (
        f"{state['machine']}, threads: {lengths['threads']}, after a prompt of {rows.BATCH_PROMPT} tokens; commit "
        f"{state['commit']}, {state['date']}"
    )


def series(state, model):
    """Points (batch, tokens a second) of each system that has any, and of the limit."""
    lines = {}
    for row in report.settings(state).rows():
        if not row.title.startswith("batch "):
            continue
        for name in state["systems"]:
            if found := report.values(state, model, row, name):
                lines.setdefault(name, []).append((row.job.batch, statistics.median(found.values())))
        if found := report.limits(state, model, row):
            lines.setdefault(LIMIT, []).append((row.job.batch, statistics.median(found.values())))
    return {name: sorted(points) for name, points in lines.items()}


def legend(panels):
    """One line of keys for all panels."""
    x, y = LEFT, 80
    names = dict.fromkeys(name for _, lines in panels for name in lines)
    for name in sorted(names, key=lambda name: [*STYLES, LIMIT].index(name)):
        yield from stroke(name, [(x, y - 4), (x + 28, y - 4)], [(x + 14, y - 4)])
        yield words(x + 35, y, name)
        x += 60 + 8 * len(name)


def panel(x, y, title, lines):
    """Axes, grid and lines of one model, with its upper left corner at (x, y)."""
    width, height = PANEL
    batches = sorted({batch for points in lines.values() for batch, _ in points})
    rates = [rate for points in lines.values() for _, rate in points]
    ticks = rate_ticks(min(rates), max(rates))
    at_x = scale(batches[0], batches[-1], x + 18, x + width - 18)
    at_y = scale(ticks[0], ticks[-1], y + height, y)
    yield words(x, y - 12, title, weight="bold")
    for tick in ticks:
        yield line(x, at_y(tick), x + width, at_y(tick), GRID)
        yield words(x - 8, at_y(tick) + 4, f"{tick:,}", anchor="end", fill=SOFT)
    for batch in batches:
        yield line(at_x(batch), y + height, at_x(batch), y + height + 5, SOFT)
        yield words(at_x(batch), y + height + 20, str(batch), anchor="middle", fill=SOFT)
    yield line(x, y + height, x + width, y + height, SOFT)
    yield words(x + width / 2, y + height + 40, "sequences at once", anchor="middle", fill=SOFT)
    middle = y + height / 2
    yield words(x - 58, middle, "tokens/s", anchor="middle", fill=SOFT, turn=f"rotate(-90 {x - 58} {middle:.1f})")
    for name in sorted(lines, key=lambda name: name == report.OURS):
        points = [(at_x(batch), at_y(rate)) for batch, rate in lines[name]]
        yield from stroke(name, points, points)


def rate_ticks(low, high):
    """1, 2, 5, 10, ... from below the lowest to above the highest; powers of ten alone when they are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = [step * 10**power for power in range(first, last + 1) for step in (1, 2, 5) if power >= 0] or [1]
    begin = max([0] + [index for index, tick in enumerate(steps) if tick <= low])
    end = min([len(steps) - 1] + [index for index, tick in enumerate(steps) if tick >= high and index > begin])
    ticks = steps[begin : end + 1]
    return ticks if len(ticks) > 1 else [ticks[0], ticks[0] * 10]


def scale(low, high, start, end):
    """Values from `low` to `high` on a logarithmic axis from `start` to `end`."""
    span = math.log(high / low) if high > low else 1.0
    return lambda value: start + (end - start) * (math.log(value / low) / span if high > low else 0.5)


def stroke(name, points, marks):
    colour, marker = STYLES.get(name, (INK, None))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="6 4"' if name == LIMIT else ""
    width = 3 if name == report.OURS else 1.8
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'
    for x, y in marks if marker else []:
        yield mark(marker, x, y, colour)


def mark(kind, x, y, colour):
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
    corners = {
        "square": [(-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)],
        "triangle": [(0, -6), (5.5, 4.5), (-5.5, 4.5)],
        "diamond": [(0, -6), (5, 0), (0, 6), (-5, 0)],
    }[kind]
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}" fill="{colour}"/>'


def line(x1, y1, x2, y2, colour):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def words(x, y, text, size=13, weight="normal", anchor="start", fill=INK, turn=""):
    turn = f' transform="{turn}"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{fill}"{turn}>{escape(text)}</text>'
    )
