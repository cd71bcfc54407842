"""report.html of a mid-training run: what came out, in words first, then tables, curves, programs, settings.

Whatever a run did not produce (tasks, the NTP baseline, a trained E-step, metrics) is said to be missing.
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

from ra3_jax.core import report as page
from ra3_jax.core.figures import Curve
from ra3_jax.core.report import Cell, Column, Section
from ra3_jax.core.rundir import RunDir, is_main_process, to_json
from ra3_jax.core.stats import Estimate
from ra3_jax.midtrain.config import MidTrainConfig
from ra3_jax.midtrain.measure import TABLE_COLUMNS, Row, table_rows
from ra3_jax.midtrain.report_terms import COLUMN_HELP, GLOSSARY
from ra3_jax.midtrain.verdict import STOPPED_THINKING, bound, budget, headline, mega_units, of_kind

Pieces = list[tuple[str, bool]]
MSTEP_CURVES = ("loss", "nll/code", "nll/latent", "grad_norm")
ESTEP_CURVES = (
    *("latent/think_rate", "reward", "entropy", "latent/mean_len", "elbo/recon", "elbo/rationale_entropy"),
    *("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "mismatch/mean"),
)
UNITS = "compute since the base, M units"


def write_report(
    run: RunDir,
    config: MidTrainConfig,
    rows: Sequence[Row],
    shown: Sequence[Pieces],
    findings: Mapping[str, Any],
) -> None:
    """Writes `run.report`.

    `shown`: annotated held-out programs as (text, is a thought) pieces; `findings`: what the job put into summary.json.
    """
    if not is_main_process():
        return  # only process 0 writes, and only its disk is sure to hold the metrics
    records, problem = page.load_metrics(run.metrics)
    sections = [
        Section("scores", "Scores", scores(rows)),
        Section("compute", "Scores against compute", against_compute(rows)),
        Section("programs", "What the model writes", programs(rows, shown)),
        Section("thoughts", "Thoughts", thoughts(config, records, findings)),
        Section("training", "Training curves", training(run, config, records, problem)),
        Section("diagnostics", "Diagnostics", diagnostics(rows)),
        Section("settings", "Settings", settings(run, config, records, findings)),
        Section("glossary", "Terms", [page.glossary(_terms())]),
    ]
    method = "RA3" if config.method == "ra3" else "NTP"
    now = datetime.datetime.now(datetime.UTC)
    html = page.render_page(
        f"Mid-training with {method}: {config.model} on {config.data.corpus}",
        f"{run.path} · {now:%Y-%m-%d %H:%M} UTC",
        headline(config, rows, findings),
        sections,
        "Made by ra3_jax from metrics.jsonl, results.json and config.json of this run directory.",
    )
    run.write("report.html", html)


# --- scores --------------------------------------------------------------------------------------


def scores(rows: Sequence[Row]) -> list["Markup"]:
    """The final table, as in the terminal, with the notes of its rows."""
    if not rows:
        return [page.note("No checkpoint was measured.", "bad")]
    columns = [Column(name, *COLUMN_HELP[name]) for name in TABLE_COLUMNS]
    texts = table_rows(rows)
    for i, column in enumerate(columns):  # "(K=16)" in every cell is said once, in the head
        endings = {m[0] for line in texts if (m := re.search(r" \([Kk]=\d+\)$", line[i]))}
        if len(endings) == 1:
            ending = endings.pop()
            columns[i] = dataclasses.replace(column, name=column.name + ending)
            texts = [[*line[:i], line[i].removesuffix(ending), *line[i + 1 :]] for line in texts]
    cells = [
        [Cell(text, _compared(row).get(name)) for name, text in zip(TABLE_COLUMNS, line, strict=True)]
        for row, line in zip(rows, texts, strict=True)
    ]
    out = [page.table(columns, cells, "Held-out likelihood in nats, and fresh tasks; ± one standard error")]
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(row.note, []).append(row.name)
    if notes := [f"{', '.join(who)}: {note}" for note, who in names.items() if note]:
        out.append(page.points(notes))
    out.append(
        page.prose(
            "Emphasised: the best value of a column, however small its lead. NLL is that of the code without thoughts: "
            "not comparable with models that think; best/tok is. Compute counts everything since the base: sampling, "
            "scoring and training; trials of other learning rates are not counted."
        )
    )
    return out


def _compared(row: Row) -> dict[str, float]:
    """Numbers of the columns in which a best value is emphasised."""
    b, p = row.bounds, row.passes
    values = {"ELBO/tok": b.elbo.mean, "IWAE/tok": b.iwae.mean, "best/tok": b.best.mean, "nats/byte": b.best_per_byte}
    if p:
        values |= {"pass@1": p.pass_at[1].mean, "pass@k": p.pass_at[max(p.pass_at)].mean}
    return values


def against_compute(rows: Sequence[Row]) -> list["Markup"]:
    """pass@k and the bound over compute, with error bars."""
    if not rows:
        return [page.note("No checkpoint was measured.", "bad")]
    figures, out = [], []
    tested = [row for row in rows if row.passes]
    ks = sorted({k for row in tested if row.passes for k in row.passes.pass_at})
    for k in [1, *ks[1:][-1:]] if ks else []:
        curves = over_compute(tested, lambda row, k=k: row.passes.pass_at[k] if row.passes else None)
        caption = f"Share of fresh tasks solved by {'one sample' if k == 1 else f'at least one of {k} samples'}."
        figures.append(page.plot(curves, title=f"pass@{k}", x_label=UNITS, caption=caption, size=(4.2, 3.0)))
    if not ks:
        out.append(page.note("This corpus has no tasks with tests: no pass@k figures."))
    curves = [
        *over_compute(rows, lambda row: row.bounds.nll, hollow=True),
        *over_compute(rows, bound),
    ]
    caption = (
        "Filled: the smaller of NLL and IWAE bound, both on -log p(code). Hollow: NLL without thoughts, which may "
        "rise in a model that has come to expect them."
    )
    title = "Bound on held-out code, nats per token"
    figures.append(page.plot(curves, title=title, x_label=UNITS, caption=caption, size=(4.2, 3.0)))
    text = "Error bars: one standard error over tasks or programs. RA3's line starts at the base; a point is a round."
    return [*out, page.grid(figures, "20rem"), page.prose(text)]


def over_compute(rows: Sequence[Row], value: Callable[[Row], Estimate | None], hollow: bool = False) -> list[Curve]:
    """RA3 as a line from the base through its rounds, NTP rows and the base as points; hollow: not in the legend."""

    def curve(label: str, rows: Sequence[Row], colour: int, line: Any, marker: Any) -> Curve:
        found = [(row, e) for row in rows if (e := value(row)) is not None]
        x, y, se = ([mega_units(row) for row, _ in found], [e.mean for _, e in found], [e.se for _, e in found])
        return Curve("" if hollow else label, x, y, se, colour, line, marker, hollow)

    base, ntp, ra3 = of_kind(rows, "base"), of_kind(rows, "ntp"), of_kind(rows, "ra3")
    curves = [curve("RA3", [*base, *ra3], 1, "--" if hollow else "-", "o")] if ra3 else []
    for i, row in enumerate(ntp):
        curves.append(curve(f"NTP at {budget(row)}", [row], 2, "", "s^"[i % 2]))
    return curves + ([curve("base", base, 0, "", "D")] if base else [])


# --- programs ------------------------------------------------------------------------------------


def programs(rows: Sequence[Row], shown: Sequence[Pieces]) -> list["Markup"]:
    """Annotated held-out programs, and completions of fresh tasks side by side."""
    out = [page.heading("Held-out programs with the thoughts of the trained model")]
    if shown:
        text = (
            "The code is the expert's; the highlighted lines are the model's, each written before it saw the next line."
        )
        out.append(page.prose(text))
        views = [page.program(pieces, f"Program {i}", _count(pieces)) for i, pieces in enumerate(shown, start=1)]
        out.append(page.grid(views, "20rem"))
    else:
        out.append(page.note("No program was annotated for this page."))
    out.append(page.heading("Sampled completions of fresh tasks"))
    chosen = [group[-1] for name in ("base", "ntp", "ra3") if (group := of_kind(rows, name))]
    chosen = [row for row in chosen if row.passes and row.passes.examples]
    if not chosen:
        why = "this corpus has no tasks with tests" if rows else "no checkpoint was measured"
        return [*out, page.note(f"No completions: {why}.")]
    text = "First sample of each task, prompt included, unjudged here. Highlighted: lines that begin with “#”."
    out.append(page.prose(text))
    for i in range(max(len(row.passes.examples) for row in chosen if row.passes)):
        views = []
        for row in chosen:
            if row.passes and i < len(row.passes.examples):
                views.append(page.program(page.comment_pieces(row.passes.examples[i]), row.name, limit=6000))
        body = page.grid(views, "20rem")
        out += [body] if i == 0 else [page.fold(f"Task {i + 1}", body)]
    return out


def _count(pieces: Pieces) -> str:
    n = sum(thought for _, thought in pieces)
    return f"{n} thought{'' if n == 1 else 's'}"


# --- thoughts ------------------------------------------------------------------------------------


def thoughts(config: MidTrainConfig, records: page.Records, findings: Mapping[str, Any]) -> list["Markup"]:
    """The gates of the base, the annotation of each round, what thoughts are worth."""
    return [*_gates(findings), *_annotations(config, records), *_gains(config, findings)]


def _gates(findings: Mapping[str, Any]) -> list["Markup"]:
    out = [page.heading("Is the base fit for an E-step?")]
    if not (gates := findings.get("gates")):
        return [*out, page.note("No gates: they need the built-in puzzles, whose comments can be judged.")]
    rows = [
        [gate["name"], f"{gate['found']:.3f}", f"{gate['least']:.2f}", "passed" if gate["passed"] else "FAILED"]
        for gate in gates
    ]
    out.append(page.table(["gate", "found", "at least", "verdict"], rows))
    if any(not gate["passed"] for gate in gates):
        out.append(page.note("A base that fails a gate makes the E-step fail and looks like a failure of RA3.", "bad"))
    if quality := findings.get("base_comments"):
        names = {
            "right": "right, of those before a block",
            "precision": "before a block, of all",
            "recall": "blocks with a thought",
            "think_rate": "thoughts per line",
            "thoughts": "thoughts judged",
        }
        out.append(page.prose("The base's own thoughts on development programs:"))
        shown = [(names.get(name, str(name)), f"{value:.4g}") for name, value in quality.items()]
        out.append(page.facts(shown))
    return out


def _annotations(config: MidTrainConfig, records: page.Records) -> list["Markup"]:
    out = [page.heading("Annotation by round")]
    if config.method != "ra3":
        return [*out, page.note("Plain next-token training: nothing was annotated.")]
    found = {r.get("round", 0): r for r in page.of_phase(records, "annotate")}
    if not found:
        return [*out, page.note("metrics.jsonl has no annotation.")]
    fill = {r.get("round", 0): r.get("perf/pack_fill") for r in page.of_phase(records, "mstep")}
    selects = config.estep.method == "selection" and config.estep.group > 1

    def number(value: Any, format_: str) -> str:
        return format(value, format_) if isinstance(value, int | float) else "-"

    rows = [
        [
            str(i + 1),
            number(r.get("latent/think_rate"), ".3f"),
            number(r.get("latent/mean_len"), ".1f"),
            number(r.get("reward_sampled"), ".2f"),
            number(r.get("reward"), ".2f"),
            number(r.get("estep/stitched_kept"), ".1%") if selects else "-",
            number(fill.get(i), ".1%"),
        ]
        for i, r in sorted(found.items())
    ]
    columns = [Column(name, "", COLUMN_HELP[name][1]) for name in (
        "round", "think rate", "mean len", "J_c sampled", "J_c kept", "stitched kept", "rows full"
    )]  # fmt: skip
    out.append(page.table(columns, rows, "The traces that each M-step learned from; J_c per program, higher is better"))
    if any((r.get("latent/think_rate") or 0.0) < STOPPED_THINKING for r in found.values()):
        out.append(
            page.note("Hardly a line got a thought in at least one round: plain next-token training in effect.", "bad")
        )
    return out


def _gains(config: MidTrainConfig, findings: Mapping[str, Any]) -> list["Markup"]:
    gains = {k.partition("/")[2]: v for k, v in findings.items() if k.startswith("thinking_gain/")}
    if not gains:
        return []
    out = [page.heading("What a thought is worth")]
    out += [
        page.note(f"{name}: thought nowhere in the held-out programs.", "bad") for name, v in gains.items() if not v
    ]
    if some := {name: values for name, values in gains.items() if values}:
        caption = (
            f"Log-likelihood of the next {config.estep.horizon} lines with the thought minus without it (act instead)."
        )
        figure = page.bars(some, title="Gain by decile of thoughts, worst to best", x_label="decile",
                           y_label="nats", caption=caption)  # fmt: skip
        out.append(page.grid([figure], "26rem"))
    return out


# --- curves, diagnostics, settings ---------------------------------------------------------------


def training(run: RunDir, config: MidTrainConfig, records: page.Records, problem: str) -> list["Markup"]:
    """Every phase's metrics by update."""
    out = [page.note(problem, "bad")] if problem else []
    for phase, title, names in (("mstep", "M-step", MSTEP_CURVES), ("estep", "E-step", ESTEP_CURVES)):
        if found := page.of_phase(records, phase):
            text = f"{title}, by its own updates; vertical lines: rounds"
            if config.estep.updates_per_batch == 1:  # then no ratio can be clipped
                names = [name for name in names if not name.startswith("clip_ratio/")]
            out += [page.heading(text), page.grid(page.panels(found, names, f"{title} update"), "15.5rem")]
        elif phase == "estep" and config.method == "ra3" and config.estep.method == "selection":
            out.append(page.note("The E-step was selection, which trains nothing: it has no curves."))
        elif config.method == "ra3" and not problem:
            out.append(page.note(f"metrics.jsonl has no lines of the {title}.", "bad"))
    trials = {"this run": page.of_phase(records, "ntp")}
    for path in sorted(run.path.glob("ntp-*/metrics.jsonl")):
        trials[path.parent.name.removeprefix("ntp-")] = page.of_phase(page.load_metrics(path)[0], "ntp")
    curves = [page.metric_curve(r, "loss", name, colour=2 + i) for i, (name, r) in enumerate(trials.items())]
    if curves := [curve for curve in curves if curve]:
        caption = "Next-token loss on plain code, every learning rate tried; thoughts have no part in it."
        title = "loss" if len(curves) > 1 else f"loss, {curves[0].label}"
        figure = page.plot(curves, title=title, x_label="update", caption=caption)
        out += [page.heading("NTP"), page.grid([figure], "26rem")]
    elif not config.ntp.compare:
        out.append(page.note("The NTP comparison was switched off: no NTP curves."))
    return out


