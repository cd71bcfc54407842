"""The mid-training report: the right winner in words, every missing part said, model output never taken as HTML."""

import dataclasses
import math

import pytest

from ra3_jax.core.metrics import MetricsWriter
from ra3_jax.core.rundir import RunDir, to_json
from ra3_jax.core.stats import Estimate
from ra3_jax.midtrain.config import EStepConfig, MidTrainConfig, NTPConfig
from ra3_jax.midtrain.em import Compute
from ra3_jax.midtrain.evaluate import Bounds, PassRates
from ra3_jax.midtrain.measure import TABLE_COLUMNS, Row, table_rows
from ra3_jax.midtrain.report import write_report
from ra3_jax.midtrain.report_terms import COLUMN_HELP
from ra3_jax.midtrain.verdict import compare, estep_in_words, headline
from tests.core.test_report import HOSTILE, check_html

CONFIG = MidTrainConfig()
POLICY_GRADIENT = dataclasses.replace(CONFIG, estep=EStepConfig(method="policy_gradient"))
NO_NTP = dataclasses.replace(CONFIG, ntp=NTPConfig(compare=False))


def make_row(
    name, pass1: float | None, best, think=0.2, updates=100, example="def f():\n    # hm\n    return 1\n"
) -> Row:
    """A row with standard errors .02 (pass@1) and .001 (bound)."""
    bounds = Bounds(
        nll=Estimate(best + 0.01, 0.002, 64), elbo=Estimate(best + 0.005, 0.001, 64), iwae=Estimate(best, 0.001, 64),
        samples=8, best=Estimate(best, 0.001, 64), best_per_byte=best / 3, think_rate=think, mean_len=4.0,
        decision_kl=0.1, rationale_entropy=2.0, mismatch_max=1e-5, mismatch_mean=1e-6, programs=64,
    )  # fmt: skip
    passes = None
    if pass1 is not None:
        pass_at = {1: Estimate(pass1, 0.02, 320), 8: Estimate(min(1.0, pass1 + 0.1), 0.02, 320)}
        passes = PassRates(pass_at, 320, 8, 0.01, 80.0, 0, (example,))
    return Row(name, updates, Compute(sampled=1000 * updates, trained=9000 * updates), bounds, passes)


def make_rows(ra3=0.75, steps=0.65, flops=0.66, bound=0.015, ntp_bound=0.03, think=0.2) -> list[Row]:
    return [
        make_row("base", 0.55, 0.02, updates=0),
        make_row("ntp equal steps", steps, ntp_bound, 0.0),
        make_row("ntp equal flops", flops, ntp_bound, 0.0, 150),
        make_row("ra3 round 1", 0.6, 0.018, updates=50),
        make_row("ra3 round 2", ra3, bound, think),
    ]


def without_tasks(rows):
    return [dataclasses.replace(row, passes=None) for row in rows]


def words(config, rows, findings=None) -> str:
    """Verdict and all that stands below it, as text without tags."""
    found = headline(config, rows, findings or {})
    return found.verdict + "\n" + "".join(map(str, found.body))


def write_metrics(run: RunDir, policy_gradient=False, rounds=2):
    with MetricsWriter(run.metrics) as out:
        step = 0
        for r in range(rounds):
            if policy_gradient:
                for u in range(5):
                    out.write(
                        step + u + 1, "estep", {"round": r, "latent/think_rate": 0.3, "reward": -1.0, "entropy": 0.2}
                    )
                step += 5
            out.write(step, "annotate", {
                "round": r, "latent/think_rate": 0.24, "latent/mean_len": 5.0, "estep/stitched_kept": 0.8,
                "reward": -1.25, "reward_sampled": -2.5,
            })  # fmt: skip
            for u in range(10, 40, 10):
                values = {"loss": 1.0 / u, "nll/code": 0.1, "nll/latent": math.nan, "grad_norm": 0.5}
                out.write(step + u, "mstep", {**values, "round": r, "perf/pack_fill": 0.95, "perf/tokens_per_s": 5e3})
            step += 40


def written(tmp_path, config=CONFIG, rows=(), shown=(), findings=None, metrics=True) -> str:
    run = RunDir.at(tmp_path)
    if metrics:
        write_metrics(run, config.estep.method == "policy_gradient")
    write_report(run, config, list(rows), list(shown), findings or {})
    html = run.report.read_text()
    assert len(html) < 1_000_000
    return html


# --- the verdict -----------------------------------------------------------------------------------


