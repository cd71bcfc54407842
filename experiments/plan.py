"""`--dry-run`: what a mid-training run will do, computed from its settings alone; nothing is trained or downloaded."""

from experiments.presets import ARCHITECTURES
from ra3_jax.core.console import say
from ra3_jax.midtrain.config import MidTrainConfig
from ra3_jax.model.config import PRESETS, ModelConfig, tiny


def print_plan(preset: str, config: MidTrainConfig) -> None:
    """Model, steps, tokens, FLOPs, memory and files, each on a line."""
    for name, text in plan_lines(preset, config):
        say(f"{name:>10}  {text}")


def plan_lines(preset: str, config: MidTrainConfig) -> list[tuple[str, str]]:
    """(what, text) pairs."""
    model = _model(preset, config)
    lines = []
    if model is None:
        lines.append(("model", f"{config.model}: its size is known once its config.json is read"))
    else:
        state = model.n_params * _state_bytes(config) / 2**30
        lines.append(("model", f"{config.model}: {model.n_params / 1e6:.2f} M weights, {model.n_layers} layers"))
        kept = "weights (adapters" if config.mstep.lora.rank else "weights, gradients, moments (activations"
        lines.append(("memory", f"{state:.2f} GiB over all devices for {kept} come on top)"))
    lines += _steps(config, model)
    out = config.out.rstrip("/")
    files = ["config.json", "model.json", "tokenizer/", "metrics.jsonl", "traces/round-K.jsonl", "checkpoints/STEP/"]
    files += ["results.json", "summary.json", "report.html"]
    lines.append(("files", f"{out}/{{{', '.join(files)}}}"))
    return lines


def _state_bytes(config: MidTrainConfig) -> int:
    """Of a weight in the M-step: itself and, where it is trained, its gradient and its moments. Adafactor's sums are
    left out."""
    optimizer = config.mstep.optimizer
    if config.mstep.lora.rank:
        return 4
    if optimizer.kind == "adafactor":
        return 4 + 4
    return 4 + 4 + 4 + (2 if optimizer.moment_dtype == "bfloat16" else 4)


def _model(preset: str, config: MidTrainConfig) -> ModelConfig | None:
    if config.model != "tiny":
        return PRESETS.get(ARCHITECTURES.get(preset, preset))
    from ra3_jax.data.tokenizer import load_tokenizer

    size = load_tokenizer(config.tokenizer).size
    return tiny(size, d_model=config.base.d_model, n_layers=config.base.n_layers, n_heads=config.base.n_heads)


def _steps(config: MidTrainConfig, model: ModelConfig | None) -> list[tuple[str, str]]:
    """The phases, in numbers where the corpus is known without reading it."""
    length, rows = config.data.sequence_length, config.mstep.loop.batch_size
    update = rows * length
    flops = 3 * model.forward_flops(length // 2) * update if model else None
    cost = f", {flops:.2e} FLOPs" if flops else ""
    lines = [("update", f"{rows} rows of {length} tokens: {update} tokens{cost}")]
    if config.model == "tiny":
        lines.insert(0, ("base", f"{config.base.steps} updates of {config.base.rows} rows, once; then from the cache"))
    if config.data.corpus != "puzzles":
        lines.append(("corpus", f"{config.data.corpus}: size and number of updates are known once it is read"))
    else:
        n, mean = config.puzzles.programs, 116  # tokens of a mid program, measured over 2,000
        steps = round(config.mstep.epochs * n * mean / update)
        total = 3 * config.mstep.epochs * n * mean + config.estep.group * n * mean
        lines.append(("corpus", f"puzzles: {n} programs of about {mean} tokens"))
        lines.append(("M-step", f"about {steps} updates a round, and a fifth more with thoughts"))
        units = config.em.rounds * total * 1.2 / 1e6
        lines.append(("compute", f"about {units:.1f} M forward-token units for all of RA3"))
    if config.method == "ra3":
        lines.append(("rounds", f"{config.em.rounds} of E-step ({config.estep.method}), annotation, M-step"))
    return lines
