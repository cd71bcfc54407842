"""Figures, drawn by matplotlib: inline SVG for report pages, PNG where there is no page (notebooks).

In the SVG text stays text, and colours are the page's CSS variables, so that one figure serves light, dark and print.
"""

import dataclasses
import io
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from markupsafe import Markup

N_COLOURS = 6  # c0 .. c5 of the page
GLYPHS = {"o": "●○", "s": "■□", "D": "◆◇", "^": "▲△"}


@dataclasses.dataclass(frozen=True)
class Palette:
    """Colours of a figure, by their names on the page."""

    ink: str
    soft: str
    rule: str
    paper: str
    series: tuple[str, ...]  # c0 .. c5

    def style(self) -> dict[str, Any]:
        """What matplotlib has to know."""
        return {
            "svg.fonttype": "none", "svg.hashsalt": "ra3", "text.parse_math": False, "font.size": 9.0,
            "figure.facecolor": "none", "axes.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False,
            "axes.edgecolor": self.soft, "axes.labelcolor": self.soft, "xtick.color": self.soft,
            "ytick.color": self.soft, "text.color": self.ink, "axes.grid": True, "axes.grid.axis": "y",
            "grid.color": self.rule, "grid.linewidth": 0.6, "axes.linewidth": 0.7, "axes.axisbelow": True,
            "lines.linewidth": 1.4,
        }  # fmt: skip


# Colours that no figure needs, replaced by the page's variables.
PAGE = Palette("#010b01", "#010b02", "#010b03", "#010b04", tuple(f"#010b1{i}" for i in range(N_COLOURS)))
_VARIABLES = {PAGE.ink: "ink", PAGE.soft: "soft", PAGE.rule: "rule", PAGE.paper: "paper"}
_VARIABLES |= {c: f"c{i}" for i, c in enumerate(PAGE.series)}
# The values of a light page.
LIGHT = Palette(
    "#1b1f27", "#5b6472", "#dde1e7", "#ffffff", ("#6d7683", "#c2410c", "#1d4ed8", "#0f766e", "#9333ea", "#a16207")
)


@dataclasses.dataclass(frozen=True)
class LegendItem:
    glyph: str
    label: str
    colour: str  # CSS


@dataclasses.dataclass(frozen=True)
class Curve:
    """One series of a plot. A None or NaN in `y` breaks the line."""

    label: str  # "": not in the legend
    x: Sequence[float]
    y: Sequence[float | None]
    se: Sequence[float] | None = None  # half length of the error bars
    colour: int = 1  # c0 (grey) .. c5 of the page
    line: Literal["-", "--", ""] = "-"
    marker: Literal["", "o", "s", "D", "^"] = ""
    hollow: bool = False

    @property
    def legend(self) -> LegendItem:
        line = {"-": "━", "--": "╍", "": ""}[self.line]
        glyph = GLYPHS[self.marker][self.hollow] if self.marker else line
        return LegendItem(glyph, self.label, f"var(--c{self.colour % N_COLOURS})")


def curves_svg(
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    breaks: Sequence[float],
    size: tuple[float, float],
    label: str,
) -> "Markup":
    """Lines and points with error bars; vertical lines at `breaks`."""

    def draw(axes: Any) -> None:
        _draw_curves(axes, curves, PAGE, breaks)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.locator_params(axis="x", nbins=round(1.6 * size[0]))

    return inline_svg(draw, size, label)


def _draw_curves(axes: Any, curves: Sequence[Curve], palette: Palette, breaks: Sequence[float]) -> None:
    for at in breaks:
        axes.axvline(at, color=palette.rule, linewidth=0.8)
    for curve in curves:
        colour = palette.series[curve.colour % N_COLOURS]
        y = [math.nan if v is None else v for v in curve.y]
        face = palette.paper if curve.hollow else colour
        style = {"color": colour, "marker": curve.marker or None, "markersize": 5, "markerfacecolor": face}
        style["label"] = curve.label or "_"  # what begins with "_" is in no legend
        if curve.se is None:
            axes.plot(curve.x, y, linestyle=curve.line, **style)
        else:
            axes.errorbar(curve.x, y, curve.se, linestyle=curve.line, elinewidth=1, capsize=2.5, **style)
    axes.margins(x=0.03, y=0.08)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot of several."""

    title: str
    curves: Sequence[Curve]
    x_label: str
    breaks: Sequence[float] = ()  # x of vertical lines


def panels_png(panels: Sequence[Panel], *, columns: int = 2, size: tuple[float, float] = (4.2, 2.8)) -> bytes:
    """Plots side by side on white, each `size` inches at 100 dots an inch, with its legend where it has several curves.

    Raises ValueError without panels.
    """
    if not panels:
        raise ValueError("there is nothing to plot")
    import matplotlib.style
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", LIGHT.style()]):
        figure = Figure((columns * size[0], rows * size[1]), layout="constrained", facecolor=LIGHT.paper)
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, panel in zip(grid, panels, strict=False):
            _draw_curves(axes, panel.curves, LIGHT, panel.breaks)
            axes.set_title(panel.title, fontsize=9.5, loc="left")
            axes.set_xlabel(panel.x_label)
            if sum(bool(curve.label) for curve in panel.curves) > 1:
                axes.legend(frameon=False, fontsize=8)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def bars_svg(
    groups: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    size: tuple[float, float],
    label: str,
) -> "Markup":
    """Grouped bars over 1, 2, ..."""

    def draw(axes: Any) -> None:
        width = 0.8 / max(1, len(groups))
        for i, values in enumerate(groups.values()):
            at = [k + 1 + (i - (len(groups) - 1) / 2) * width for k in range(len(values))]
            axes.bar(at, values, width=0.92 * width, color=PAGE.series[i % N_COLOURS])
        axes.axhline(0, color=PAGE.soft, linewidth=0.8)
        axes.set_xticks(range(1, 1 + max(map(len, groups.values()), default=0)))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return inline_svg(draw, size, label)


def inline_svg(draw: Callable[[Any], None], size: tuple[float, float], label: str) -> "Markup":
    """What `draw(axes)` draws, to be put into a page: no ids but those it needs, which no other figure has."""
    import matplotlib.style
    from markupsafe import Markup, escape
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.style.context(["default", PAGE.style()]):
        figure = Figure(size, layout="constrained")
        draw(figure.subplots())
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    raw = buffer.getvalue()
    body = raw[raw.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', body))
    prefix = f"f{zlib.crc32((label + body).encode(errors='replace')):08x}-"
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    viewbox = re.search(r'viewBox="[^"]*"', body)
    assert viewbox, "matplotlib wrote an SVG without a viewBox"
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {viewbox[0]} '
    opening += f'role="img" aria-label="{escape(label)}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1))
