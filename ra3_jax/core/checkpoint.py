"""Checkpoints, over Orbax: one pytree of arrays and one JSON object per step.

    <directory>/<step>/state/   arrays, written asynchronously and sharded
    <directory>/<step>/meta/    data position, seeds, phase, counters: all else that a run needs

A step exists only once it is complete; a killed or failed save leaves the earlier ones as they
were. Random keys are not stored: seeds are integers of `meta`. Nothing here knows about models: a
tree is described by its abstract arrays (`jax.eval_shape`), and restoring onto another mesh takes
only other shardings in them.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from ra3_jax.core.paths import is_remote

Tree = Any
Meta = dict[str, Any]


class CheckpointError(RuntimeError):
    """A checkpoint is missing, does not fit, or could not be written."""


class _FromOrbax(logging.Filter):
    """Drops what Orbax logs: each failure some ten times over, and all of it is raised as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


_FROM_ORBAX = _FromOrbax()


class _Manager(ocp.CheckpointManager):
    """Leaves JAX's preemption service to the training loops (train.loop.stop_on_signal).

    Asking it is stateful: questions by the step of a checkpoint, among theirs, would make a run miss its stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run. Every process of a run makes the same calls in the same order.

    `keep` newest steps are kept (None: all). A reader (`read_only`) never touches the directory;
    the one writer removes what a killed save left behind. As a context manager it waits for the
    last save on the way out.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int | None = 2, read_only: bool = False):
        directory = epath.Path(directory)
        # Orbax wants it absolute, but of gs://bucket `absolute` makes a local folder.
        self.directory = directory if is_remote(directory) else directory.absolute()
        self._read_only = read_only
        if read_only and not self.directory.exists():
            raise CheckpointError(f"{self.directory}: no such directory of checkpoints")
        logging.getLogger("absl").addFilter(_FROM_ORBAX)
        with self._explained("open"):
            self._manager = _Manager(
                self.directory,
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=None if read_only else keep,
                    create=not read_only,
                    cleanup_tmp_directories=not read_only,
                ),
            )

    def save(self, step: int, state: Tree, meta: Meta) -> None:
        """Starts a save; returns once `state` may be donated, while the disk work goes on.

        Raises CheckpointError when this or the previous save failed (full disk, no permission).
        `wait` before the end.
        """
        if self._read_only:
            raise CheckpointError(f"{self.directory} was opened for reading only")
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),  # pyright: ignore[reportCallIssue]
            meta=ocp.args.JsonSave(meta),  # pyright: ignore[reportCallIssue]
        )
        with self._explained(f"save step {step} in"):
            if not self._manager.save(step, args=args):
                raise CheckpointError(
                    f"{self.directory}: step {step} was not saved, because {self.steps()} exist; rewind first"
                )

    def wait(self) -> None:
        """Blocks until the last save is complete. Raises CheckpointError when it failed."""
        with self._explained("save to"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits, then stops the writer threads."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Complete steps on disk, ascending."""
        return list_steps(self.directory)

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def rewind(self, step: int) -> None:
        """Deletes every checkpoint after `step`, so that a run can go on from there."""
        self._require(step)
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)
        self._manager.reload()

    def read_meta(self, step: int | None = None) -> Meta:
        """The JSON object of a step (default: the latest)."""
        step = self._require(step)
        with self._explained(f"read step {step} of"):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(meta=ocp.args.JsonRestore()),
            )
        return restored["meta"]

    def restore(self, abstract: Tree, step: int | None = None) -> tuple[Tree, Meta]:
        """(state, meta) of a step (default: the latest), laid out as `abstract` says.

        Raises CheckpointError, naming the first array that differs, when the checkpoint holds
        another tree.
        """
        step = self._require(step)
        return self._restore(abstract, step, partial=False), self.read_meta(step)

    def restore_part(self, abstract: Tree, step: int | None = None) -> tuple[Tree, Meta]:
        """`restore` of a part: `{"params": abstract_params}` leaves the optimizer on disk."""
        step = self._require(step)
        return self._restore(abstract, step, partial=True), self.read_meta(step)

    def shapes(self, step: int | None = None) -> dict[str, tuple[int, ...]]:
        """Path ("params.layers.wq") -> shape of every stored array."""
        step = self._require(step)
        with self._explained(f"read step {step} of"):
            tree = self._manager.item_metadata(step)["state"].tree
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {_dotted(path): tuple(x.shape) for path, x in leaves if hasattr(x, "shape")}

    def _restore(self, abstract: Tree, step: int, partial: bool) -> Tree:
        wanted = {_dotted(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(abstract)}
        where = f"{self.directory}/{step}"
        check_shapes(self.shapes(step), wanted, where, partial=partial)
        args = ocp.args.PyTreeRestore(
            abstract,  # pyright: ignore[reportCallIssue]
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=partial,
        )
        with self._explained(f"restore step {step} of"):
            return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def _require(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.directory} holds no complete checkpoint")
        if step is not None and step not in steps:
            raise CheckpointError(f"{self.directory} holds no step {step}; it has {steps}")
        return steps[-1] if step is None else step

    @contextlib.contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Orbax and its storage layer raise many types of error; our callers get one."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            steps = list_steps(self.directory)
            raise CheckpointError(
                f"cannot {action} {self.directory}: {error}\ncomplete steps there: {steps or 'none'}"
            ) from error


def list_steps(directory: epath.PathLike) -> list[int]:
    """Complete steps in a directory of checkpoints; none when it does not exist."""
    directory = epath.Path(directory)
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.exists() else []


def check_shapes(
    stored: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    where: str,
    *,
    partial: bool = False,
) -> None:
    """Raises CheckpointError at the first path that is missing, extra or of another shape."""
    for name, shape in wanted.items():
        if name not in stored:
            raise CheckpointError(
                f"{where} is of another architecture: {name} {shape} is expected, the checkpoint has no such array"
            )
        if stored[name] != shape:
            raise CheckpointError(
                f"{where} is of another architecture: {name} is {stored[name]} there, {shape} is expected"
            )
    extra = [] if partial else [name for name in stored if name not in wanted]
    if extra:
        raise CheckpointError(
            f"{where} is of another architecture: it holds {extra[0]} {stored[extra[0]]}, which is not expected"
        )


def _dotted(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