def diagnostics(rows: Sequence[Row]) -> list["Markup"]:
    """What should look dull: disagreement of sampler and scorer, samples cut or not judged."""
    if not rows:
        return [page.note("No checkpoint was measured.", "bad")]
    names = ("model", "programs", "decision KL", "thought entropy", "mismatch mean", "mismatch max", "tasks",
             "samples/task", "unfinished", "not judged")  # fmt: skip
    cells = []
    for row in rows:
        b, p = row.bounds, row.passes
        start = [row.name, str(b.programs), f"{b.decision_kl:.3f}", f"{b.rationale_entropy:.2f}"]
        start += [f"{b.mismatch_mean:.1e}", f"{b.mismatch_max:.1e}"]
        rest = [str(p.tasks), str(p.samples), f"{p.unfinished:.1%}", str(p.invalid)] if p else ["-"] * 4
        cells.append([*start, *rest])
    out = [page.table([Column(name, *COLUMN_HELP[name]) for name in names], cells)]
    if bad := [row.name for row in rows if row.passes and row.passes.invalid]:
        out.append(page.note(f"Samples that the machinery could not judge were left out: {', '.join(bad)}.", "bad"))
    return out


def settings(run: RunDir, config: MidTrainConfig, records: page.Records, findings: Mapping[str, Any]) -> list["Markup"]:
    """Where the run came from: base, codec, speed, device, versions, config."""
    saved = json.loads(run.config.read_text()) if run.config.exists() else {}
    summary = json.loads(run.summary.read_text()) if run.summary.exists() else {}
    known: list[tuple[str, Any]] = [("base", summary.get("base", "not recorded"))]
    if (rate := findings.get("codec/noncanonical_rate")) is not None:
        known.append(("tokens unlike the tokenizer's own", f"{rate:.2%}"))
    if speeds := sorted(x for r in records if (x := r.get("perf/tokens_per_s"))):
        known.append(("training speed (median)", f"{speeds[len(speeds) // 2]:,.0f} tokens/s"))
    known += [(f"wall time: {name}", f"{seconds:,.0f} s") for name, seconds in summary.get("seconds", {}).items()]
    out = [page.facts(known), *page.settings(saved.get("config", to_json(config)), to_json(MidTrainConfig()))]
    out.append(page.heading("Versions and device"))
    missing = page.note("There is no config.json: versions, git revision and device are not known.", "bad")
    return [*out, page.environment_facts(saved) if saved else missing]


def _terms() -> list[tuple[str, "Markup"]]:
    from markupsafe import Markup

    return [(name, Markup(text)) for name, text in GLOSSARY]
