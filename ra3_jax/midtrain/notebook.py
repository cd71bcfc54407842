"""What a notebook shows of a mid-training run: the report's verdict, table and main curves, without the page."""

import json
from collections.abc import Sequence

from ra3_jax.core import report as page
from ra3_jax.core.figures import Panel, panels_png
from ra3_jax.core.report import Headline
from ra3_jax.core.rundir import RunDir
from ra3_jax.midtrain.config import MidTrainConfig
from ra3_jax.midtrain.measure import Row
from ra3_jax.midtrain.report import UNITS, over_compute, scores
from ra3_jax.midtrain.verdict import bound, headline


def scores_html(config: MidTrainConfig, rows: Sequence[Row]) -> str:
    """Who is ahead and what has to be known with it, then the table. The run must have ended: its summary is read."""
    summary = json.loads(RunDir.at(config.out).artifact("summary.json"))
    found: Headline = headline(config, rows, summary)
    return page.fragment(page.note(found.verdict, found.tone), *found.body, *scores(rows))


def plots_png(config: MidTrainConfig, rows: Sequence[Row]) -> bytes:
    """pass@1 (where there are tasks) and the bound over compute, then the losses of the M-step, as one image."""
    panels = []
    tested = [row for row in rows if row.passes]
    if tested:
        curves = over_compute(tested, lambda row: row.passes.pass_at[1] if row.passes else None)
        panels.append(Panel("pass@1 on fresh tasks", curves, UNITS))
    panels.append(Panel("bound on held-out code, nats per token", over_compute(rows, bound), UNITS))
    records, _ = page.load_metrics(RunDir.at(config.out).metrics)
    found = page.of_phase(records, "mstep")
    ends = {record.get("round"): record["step"] for record in found}
    for name, title in (("nll/code", "M-step: nats per token of code"), ("nll/latent", "M-step: of the thoughts")):
        if curve := page.metric_curve(found, name):
            panels.append(Panel(title, [curve], "update", list(ends.values())[:-1]))
    return panels_png(panels)
