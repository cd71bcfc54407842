import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from ra3_jax.core.metrics import MetricsWriter, TensorBoardSink, WandbSink, read_metrics


class ListSink:
    def __init__(self):
        self.rows, self.closed = [], False

    def write(self, step, values):
        self.rows.append((step, dict(values)))

    def close(self):
        self.closed = True


def test_lines_are_json_with_step_phase_time(tmp_path):
    path, sink = tmp_path / "metrics.jsonl", ListSink()
    with MetricsWriter(path, sinks=[sink]) as writer:
        writer.write(1, "mstep", {"loss": np.float32(0.5), "n": jnp.int32(3), "who": "q"})
        assert len(read_metrics(path)) == 1  # on disk at once
        writer.write(2, "mstep", {"loss": float("nan"), "norm": float("inf"), "ok": True})
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert first.pop("time") > 1.6e9
    assert first == {"step": 1, "phase": "mstep", "loss": 0.5, "n": 3, "who": "q"}
    assert second["loss"] is None and second["norm"] is None and second["ok"] is True
    assert sink.rows[0] == (1, {"loss": 0.5, "n": 3, "who": "q"}) and sink.closed


def test_resume_drops_later_lines_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        for step in range(1, 7):
            writer.write(step, "mstep", {"loss": step})
    with open(path, "a") as file:
        file.write('{"step": 7, "lo')  # killed while writing
    with MetricsWriter(path, resume_step=4) as writer:
        writer.write(5, "mstep", {"loss": 50})
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [
        *((1, 1), (2, 2), (3, 3), (4, 4)),
        (5, 50),
    ]
    with MetricsWriter(path):
        pass
    assert read_metrics(path) == []  # a fresh run
    with MetricsWriter(tmp_path / "new.jsonl", resume_step=4):
        pass  # the first run died before its first line


def test_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(ValueError, match="metrics.jsonl:2: not a JSON line"):
        MetricsWriter(path, resume_step=2)
    path.write_text('{"loss": 1}\n')
    with pytest.raises(ValueError, match="metrics.jsonl:1: .*integer step"):
        MetricsWriter(path, resume_step=2)


def test_values_that_are_no_scalars_are_refused(tmp_path):
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        with pytest.raises(TypeError, match="metric loss: ndarray"):
            writer.write(1, "mstep", {"loss": np.zeros(2)})
        with pytest.raises(ValueError, match="'phase'"):
            writer.write(1, "mstep", {"phase": 1})


@pytest.mark.parametrize(
    "module,extra,make",
    [
        ("tensorboardX", "tensorboard", lambda tmp: TensorBoardSink(tmp)),
        ("wandb", "wandb", lambda tmp: WandbSink("project", "id", {})),
    ],
)
def test_missing_extra_is_named(tmp_path, monkeypatch, module, extra, make):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"ra3-jax\[{extra}\]"):
        make(tmp_path)
