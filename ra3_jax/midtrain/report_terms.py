"""The words of the mid-training report: what its columns mean, and the terms with their equations (trusted HTML)."""

from typing import Literal

Better = Literal["higher", "lower", ""]

COLUMN_HELP: dict[str, tuple[Better, str]] = {  # column: which direction is better ("": neither), meaning
    "model": ("", "Checkpoint."),
    "updates": ("", "Optimizer updates since the base."),
    "M units": ("", "Compute since the base: million token passes (a forward pass counts 1, its backward pass 2)."),
    "NLL/tok": ("", "Of the code without thoughts, nats per code token. Not comparable with models that think."),
    "ELBO/tok": ("lower", "-L_1: bound on -log p(code) with one sampled set of thoughts, nats per code token."),
    "IWAE/tok": ("lower", "-L_K: the tighter bound from K samples, nats per code token."),
    "best/tok": ("lower", "The smaller of NLL and IWAE bound, nats per code token: comparable across rows."),
    "nats/byte": ("lower", "The best bound per byte of code: comparable across tokenizers."),
    "think rate": ("", "Thoughts per line."),
    "mean len": ("", "Tokens of a thought."),
    "pass@1": ("higher", "Share of fresh tasks that one sample solves."),
    "pass@k": ("higher", "Share of fresh tasks that at least one of k samples solves (unbiased estimate)."),
    "tokens/sample": ("", "Mean length of a sampled program."),
    "round": ("", "Round of E-step, annotation and M-step."),
    "J_c sampled": ("", "Mean training objective of all rollouts, per program."),
    "J_c kept": ("", "The same of the traces that were kept."),
    "stitched kept": ("", "Share of programs whose stitched trace was at least as good as the best single rollout."),
    "rows full": ("", "Share of the slots of the M-step's packed rows that hold a token."),
    "programs": ("", "Held-out programs of the bounds."),
    "decision KL": ("", "KL(Bern(q_act) || Bern(alpha)), nats per line."),
    "thought entropy": ("", "Entropy of a thought's text, nats per thought."),
    "mismatch mean": ("", "Mean |log p(sampler) - log p(scorer)| per token. Should be rounding error."),
    "mismatch max": ("", "Largest |log p(sampler) - log p(scorer)| of a token. Should be rounding error."),
    "tasks": ("", "Fresh tasks."),
    "samples/task": ("", "Samples of each task."),
    "unfinished": ("", "Share of the samples that were cut by length."),
    "not judged": ("", "Samples that the machinery failed to judge; left out of pass@k."),
}


def _eq(text: str) -> str:
    return f'<span class="eq line">{text}</span>'


_A, _Z, _Q = "<i>a</i><sub>t</sub>", "<i>z</i><sub>t</sub>", "<i>q</i>"
_PI = "π(" + _A + " | <i>s</i><sub>t</sub>, <i>z</i><sub>≤t</sub>)"
_QZ = f"{_Q}({_Z} | <i>s</i><sub>t</sub>, <i>z</i><sub>&lt;t</sub>)"

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Line, thought",
        "A program is a prompt <i>s</i><sub>0</sub> and expert lines <i>a</i><sub>1</sub> … <i>a</i><sub>n</sub> "
        "(logical lines; end-of-text is the last). Before each line the model decides: act, or think, which is one "
        f"short comment {_Z}.",
    ),
    (
        "Temporal ELBO",
        "What mid-training raises: a lower bound on the likelihood of the expert’s code, thoughts summed out."
        + _eq(f"log <i>p</i>(<i>a</i> | <i>s</i><sub>0</sub>) ≥ E<sub>{_Q}</sub> Σ<sub>t</sub> [ log {_PI} − "
              f"KL({_QZ} ‖ <i>p</i>({_Z} | <i>s</i><sub>t</sub>, <i>z</i><sub>t−1</sub>)) ]"),
    ),
    (
        "J_c, reward, return",
        "The training objective: the KL term replaced by a fixed price <i>c</i> of a thought. Not a bound. A thought "
        "is credited with the <i>T</i> lines that follow it."
        + _eq(f"<i>r</i><sub>t</sub> = norm(log {_PI}) − <i>c</i> · 1[think], &ensp; "
              "<i>R</i><sub>t</sub> = Σ<sub>k=t</sub><sup>t+T−1</sup> γ<sup>k−t</sup> <i>r</i><sub>k</sub>, &ensp; "
              "<i>J</i><sub>c</sub> = Σ<sub>t</sub> <i>r</i><sub>t</sub>"),
    ),
    (
        "E-step: selection",
        "Hard EM. All rollouts of a program share the expert’s lines, so for each line the thought of the rollout with "
        "the best return is taken and the pieces are stitched."
        + _eq(f"{_Z} = {_Z}<sup>(g*)</sup>, &ensp; g* = argmax<sub>g</sub> <i>R</i><sub>t</sub><sup>(g)</sup>")
        + "The stitched trace is scored again and kept only if it is at least as good as the best single rollout "
        "(<i>stitched kept</i>).",
    ),
    (
        "E-step: policy gradient",
        f"{_Q} is trained by REINFORCE on decisions and thoughts, π being fixed; the usual baseline is the mean return "
        "of the other rollouts at the same line."
        + _eq(f"∇<i>J</i> = Σ<sub>t</sub> (<i>R</i><sub>t</sub> − <i>b</i><sub>t</sub>) ∇ log {_QZ}"),
    ),
    ("M-step", "π is fine-tuned by next-token prediction on the annotated programs: code, decisions and thoughts."),
    ("NTP", "The baseline: next-token prediction on the same programs without thoughts, best of some learning rates."),
    (
        "Compute unit",
        "The forward pass of one token; its backward pass counts as two. Sampling and scoring cost 1, training 3.",
    ),
    (
        "NLL, ELBO, IWAE, best",
        "Upper bounds on −log <i>p</i>(code), summed over tokens, temperature 1, thoughts from the model itself."
        + _eq(f"log <i>w</i> = Σ<sub>t</sub> [ log {_PI} + log π({_Z} | ·) − log {_Q}({_Z} | ·) ], &ensp; "
              "<i>L</i><sub>K</sub> = E log (1/K) Σ<sub>k</sub> <i>w</i><sub>k</sub>")
        + "ELBO is −<i>L</i><sub>1</sub>, IWAE −<i>L</i><sub>K</sub>, NLL the code without thoughts; "
        "best = min(NLL, IWAE), which is what rows are compared by.",
    ),
    (
        "pass@k",
        "Programs are sampled by plain generation and run against tests; with <i>c</i> of <i>n</i> samples right:"
        + _eq("pass@k = mean over tasks of 1 − C(<i>n</i>−<i>c</i>, k) / C(<i>n</i>, k)"),
    ),
    ("Think rate, mean length", "Thoughts per line; tokens per thought, mark and newline not counted."),
    (
        "Gates",
        "What a base has to be able to do before an E-step makes sense: solve one-skill tasks (induction has formed) "
        "and comment rightly. The policy gradient needs more than selection.",
    ),
    (
        "Gain of a thought",
        "Log-likelihood of the next <i>T</i> lines with a thought minus without it, all other thoughts staying. Its "
        "deciles show whether a few thoughts do all the work, and how bad the worst are.",
    ),
    ("± ", "One standard error. Of a difference: √(se₁² + se₂²), as if the two were independent."),
)  # fmt: skip
