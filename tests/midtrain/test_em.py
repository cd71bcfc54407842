"""Rounds of EM: what they write, and that an interrupted run ends where the undisturbed one does, bit for bit."""

import json

import jax
import numpy as np
import pytest

from ra3_jax.core.checkpoint import CheckpointError, Checkpoints
from ra3_jax.core.metrics import MetricsWriter, read_metrics
from ra3_jax.midtrain.annotate import AnnotationReport
from ra3_jax.midtrain.em import Compute, EStepState, Position
from ra3_jax.train.loop import Progress
from tests.midtrain.micro import PROGRAMS, finish, make_em, micro_config


class Interrupted(Exception):
    pass


class DyingWriter(MetricsWriter):
    """Dies at the n-th line that it is to write, as a killed process would."""

    def __init__(self, path, lines: int):
        super().__init__(path)
        self._left = lines

    def write(self, step, phase, values):
        self._left -= 1
        if self._left < 0:
            raise Interrupted
        super().write(step, phase, values)


def interrupt(config, out, mesh, lines: int) -> int | None:
    """Runs until the writer dies; the step to go on from."""
    em = make_em(config, out, mesh, metrics=DyingWriter(out / "metrics.jsonl", lines))
    with pytest.raises(Interrupted):
        em.train(None)
    em.checkpoints.close()
    em.metrics.close()
    return em.checkpoints.latest_step()


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(np.abs(np.asarray(x) - np.asarray(y)).max() > 0 for x, y in pairs)


CASES = {
    "selection": micro_config("selection"),
    "policy_gradient": micro_config("policy_gradient"),
    "policy_gradient, q keeps its weights": micro_config("policy_gradient", q_init="keep"),
}


@pytest.mark.parametrize("name", CASES)
def test_resumed_equals_undisturbed(name, tmp_path, one_device_mesh):
    config = CASES[name]
    whole, position = finish(config, tmp_path / "whole", one_device_mesh)
    assert position.round == config.em.rounds
    lines = len(read_metrics(tmp_path / "whole" / "metrics.jsonl"))
    assert lines >= 6
    started = []
    for n in (2, lines // 2, lines - 1):  # in the first round, in the middle, just before the end
        out = tmp_path / f"cut{n}"
        start = interrupt(config, out, one_device_mesh, n)
        started.append(start)
        resumed, reached = finish(config, out, one_device_mesh, start)
        assert_same(resumed, whole)
        assert reached == position
        records = [{k: v for k, v in r.items() if k != "time" and not k.startswith("perf")} for r in
                   read_metrics(out / "metrics.jsonl")]  # fmt: skip
        steps = [(r["phase"], r["step"]) for r in records]
        assert len(set(steps)) == len(steps), "a resumed run wrote a line twice"
    assert any(start is not None for start in started)


def test_earlier_step_can_be_resumed(tmp_path, one_device_mesh):
    config = micro_config("selection")
    whole, _ = finish(config, tmp_path, one_device_mesh)
    steps = Checkpoints(tmp_path / "checkpoints").steps()
    assert len(steps) > 2
    again, _ = finish(config, tmp_path, one_device_mesh, start=steps[1])
    assert_same(again, whole)


def test_a_round_changes_the_weights_and_writes_its_traces(tmp_path, one_device_mesh):
    config = micro_config("selection")
    em = make_em(config, tmp_path, one_device_mesh)
    before = jax.tree.map(np.asarray, em.base)
    reports = []
    em.on_round = lambda params, report: reports.append(report)
    params, position = em.train(None)
    em.checkpoints.close()
    assert [r.position.round for r in reports] == [0, 1]
    assert any(
        np.abs(np.asarray(a) - b).max() > 0
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True)
    )
    assert_same(jax.tree.map(np.asarray, em.base), before)  # the base survives donation
    for round_ in (1, 2):
        lines = (tmp_path / f"traces/round-{round_}.jsonl").read_text().splitlines()
        assert [json.loads(x)["example_id"] for x in lines] == [p.example_id for p in PROGRAMS]
    spent = position.compute
    assert spent.sampled > 0 and spent.scored > 0 and spent.trained > 0
    assert spent.units == spent.sampled + spent.scored + 3 * spent.trained


def test_m_step_from_the_base(tmp_path, one_device_mesh):
    import dataclasses

    config = micro_config("selection")
    from_base = dataclasses.replace(config, mstep=dataclasses.replace(config.mstep, init="base"))
    a, _ = finish(config, tmp_path / "a", one_device_mesh)
    b, _ = finish(from_base, tmp_path / "b", one_device_mesh)
    assert differ(a, b)


def test_position_survives_json():
    report = AnnotationReport(0.25, 3.5, 0.9, -1.0, -2.0, 100, 50)
    position = Position(1, "estep", 7, EStepState(2, 0.5, 1, 2, 3), Progress(1, 2, 0), report, Compute(1, 2, 3))
    assert Position.from_json(json.loads(json.dumps(position.to_json()))) == position
    assert Position.from_json(json.loads(json.dumps(Position().to_json()))) == Position()


def test_another_architecture_is_refused(tmp_path, one_device_mesh):
    from ra3_jax.model.checkpoint import abstract_params
    from ra3_jax.model.config import tiny
    from ra3_jax.model.language_model import LanguageModel

    finish(micro_config("selection"), tmp_path, one_device_mesh)
    other = LanguageModel(tiny(365, d_model=32, n_layers=1, n_heads=2))
    with (
        Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match="another architecture"),
    ):
        checkpoints.restore_part({"params": abstract_params(other, one_device_mesh)})
