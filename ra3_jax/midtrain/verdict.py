"""The result of a mid-training run in words: who is ahead, by how much, and what a reader has to know with it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

from ra3_jax.core.report import Headline, Tone, difference, points, table
from ra3_jax.core.stats import Estimate
from ra3_jax.midtrain.config import EStepConfig, MidTrainConfig
from ra3_jax.midtrain.measure import Row

STOPPED_THINKING = 0.01  # thoughts per line


def headline(config: MidTrainConfig, rows: Sequence[Row], findings: Mapping[str, Any]) -> Headline:
    """Who is ahead, by how much, and what has to be known to read it."""
    base, ntp, ra3 = of_kind(rows, "base"), of_kind(rows, "ntp"), of_kind(rows, "ra3")
    notes = points(caveats(config, rows, findings))
    if not ra3 and not ntp:
        return Headline("No trained checkpoint was measured.", "bad", [notes])
    last = (ra3 or ntp)[-1]
    name = "RA3" if ra3 else "NTP"
    others = [(row, f"NTP at {budget(row)}", "NTP") for row in ntp] if ra3 else []
    others += [(row, "the base", "the base") for row in base]
    body = [comparison_table(last, name, others), notes] if others else [notes]
    if ra3 and ntp:
        return Headline(*verdict_against(last, ntp), body)
    score, gain, digits = _score(last, base[0] if base else last)
    before = f", from {score(base[0]).mean:.{digits}f} at the base ({_by(gain, digits)})" if base else ""
    verdict = f"{name}: {_score_name(last)} {score(last).mean:.{digits}f}{before}."
    if ra3:
        verdict += " No NTP baseline was trained: nothing here says whether the thoughts helped."
    return Headline(verdict, "plain", body)


def verdict_against(ra3: Row, ntp: Sequence[Row]) -> tuple[str, Tone]:
    """RA3 against NTP at equal FLOPs, and at other budgets where that changes who is ahead."""
    rival = next((row for row in ntp if "flops" in row.name), ntp[-1])
    outcome = standing(_score(ra3, rival)[1])
    others = [row for row in ntp if standing(_score(ra3, row)[1]) != outcome]
    sentences = [duel(ra3, row) for row in (rival, *others)]
    behind = "behind" in (standing(_score(ra3, row)[1]) for row in ntp)
    return " ".join(sentences), "bad" if behind else "good" if outcome == "ahead" else "plain"


def duel(ra3: Row, ntp: Row) -> str:
    """RA3 against one NTP row, in pass@1 where there are tasks; the bound is named where it says otherwise."""
    score, gain, digits = _score(ra3, ntp)
    who = {
        "ahead": "RA3 is ahead of NTP",
        "behind": "NTP is ahead of RA3",
        "tied": "RA3 and NTP cannot be told apart",
    }
    outcome, of_bound = standing(gain), standing(difference(bound(ntp), bound(ra3)))
    text = (
        f"{who[outcome]} at {budget(ntp)}: {_score_name(ra3, ntp)} {score(ra3).mean:.{digits}f} "
        f"against {score(ntp).mean:.{digits}f}, {_by(gain, digits)}."
    )
    if of_bound not in (outcome, "tied"):
        text += f" By the bound {who[of_bound]}."
    return text


def comparison_table(row: Row, name: str, others: Sequence[tuple[Row, str, str]]) -> "Markup":
    """`row` minus each of `others` (row, words for it, its name as a winner)."""
    tested = any(row.passes and other.passes for other, _, _ in others)
    columns = [f"{name} minus", *(["pass@1", "ahead"] if tested else []), "bound", "ahead", "updates", "M units"]
    cells = [[words, *compare(row, other, name, winner)] for other, words, winner in others]
    if not tested:
        cells = [[words, *rest] for words, _, _, *rest in cells]
    caption = "± standard error. Bound: nats per token, lower is better. Ahead: by more than two standard errors."
    return table(columns, cells, caption)


def compare(row: Row, other: Row, name: str, winner: str) -> list[str]:
    """Cells: differences in pass@1 and bound with who is ahead, updates, compute."""
    words = {"ahead": name, "behind": winner, "tied": "neither"}
    cells = ["-", "-"]
    if row.passes and other.passes:
        gain = difference(pass_at_1(row), pass_at_1(other))
        cells = [signed(gain, 3), words[standing(gain)]]
    rise = difference(bound(row), bound(other))
    cells += [signed(rise, 4), words[standing(Estimate(-rise.mean, rise.se, rise.n))]]
    cost = f"{mega_units(row):.2f} against {mega_units(other):.2f}"
    return [*cells, f"{row.updates} against {other.updates}", cost]


def _score(a: Row, b: Row) -> tuple[Callable[[Row], Estimate], Estimate, int]:
    """(what two rows are compared by, how much better `a` is, digits to print): pass@1, or the bound without tasks."""
    if a.passes and b.passes:
        return pass_at_1, difference(pass_at_1(a), pass_at_1(b)), 3
    return bound, difference(bound(b), bound(a)), 4


def _score_name(*rows: Row) -> str:
    return "pass@1" if all(row.passes for row in rows) else "bound, nats per token (lower is better),"


def pass_at_1(row: Row) -> Estimate:
    assert row.passes is not None
    return row.passes.pass_at[1]


def bound(row: Row) -> Estimate:
    return row.bounds.best


def standing(gain: Estimate) -> str:
    """Two standard errors decide; without a standard error nothing does."""
    if gain.mean > 2 * gain.se:
        return "ahead"
    return "behind" if -gain.mean > 2 * gain.se else "tied"


def signed(e: Estimate, digits: int) -> str:
    error = f"{e.se:.{digits}f}" if math.isfinite(e.se) else "unknown"
    return f"{e.mean:+.{digits}f} ± {error}".replace("-", "−")


def _by(gain: Estimate, digits: int) -> str:
    if round(gain.mean, digits) == 0:
        return f"no difference to {digits} digits"
    size = signed(Estimate(abs(gain.mean), gain.se, gain.n), digits).lstrip("+").replace(" ", "\u00a0")
    return f"{'better' if gain.mean >= 0 else 'worse'} by {size}"


def caveats(config: MidTrainConfig, rows: Sequence[Row], findings: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing the numbers."""
    out = [estep_in_words(config.estep)] if config.method == "ra3" else ["Plain next-token training: no E-step ran."]
    if ra3 := of_kind(rows, "ra3"):
        rate = ra3[-1].bounds.think_rate
        out.append(f"After the last round the model thinks before {rate:.1%} of the lines of held-out programs.")
        if rate < STOPPED_THINKING:
            out[-1] += " It hardly ever thinks: this run says next to nothing about thoughts."
    if config.method == "ra3" and not config.ntp.compare:
        out.append("The NTP comparison was switched off (ntp.compare).")
    if rows and not any(row.passes for row in rows):
        out.append("This corpus has no tasks with tests: no pass@k, and the verdict rests on the bound.")
    gates = findings.get("gates", [])
    if failed := [gate["name"] for gate in gates if not gate["passed"]]:
        out.append(f"The base failed {len(failed)} of {len(gates)} gates ({', '.join(failed)}): look there first.")
    out.append(
        "One seed. Standard errors are over programs and tasks, not over seeds; those of differences take the rows for "
        "independent, although all saw the same tasks, which as a rule overstates them."
    )
    return out


