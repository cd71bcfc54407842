"""How an `Inspection` looks in a notebook: one table, styled in place, so that it needs nothing of the page around it.

Tints are translucent: they stand on light and on dark pages. Without any style it still reads as a table.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

    from ra3_jax.midtrain.inspection import Inspection, Line, Thought

from ra3_jax.core.report import visible

GREEN, RED, BLUE = "22,163,74", "220,38,38", "37,99,235"
SHOWN_THOUGHTS = 4
CODE = "font-family:ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap;text-align:left;vertical-align:bottom"
CELL = "padding:1px 8px;text-align:right;vertical-align:bottom;font-variant-numeric:tabular-nums"


def page(inspection: "Inspection") -> "Markup":
    """The whole piece. Everything that a model or a person wrote is escaped."""
    from markupsafe import Markup

    head = Markup('<tr><th style="{0}">thinks</th><th style="{0}">nats</th><th style="{0};text-align:left">code, '
                  'and the thoughts before each line</th></tr>').format(CELL)  # fmt: skip
    prompt = Markup('<tr><td></td><td></td><td style="{}">{}</td></tr>').format(
        CODE, visible(inspection.prompt.rstrip("\n"))
    )
    rows = [row(line, inspection.samples) for line in inspection.lines]
    return Markup('<div style="overflow-x:auto"><p><b>{}</b></p><table style="border-collapse:collapse">{}</table>'
                  "<p>{}</p></div>").format(
        visible(inspection.name), Markup("\n").join([head, prompt, *rows]), explanation(inspection)
    )  # fmt: skip


def explanation(inspection: "Inspection") -> str:
    """What the numbers are, and the code's own likelihood."""
    return (
        f"thinks: probability of a thought before the line. nats: -log p(line), thoughts given. Both are means over "
        f"{inspection.samples} rollouts, in which the model never saw the line that it decided before. After a "
        f"thought: how many rollouts wrote it, and its gain, the log-likelihood of the next {inspection.horizon} "
        f"lines with it minus without it. All of the code costs {inspection.nll:.2f} nats without thoughts, and at "
        f"most {inspection.iwae:.2f} with them (IWAE bound)."
    )


def row(line: "Line", samples: int) -> "Markup":
    """A line, its numbers, and its thoughts above it."""
    from markupsafe import Markup

    more = len(line.thoughts) - SHOWN_THOUGHTS
    above = [thought(t, samples) for t in line.thoughts[:SHOWN_THOUGHTS]]
    if more > 0:
        above.append(Markup('<div style="opacity:.6">… and {} more</div>').format(more))
    text = visible(line.text) if line.text else Markup('<span style="opacity:.6">(end of the program)</span>')
    return Markup(
        '<tr><td style="{cell};background:rgba({blue},{shade:.2f})">{think:.0%}</td><td style="{cell}">{nats:.2f}</td>'
        '<td style="{code}">{above}<div>{text}</div></td></tr>'
    ).format(
        cell=CELL, blue=BLUE, shade=0.6 * line.think, think=line.think, nats=line.nats, code=CODE,
        above=Markup("").join(above), text=text,
    )  # fmt: skip


def thought(found: "Thought", samples: int) -> "Markup":
    """The comment, tinted by its gain: green where it helps, red where it hurts, full at 2 nats."""
    from markupsafe import Markup

    shade = min(1.0, abs(found.gain) / 2) * 0.4
    return Markup(
        '<div><i style="background:rgba({},{:.2f})"># {}</i> '
        '<span style="opacity:.6">{} of {}, {:+.2f} nats</span></div>'
    ).format(GREEN if found.gain >= 0 else RED, shade, visible(found.text), found.rollouts, samples, found.gain)
