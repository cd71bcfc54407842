"""Report pages: one self-contained HTML file a run. No script, nothing loaded, light and dark, printable.

A room builds pieces (`table`, `plot`, `program`, ...), puts them into sections and calls `render_page`. The look lies
in report.html.j2 beside this file. Every piece escapes its text, since what a model wrote may hold any markup; what is
HTML already is markupsafe's `Markup`, and nothing else passes unescaped.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from markupsafe import Markup

from ra3_jax.core.figures import N_COLOURS, Curve, LegendItem, bars_svg, curves_svg
from ra3_jax.core.metrics import read_metrics
from ra3_jax.core.rundir import flatten
from ra3_jax.core.stats import Estimate

Tone = Literal["plain", "good", "bad"]
Records = Sequence[Mapping[str, Any]]

METRIC_HELP = {
    "loss": "What the optimizer minimises: next-token loss, or the policy-gradient loss (its value means little).",
    "grad_norm": "L2 norm of the gradient before clipping.",
    "lr": "Learning rate of the update.",
    "nll/code": "Negative log-likelihood of the expert's tokens, given the thoughts before them; nats per token.",
    "nll/latent": "Negative log-likelihood of the thoughts' own tokens; nats per token.",
    "reward": "Mean line reward of the rollouts (per program in annotation, per line while training).",
    "return": "Mean return: line rewards summed over the horizon.",
    "entropy": "Entropy of the act/think decision, nats per decision. Near 0: the decision has become deterministic.",
    "kl": "KL divergence to the reference policy, k3 estimate per action.",
    "latent/think_rate": "Thoughts per line. Near 0: the policy has stopped thinking.",
    "latent/mean_len": "Tokens of a thought.",
    "elbo/recon": "Log-likelihood of the code given the thoughts, nats per token.",
    "elbo/penalty": "c times the thoughts per line.",
    "elbo/rationale_entropy": "Entropy of a thought's text, nats per thought.",
    "clip_ratio/low_mean": "Share of actions whose probability ratio is clipped from below.",
    "clip_ratio/high_mean": "Share of actions whose probability ratio is clipped from above.",
    "mismatch/mean": "Mean |log-ratio| of the trained policy (scorer) to the one that sampled (sampler).",
    "perf/tokens_per_s": "Trained tokens per second.",
    "perf/pack_fill": "Share of the slots of packed rows that hold a token.",
}


# --- text ----------------------------------------------------------------------------------------


# Characters that would not show, or would show other code than there is (bidirectional overrides).
_INVISIBLE = {
    **{c: f"\\x{c:02x}" for c in (*range(32), *range(0x7F, 0xA0)) if chr(c) not in "\t\n"},
    **{c: f"\\u{c:04x}" for c in (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A))},
    **{c: f"\\u{c:04x}" for c in (0x061C, 0x2028, 0x2029, 0xFEFF)},
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),  # lone surrogates: no UTF-8
}


def visible(value: Any) -> Any:
    """Text with its invisible characters written out; anything else (HTML pieces too) as it is."""
    return value.translate(_INVISIBLE) if type(value) is str else value


@functools.cache
def _pieces() -> Any:
    """The macros of report.html.j2."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").module


def prose(text: str) -> "Markup":
    """A paragraph."""
    return _pieces().prose(text)


def points(texts: Sequence[str]) -> "Markup":
    """A list."""
    return _pieces().points(texts)


def note(text: str, tone: Tone = "plain") -> "Markup":
    """A remark that stands out: a missing part, a warning."""
    return _pieces().note(text, tone)


def heading(text: str) -> "Markup":
    """A heading below a section's."""
    from markupsafe import Markup

    return Markup("<h3>{}</h3>").format(visible(text))


def facts(pairs: Iterable[tuple[str, Any]]) -> "Markup":
    """Names and values, in columns."""
    return _pieces().facts([(name, plain_value(value)) for name, value in pairs])


def glossary(terms: Iterable[tuple[str, "str | Markup"]]) -> "Markup":
    return _pieces().glossary(list(terms))


def fold(summary: str, *body: "Markup") -> "Markup":
    """A part that is closed at first."""
    from markupsafe import Markup

    return _pieces().fold(summary, Markup("\n").join(body))


def grid(items: Sequence["Markup"], least: str = "22rem") -> "Markup":
    """Pieces side by side, each at least `least` (CSS length) wide, as many a row as fit."""
    return _pieces().grid(items, least)