def test_ra3_ahead():
    found = headline(CONFIG, make_rows(), {})
    assert found.tone == "good"
    assert found.verdict.startswith("RA3 is ahead of NTP at equal FLOPs: pass@1 0.750 against 0.660, better by 0.090")
    assert "0.028" in found.verdict  # sqrt(.02^2 + .02^2)


def test_ntp_ahead_is_said_plainly():
    found = headline(CONFIG, make_rows(ra3=0.55, bound=0.04), {})
    assert found.tone == "bad"
    assert found.verdict.startswith("NTP is ahead of RA3 at equal FLOPs: pass@1 0.550 against 0.660, worse by 0.110")


def test_small_differences_decide_nothing():
    found = headline(CONFIG, make_rows(ra3=0.70), {})
    assert found.tone == "plain" and "cannot be told apart" in found.verdict.split(":")[0]
    assert "no difference to 3 digits" in headline(CONFIG, make_rows(ra3=0.66), {}).verdict


def test_another_budget_or_the_bound_that_disagrees_is_named():
    found = headline(CONFIG, make_rows(steps=0.85), {})
    assert "RA3 is ahead of NTP at equal FLOPs" in found.verdict
    assert "NTP is ahead of RA3 at equal steps" in found.verdict and found.tone == "bad"
    found = headline(CONFIG, make_rows(bound=0.04), {})
    assert "RA3 is ahead" in found.verdict and "By the bound NTP is ahead of RA3." in found.verdict


def test_without_tasks_the_bound_decides():
    found = headline(CONFIG, without_tasks(make_rows()), {})
    assert "bound" in found.verdict and "0.0150 against 0.0300, better by 0.0150" in found.verdict
    assert "no tasks with tests" in words(CONFIG, without_tasks(make_rows()))
    assert headline(CONFIG, without_tasks(make_rows(bound=0.05)), {}).verdict.startswith("NTP is ahead")


def test_without_a_baseline_nothing_is_claimed():
    rows = [row for row in make_rows() if not row.name.startswith("ntp")]
    text = words(NO_NTP, rows)
    assert "pass@1 0.750, from 0.550 at the base" in text
    assert "nothing here says whether the thoughts helped" in text and "ntp.compare" in text


def test_ntp_alone_and_nothing_at_all():
    config = dataclasses.replace(CONFIG, method="ntp")
    text = words(config, [make_row("base", 0.5, 0.02), make_row("ntp", 0.6, 0.02, 0.0)])
    assert text.startswith("NTP: pass@1 0.600, from 0.500") and "no E-step ran" in text
    assert "No trained checkpoint" in words(CONFIG, [])


def test_an_unknown_standard_error_decides_nothing():
    rows = make_rows()
    last = rows[-1]
    assert last.passes
    pass_at = {k: Estimate(e.mean, math.nan, 1) for k, e in last.passes.pass_at.items()}
    rows[-1] = dataclasses.replace(last, passes=dataclasses.replace(last.passes, pass_at=pass_at))
    verdict = headline(CONFIG, rows, {}).verdict
    assert "cannot be told apart" in verdict and "unknown" in verdict


def test_the_comparison_gives_signed_differences():
    cells = compare(make_row("ra3 round 1", 0.7, 0.02), make_row("ntp", 0.6, 0.01), "RA3", "NTP")
    assert cells[:4] == ["+0.100 ± 0.028", "RA3", "+0.0100 ± 0.0014", "NTP"]  # a higher bound is worse
    assert cells[4:] == ["100 against 100", "2.80 against 2.80"]


def test_the_estep_is_named():
    assert "selection (hard EM)" in estep_in_words(CONFIG.estep)
    assert "not in the paper" in estep_in_words(CONFIG.estep)
    assert "policy gradient" in estep_in_words(POLICY_GRADIENT.estep)
    assert "nothing was selected" in estep_in_words(EStepConfig(group=1))


def test_failed_gates_and_an_estep_that_stopped_thinking_are_in_the_headline():
    gates = [{"name": "right comments", "found": 0.4, "least": 0.6, "passed": False}]
    text = words(CONFIG, make_rows(think=0.001), {"gates": gates})
    assert "failed 1 of 1 gates (right comments)" in text and "hardly ever thinks" in text


# --- the page --------------------------------------------------------------------------------------


