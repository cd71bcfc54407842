"""Rounds of EM: what they write, and that an interrupted run ends where the undisturbed one does, bit for bit."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from ra3_jax.core.checkpoint import CheckpointError, Checkpoints, list_steps
from ra3_jax.core.config import MeshConfig
from ra3_jax.core.mesh import make_mesh
from ra3_jax.core.metrics import MetricsWriter, read_metrics
from ra3_jax.data.config import DataConfig
from ra3_jax.midtrain import annotate, rollouts
from ra3_jax.midtrain.annotate import AnnotationReport
from ra3_jax.midtrain.config import check_config
from ra3_jax.midtrain.em import Compute, EStepState, Position
from ra3_jax.model.checkpoint import load_model, save_model_artifacts
from ra3_jax.model.config import LoRAConfig
from ra3_jax.train.loop import Progress, Stopped
from tests.midtrain.micro import CODEC, PROGRAMS, finish, make_em, micro_config, thinking_params


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


LORA = LoRAConfig(rank=2)


def with_adapters(method: str, **mstep):
    """Adapters in both steps; no baseline goes back to the base, so that they are merged into it in place."""
    config = micro_config(method)
    return dataclasses.replace(
        config,
        mstep=dataclasses.replace(config.mstep, lora=LORA, **mstep),
        estep=dataclasses.replace(config.estep, lora=LORA),
        ntp=dataclasses.replace(config.ntp, compare=bool(mstep)),
    )


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
        assert timeless(out) == timeless(tmp_path / "whole")  # no line twice, none lost
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


def test_adapters_leave_the_rest_alone_and_every_checkpoint_is_a_model(tmp_path, one_device_mesh):
    """And from any of them, in the middle of an E-step or M-step too, the run ends where the undisturbed one does."""
    config = with_adapters("policy_gradient")
    base = jax.tree.map(np.asarray, thinking_params())
    em = make_em(config, tmp_path, one_device_mesh)
    save_model_artifacts(em.run, em.bench.model.config, CODEC.tokenizer)
    after_round = []
    em.on_round = lambda params, report: after_round.append(jax.tree.map(np.array, params))
    params, position = em.train(None)
    em.checkpoints.close()
    em.metrics.close()
    trained = {name for name, w in params["layers"].items() if differ(w, base["layers"][name])}
    assert trained == set(LORA.targets)
    assert_same(params["embed"], base["embed"])
    steps = list_steps(tmp_path / "checkpoints")
    models = [load_model(str(tmp_path), one_device_mesh, step=step).params for step in steps]
    assert_same(models[-1], params)
    assert sum(not differ(model, after_round[0]) for model in models) >= 2  # at the end of round 1, while q is trained
    assert all(jax.tree.structure(model) == jax.tree.structure(base) for model in models)
    assert len(after_round) == 2 and differ(*after_round)
    expected, lines = jax.tree.map(np.array, params), timeless(tmp_path)
    positions = [Checkpoints(tmp_path / "checkpoints").read_meta(step)["position"] for step in steps]
    in_estep, in_mstep = (
        next(step for step, at in zip(steps, positions, strict=True) if at["round"] == round_ and at["phase"] == phase)
        for round_, phase in ((1, "estep"), (0, "mstep"))
    )
    for start in (steps[-2], in_estep, in_mstep):
        resumed, reached = finish(config, tmp_path, one_device_mesh, start)
        assert_same(resumed, expected)
        assert reached == position and timeless(tmp_path) == lines


def test_adapters_from_the_base(tmp_path, one_device_mesh):
    """Every round begins at the base again, which is neither trained nor given away."""
    em = make_em(with_adapters("selection", init="base"), tmp_path, one_device_mesh)
    before = jax.tree.map(np.array, em.base)
    params, _ = em.train(None)
    em.checkpoints.close()
    assert_same(em.base, before)
    assert differ(params, before)


def test_q_of_adapters_keeps_no_weights():
    config = with_adapters("policy_gradient")
    with pytest.raises(ValueError, match="em.q_init=keep with estep.lora.rank"):
        check_config(dataclasses.replace(config, em=dataclasses.replace(config.em, q_init="keep")), 1)


def test_m_step_from_the_base(tmp_path, one_device_mesh):
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


class StopAfter:
    """`should_stop` that says yes once, from the n-th time it is asked."""

    def __init__(self, n: int):
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("name", ["selection", "policy_gradient, q keeps its weights"])
def test_stopped_again_and_again(name, tmp_path, one_device_mesh, monkeypatch):
    """Stops in all phases: nothing is done twice, and the end is that of the undisturbed run."""
    batches = []
    monkeypatch.setattr(
        annotate, "roll_out", lambda *args, **kwargs: batches.append(args[2]) or rollouts.roll_out(*args, **kwargs)
    )
    config = CASES[name]
    whole, position = finish(config, tmp_path / "whole", one_device_mesh)
    expected, batches[:] = list(batches), []
    out, start, reasons = tmp_path / "stopped", None, []
    for _ in range(40):
        em = make_em(config, out, one_device_mesh, start=start)
        em.should_stop = StopAfter(1)
        try:
            params, reached = em.train(start)
            break
        except Stopped as stopped:
            reasons.append(str(stopped))
        finally:
            em.checkpoints.close()
            em.metrics.close()
        start = em.checkpoints.latest_step()
    else:
        pytest.fail(f"never ended: {reasons}")
    assert_same(jax.tree.map(np.asarray, params), whole)
    assert reached == position
    assert batches == expected  # each program is annotated once
    phases = ["annotated", "M-step 1", "M-step 2", *(["E-step 1", "E-step 2"] if "policy" in name else [])]
    for phase in phases:
        assert any(phase in reason for reason in reasons), (phase, reasons)
    assert timeless(out) == timeless(tmp_path / "whole")
    assert not list(out.glob("traces/*.parts"))
    for trace in sorted((tmp_path / "whole/traces").iterdir()):
        assert (out / "traces" / trace.name).read_text() == trace.read_text()


def timeless(out):
    drop = ("time", "perf/step_s", "perf/tokens_per_s", "perf/compiles")
    return [{k: v for k, v in line.items() if k not in drop} for line in read_metrics(out / "metrics.jsonl")]


def test_parts_of_other_settings_are_not_used(tmp_path, one_device_mesh):
    config = micro_config("selection")
    em = make_em(config, tmp_path / "a", one_device_mesh)
    em.should_stop = StopAfter(1)
    with pytest.raises(Stopped, match="annotated"):
        em.train(None)
    parts = em._parts(0)
    done, totals = parts.load(PROGRAMS)
    assert 0 < len(done) < len(PROGRAMS) and totals.sampled > 0
    assert all(done[i].program is PROGRAMS[i] for i in done)
    other = make_em(dataclasses.replace(config, seed=1), tmp_path / "a", one_device_mesh)._parts(0)
    assert other.identity != parts.identity and other.load(PROGRAMS)[0] == {}
    same = make_em(dataclasses.replace(config, rollout_batch=8), tmp_path / "a", one_device_mesh)._parts(0)
    assert same.identity == parts.identity
    em.checkpoints.close()


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory):
    """(config, directory of a run on eight devices, all of whose checkpoints are there)."""
    out = tmp_path_factory.mktemp("eight")
    config = micro_config("selection")
    loop = dataclasses.replace(config.mstep.loop, batch_size=8)
    config = dataclasses.replace(config, mstep=dataclasses.replace(config.mstep, loop=loop, epochs=3))
    em = dataclasses.replace(config.em, rounds=1)
    config = dataclasses.replace(config, em=em, data=DataConfig(sequence_length=64))
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    with jax.set_mesh(mesh):
        finish(config, out, mesh)
    return config, out


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_saved_on_eight_devices_resumed_on_fewer(devices, tmp_path, one_device_mesh, eight_devices):
    """From the middle of an M-step on, fewer devices see the same examples, with the same losses."""
    config, whole = eight_devices
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    last = list_steps(out / "checkpoints")[-1]
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        finish(config, out, mesh, start=last - 4)
    expected, found = timeless(whole), timeless(out)
    assert [line["phase"] for line in found[-4:]] == ["mstep"] * 4
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for name in ("step", "phase", "weight"):  # the number of tokens: that of other examples would be another
            assert a.get(name) == b.get(name)
        if a["phase"] == "mstep":
            assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
            assert b["nll/code"] == pytest.approx(a["nll/code"], abs=1e-5)
    assert len({line["weight"] for line in found[-4:]}) > 1


@pytest.fixture(scope="module")
def eight_devices_with_q(tmp_path_factory):
    """As `eight_devices`, in the middle: three updates by policy gradient, whose rollouts come in two batches."""
    out = tmp_path_factory.mktemp("eight-with-q")
    config = micro_config("policy_gradient")
    config = dataclasses.replace(
        config,
        em=dataclasses.replace(config.em, rounds=1),
        estep=dataclasses.replace(config.estep, updates=3, rollout_batch=8),
        mstep=dataclasses.replace(config.mstep, loop=dataclasses.replace(config.mstep.loop, batch_size=8)),
    )
    estep(config, out, 8, start=None, updates=3)
    return config, out


def estep(config, out, devices: int, start: int | None, updates: int) -> None:
    """So many updates of the E-step on so many devices, from the checkpoint of step `start` on."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        em = make_em(config, out, mesh, start=start)
        em.should_stop = StopAfter(updates)
        with pytest.raises(Stopped), em.checkpoints, em.metrics:
            em.train(start)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_an_estep_saved_on_eight_devices_resumed_on_fewer(devices, tmp_path, one_device_mesh, eight_devices_with_q):
    """The second and third update: the same programs, the same thoughts, the same losses."""
    config, whole = eight_devices_with_q
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    estep(config, out, devices, start=1, updates=2)
    expected, found = timeless(whole), timeless(out)
    assert [line["phase"] for line in found] == ["estep"] * 3
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys() and (a["step"], a["weight"]) == (b["step"], b["weight"])
        for name in ("loss", "reward", "return", "latent/think_rate", "latent/mean_len"):
            assert b[name] == pytest.approx(a[name], abs=1e-5), name
    assert len({line["reward"] for line in found}) == 3
