# SPDX-License-Identifier: Apache-2.0
"""Magnitude and agreement over layers: an SVG, drawn without any package, or a PNG where matplotlib is installed."""

import itertools
import math
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP = 900, 260, 70, 30
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


Lines = dict[str, dict[int, float]]  # name -> layer -> value


def draw(file: str, title: str, series: Lines, errors: dict[int, float]) -> str:
    """Two charts: `series` (rms by layer, on a logarithmic axis), and the experts' relative error by layer.

    Returns the name of what was written: FILE.png is FILE.svg where there is no matplotlib.
    """
    charts = {
        f"{title}: rms of what leaves each part": series,
        "relative error of the experts against float64": {"worst token": errors},
    }
    if not file.endswith(".png"):
        svg(file, charts)
        return file
    try:
        png(file, charts)
    except ImportError:
        file = file.removesuffix(".png") + ".svg"
        svg(file, charts)
    return file


def png(file: str, charts: dict[str, Lines]) -> None:
    """ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 80, len(charts) * HEIGHT / 60), layout="constrained")
    for axes, (heading, series) in zip(figure.subplots(len(charts), squeeze=False).flat, charts.items()):
        axes.set(title=heading, xlabel="layer", yscale="log")
        for colour, (name, line) in zip(itertools.cycle(COLOURS), series.items()):
            good = {layer: value for layer, value in sorted(line.items()) if math.isfinite(value) and value > 0}
            axes.plot(list(good), list(good.values()), color=colour, label=name, marker=".")
            for layer in line.keys() - good.keys():
                axes.plot(layer, 0.99, "x", color=colour, transform=axes.get_xaxis_transform())
        axes.legend()
    figure.savefig(file)


def svg(file: str, charts: dict[str, Lines]) -> None:
    """The same by hand."""
    parts = [chart(at * (HEIGHT + 60), heading, series) for at, (heading, series) in enumerate(charts.items())]
    total = len(charts) * (HEIGHT + 60)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 200}" height="{total}" font-family="sans-serif" '
    Path(file).write_text(
        head + 'font-size="12"><rect width="100%" height="100%" fill="white"/>' + "".join(parts) + "</svg>\n"
    )


def chart(y: int, title: str, series: Lines) -> str:
    """Lines over layers; what is not finite or 0 is a cross on the upper edge."""
    values = [v for line in series.values() for v in line.values() if math.isfinite(v) and v > 0]
    layers = sorted({layer for line in series.values() for layer in line})
    if not values or not layers:
        return f'<text x="{LEFT}" y="{y + TOP}">{escape(title)}: nothing to show</text>'
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)

    def at(layer: int, value: float) -> tuple[float, float]:
        x = LEFT + (layer - layers[0]) / max(layers[-1] - layers[0], 1) * (WIDTH - LEFT)
        part = (math.log10(value) - low) / (high - low) if math.isfinite(value) and value > 0 else 1.0
        return x, y + TOP + (1 - part) * (HEIGHT - TOP)

    parts = [f'<text x="{LEFT}" y="{y + TOP - 12}" font-weight="bold">{escape(title)}</text>']
    for power in range(low, high + 1):
        _, line = at(layers[0], 10.0**power)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{line:.1f}" y2="{line:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{line + 4:.1f}" text-anchor="end">1e{power}</text>')
    for layer in layers[:: max(1, len(layers) // 16)]:
        parts.append(f'<text x="{at(layer, 1)[0]:.1f}" y="{y + HEIGHT + 18}" text-anchor="middle">{layer}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [at(layer, line[layer]) for layer in sorted(line)]
        joined = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        bad = [at(layer, value) for layer, value in line.items() if not (math.isfinite(value) and value > 0)]
        parts += [f'<text x="{px:.1f}" y="{py:.1f}" fill="{colour}" text-anchor="middle">x</text>' for px, py in bad]
        parts.append(f'<text x="{WIDTH + 12}" y="{y + TOP + 18 * number + 12}" fill="{colour}">{escape(name)}</text>')
    return "".join(parts)