def program(pieces: Sequence[tuple[str, bool]], title: str = "", note: str = "", limit: int = 20_000) -> "Markup":
    """(text, is a thought) pieces of a program, the thoughts highlighted; at most `limit` characters of it."""
    kept, room = [], limit
    for text, thought in pieces:
        if room <= 0:
            break
        kept.append((text[:room], thought))
        room -= len(text)
    if (cut := sum(len(text) for text, _ in pieces) - limit) > 0:
        kept.append((f"\n[{cut} more characters]", False))
    return _pieces().program(title, note, _lines(kept))


def _lines(pieces: Sequence[tuple[str, bool]]) -> list[list[tuple[str, bool]]]:
    """The same pieces line by line, without the newlines."""
    lines: list[list[tuple[str, bool]]] = [[]]
    for text, thought in pieces:
        first, *others = text.split("\n")
        lines[-1].append((first, thought))
        lines += [[(other, thought)] for other in others]
    lines = [[(text, thought) for text, thought in line if text] for line in lines]
    return lines if lines[-1] else lines[:-1]


def comment_pieces(source: str) -> list[tuple[str, bool]]:
    """Pieces for `program` where nobody recorded the thoughts: lines that begin with "#" count as such."""
    return [(line, line.lstrip().startswith("#")) for line in source.splitlines(keepends=True)]


def plain_value(value: Any) -> str:
    """A setting as people write it, numbers in full."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, list | tuple):
        return ", ".join(map(plain_value, value)) or "none"
    return str(value)


# --- tables --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Column:
    name: str
    better: Literal["higher", "lower", ""] = ""  # which values are emphasised
    help: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """`text` as printed; a part from " ± " on goes below the number. `value`: what is compared within the column."""

    text: str
    value: float | None = None


def table(columns: Sequence[Column | str], rows: Sequence[Sequence[Cell | str]], caption: str = "") -> "Markup":
    """First column left-aligned; the best value of each column that has a direction is emphasised.

    Raises ValueError on ragged rows.
    """
    heads = [Column(c) if isinstance(c, str) else c for c in columns]
    cells = [[Cell(x) if isinstance(x, str) else x for x in row] for row in rows]
    for row in cells:
        if len(row) != len(heads):
            raise ValueError(f"table {caption!r}: {len(row)} cells for {len(heads)} columns")
    best = [_best(head, [row[i].value for row in cells]) for i, head in enumerate(heads)]

    def shown(cell: Cell, best: float | None) -> dict[str, Any]:
        main, mark, detail = cell.text.partition(" ± ")
        emphasised = best is not None and cell.value == best
        return {"main": main, "detail": mark.lstrip() + detail, "best": emphasised}

    return _pieces().table(heads, [[shown(c, b) for c, b in zip(row, best, strict=True)] for row in cells], caption)


def _best(column: Column, values: Sequence[float | None]) -> float | None:
    """The best of at least two values that are not all the same."""
    found = [x for x in values if x is not None and math.isfinite(x)]
    if not column.better or len(set(found)) < 2:
        return None
    return max(found) if column.better == "higher" else min(found)


# --- figures -------------------------------------------------------------------------------------


def plot(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    caption: str = "",
    breaks: Sequence[float] = (),
    size: tuple[float, float] = (5.2, 2.9),
) -> "Markup":
    """Curves and points with error bars, as a figure with its legend.

    `breaks`: x of vertical lines; `size` in inches of 9 point text.
    """
    svg = curves_svg(curves, x_label=x_label, y_label=y_label, breaks=breaks, size=size, label=visible(title))
    legend = [curve.legend for curve in curves if curve.label] if len(curves) > 1 else []
    return _pieces().figure(svg, title, legend, caption)


def bars(
    groups: Mapping[str, Sequence[float]],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    caption: str = "",
    size: tuple[float, float] = (5.2, 2.6),
) -> "Markup":
    """Grouped bars over 1, 2, ...; groups may differ in length."""
    svg = bars_svg(groups, x_label=x_label, y_label=y_label, size=size, label=visible(title))
    legend = [LegendItem("■", name, f"var(--c{i % N_COLOURS})") for i, name in enumerate(groups)]
    return _pieces().figure(svg, title, legend if len(groups) > 1 else [], caption)


# --- metrics -------------------------------------------------------------------------------------


def load_metrics(path: Any) -> tuple[list[dict[str, Any]], str]:
    """(lines of a metrics file, what is wrong with it or ""). A report must not fail over a broken file."""
    if not path.exists():
        return [], f"There is no {path.name}: no curves."
    try:
        records = read_metrics(path)
    except (ValueError, OSError) as error:
        return [], f"No curves, {path.name} cannot be read: {error}"
    return records, "" if records else f"{path.name} is empty: no curves."


def of_phase(records: Records, phase: str) -> list[dict[str, Any]]:
    """The lines of one phase, `step` counting the steps of this phase alone.

    Of several lines of one round and step the last counts: a resumed run may have written twice.
    """
    found: dict[tuple[Any, int], dict[str, Any]] = {}
    previous = done = own = start = 0
    inside = False
    for record in records:
        here = record.get("phase") == phase
        if here and not inside:
            start, done = previous, own
        if here:
            own = done + record["step"] - start
            found[record.get("round"), record["step"]] = {**record, "step": own}
        inside = here
        if record.get("phase") != "annotate":  # whose line stands at the first update that learns from it
            previous = record["step"]
    return list(found.values())


def metric_curve(records: Records, name: str, label: str = "", colour: int = 1, limit: int = 300) -> Curve | None:
    """One metric by step, broken between rounds, averaged over neighbours down to about `limit` points.

    None where no record has a value.
    """
    rounds: dict[Any, list[tuple[float, float]]] = {}
    for record in records:
        if isinstance(value := record.get(name), int | float) and math.isfinite(value):
            rounds.setdefault(record.get("round"), []).append((record["step"], value))
    if not rounds:
        return None
    total = sum(map(len, rounds.values()))
    bucket = math.ceil(total / limit)
    x, y = [], []
    for found in rounds.values():
        for i in range(0, len(found), bucket):
            part = found[i : i + bucket]
            x.append(sum(p[0] for p in part) / len(part))
            y.append(sum(p[1] for p in part) / len(part))
        x.append(math.nan)
        y.append(math.nan)
    return Curve(label or name, x[:-1], y[:-1], colour=colour, marker="o" if total <= 12 else "")


def panels(records: Records, names: Sequence[str], x_label: str = "update", colour: int = 1) -> list["Markup"]:
    """A small plot for each of `names` that was recorded, with what it means; vertical lines between rounds."""
    ends = {record.get("round"): record["step"] for record in records}  # of each round
    out = []
    for name in names:
        if curve := metric_curve(records, name, colour=colour):
            out.append(
                plot([curve], title=name, x_label=x_label, caption=METRIC_HELP.get(name, ""),
                     breaks=list(ends.values())[:-1], size=(3.1, 2.0))
            )  # fmt: skip
    return out


# --- the page ------------------------------------------------------------------------------------


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b with the standard error of independent estimates; conservative where both saw the same units."""
    return Estimate(a.mean - b.mean, math.hypot(a.se, b.se), min(a.n, b.n))