def test_a_full_page(tmp_path):
    gates = [{"name": "right comments", "found": 0.712, "least": 0.6, "passed": True}]
    findings = {"gates": gates, "base_comments": {"right": 0.712, "thoughts": 1200}, "codec/noncanonical_rate": 0.012}
    run = RunDir.at(tmp_path)
    run.write_json(
        "config.json", {"config": to_json(CONFIG), "git": "abc123", "versions": {"jax": "0.10"}, "device": {}}
    )
    run.write_json("summary.json", {"base": "tiny-S", "seconds": {"ra3": 12.3}})
    with MetricsWriter(run.path / "ntp-equal_steps-lr0.001" / "metrics.jsonl") as out:
        for u in range(10, 60, 10):
            out.write(u, "ntp", {"loss": 1.0 / u})
    shown = [[("def f(xs):\n", False), ("# drop repeats\n", True), ("    return xs\n", False)]]
    html = written(tmp_path, rows=make_rows(), shown=shown, findings=findings)
    text = check_html(html)
    for expected in (
        *("abc123", "tiny-S", "12 s", "1.20%", "0.712", "passed", "5,000 tokens/s", "equal_steps-lr0.001"),
        *("trains nothing", "-2.50", "-1.25", "80.0%", "95.0%", "nll/code", "Temporal ELBO", "1 thought"),
    ):
        assert expected in text, expected
    assert "<mark># drop repeats</mark>" in html
    assert html.count("<svg") == 3 + 3 + 1  # pass@1, pass@8, bound; M-step panels but nll/latent; NTP


def test_the_table_has_the_numbers_of_the_terminal(tmp_path):
    text = check_html(written(tmp_path, rows=make_rows()))
    for cells in table_rows(make_rows()):
        for cell in cells:
            for part in cell.removesuffix(" (K=8)").removesuffix(" (k=8)").split(" ± "):
                assert part in text, cell


def test_every_column_is_explained():
    assert set(TABLE_COLUMNS) <= set(COLUMN_HELP)


def test_policy_gradient_has_estep_curves(tmp_path):
    text = check_html(written(tmp_path, POLICY_GRADIENT, make_rows()))
    assert "E-step update" in text and "latent/think_rate" in text and "trains nothing" not in text
    assert "80.0%" not in text  # nothing was stitched


@pytest.mark.parametrize("config", [CONFIG, POLICY_GRADIENT, NO_NTP, dataclasses.replace(CONFIG, method="ntp")])
def test_missing_parts_are_said_and_raise_nothing(tmp_path, config):
    text = check_html(written(tmp_path, config, metrics=False))
    for expected in ("There is no metrics.jsonl", "No checkpoint was measured", "no config.json", "No gates"):
        assert expected in text, expected


def test_an_empty_and_a_broken_metrics_file(tmp_path):
    run = RunDir.at(tmp_path)
    run.metrics.write_text("")
    assert "metrics.jsonl is empty" in check_html(written(tmp_path, rows=make_rows(), metrics=False))
    run.metrics.write_text("{oops\n")
    assert "cannot be read" in check_html(written(tmp_path, rows=make_rows(), metrics=False))


def test_no_tasks_no_pass_figures(tmp_path):
    html = written(tmp_path, rows=without_tasks(make_rows()))
    text = check_html(html)
    assert "no pass@k figures" in text and "No completions: this corpus has no tasks" in text
    assert html.count("<svg") == 1 + 3


def test_deciles_with_gaps_and_without_thoughts(tmp_path):
    gains = [-1.0, 0.5, 2.0, *[math.nan] * 7]
    text = check_html(written(tmp_path, findings={"thinking_gain/base": gains, "thinking_gain/ra3": []}))
    assert "Gain by decile" in text and "ra3: thought nowhere" in text


def test_what_a_model_wrote_is_text(tmp_path):
    rows = [make_row("base", 0.5, 0.02, example=HOSTILE), make_row("ra3 round 1", 0.6, 0.02, example=f"# {HOSTILE}\n")]
    rows[0] = dataclasses.replace(rows[0], note=HOSTILE)
    html = written(tmp_path, rows=rows, shown=[[(HOSTILE, True), (HOSTILE, False)]])
    assert "<img" not in html and "</script" not in html
    assert check_html(html).count(HOSTILE) == 5


def test_long_runs_stay_small(tmp_path):
    long = "x = 1\n" * 20_000
    rows = [make_row("base", 0.5, 0.02, example=long), *(make_row(f"ra3 round {i}", 0.5, 0.02) for i in range(1, 31))]
    run = RunDir.at(tmp_path)
    with MetricsWriter(run.metrics) as out:
        for step in range(1, 3001):
            out.write(step, "mstep", {"round": step // 100, "loss": 1.0 / step, "nll/code": 0.1, "grad_norm": 1.0})
    written(tmp_path, rows=rows, shown=[[(long, False)]] * 3, metrics=False)