def estep_in_words(config: EStepConfig) -> str:
    """Which E-step ran, and what that means."""
    settings = (
        f"c\u00a0=\u00a0{config.c:g}, T\u00a0=\u00a0{config.horizon} lines, "
        f"reward: {config.reward}, {config.reward_norm}"
    )
    if config.method == "selection" and config.group > 1:
        return (
            f"E-step: selection (hard EM). For each line the thought of the best of {config.group} rollouts was taken, "
            f"by the likelihood of the lines that follow ({settings}). Such thoughts were chosen with the code in "
            "view: fit for training data, never used in the scores here, and not in the paper."
        )
    if config.method == "selection":
        return f"E-step: one rollout a program, as sampled (selection with G = 1; {settings}): nothing was selected."
    return (
        f"E-step: policy gradient, the paper's kind: {config.updates} updates a round of {config.programs_per_update} "
        f"programs and {config.group} rollouts each, baseline {config.baseline} ({settings})."
    )


def of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    """Rows of the base, of NTP or of RA3, by the first word of their names."""
    return [row for row in rows if row.name.split()[0] == kind]


def budget(row: Row) -> str:
    return row.name.removeprefix("ntp").strip().replace("flops", "FLOPs") or "its own budget"


def mega_units(row: Row) -> float:
    return row.compute.units / 1e6