@dataclasses.dataclass(frozen=True)
class Headline:
    """The result in one sentence, and what else has to be said with it."""

    verdict: str
    tone: Tone = "plain"
    body: Sequence["Markup"] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    id: str
    title: str
    body: Sequence["Markup"]


def render_page(title: str, subtitle: str, headline: Headline, sections: Sequence[Section], footer: str = "") -> str:
    """The whole file."""
    return str(_pieces().page(title, subtitle, headline, sections, footer)).strip() + "\n"


def fragment(*body: "Markup") -> str:
    """Pieces for the output of a notebook's cell: the page's look, kept to these pieces alone."""
    from markupsafe import Markup

    css = str(_pieces().style()).replace(":root {", "& {").replace("\nbody {", "\n& {")
    look = Markup('<div class="ra3"><style>.ra3 {{\n{}}}</style>\n{}</div>')
    return str(look.format(Markup(css), Markup("\n").join(body)))


def settings(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> list["Markup"]:
    """A resolved config: what differs from the defaults, and, folded, all of it."""
    now, usual = flatten(saved), flatten(defaults)
    changed = [(name, value) for name, value in now.items() if name not in usual or usual[name] != value]
    first = facts(changed) if changed else prose("All settings have their default values.")
    return [
        heading("Settings that differ from the defaults"),
        first,
        fold(f"All {len(now)} settings", facts(now.items())),
    ]


def environment_facts(saved: Mapping[str, Any]) -> "Markup":
    """Device, git revision and versions, as config.json holds them."""
    device = saved.get("device") or {}
    pairs = [("git revision", saved.get("git") or "not in a checkout")]
    pairs += [(f"device {name}", value) for name, value in device.items()]
    return facts([*pairs, *(saved.get("versions") or {}).items()])
