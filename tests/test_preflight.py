"""Preflight: what the TPU compiler says of our programs, on a machine without any TPU.

Small models: one program for every chip generation, an update with its gradient, a program that is too large.
"""

import dataclasses
import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.aot import (
    Memory,
    TooLarge,
    bytes_per_device,
    compile_lowered,
    devices_of,
    first_sentence,
    memory_limit,
)
from experiments.preflight import GIB, PRESETS, PreflightConfig, main, prepare_environment
from experiments.preflight_table import check, find_fit, notes, row
from experiments.programs import Programs, Shapes, Step
from ra3_jax.core.config import MeshConfig
from ra3_jax.core.errors import InputError
from ra3_jax.core.hardware import CHIPS, chip_of
from ra3_jax.core.mesh import make_mesh
from ra3_jax.model.attention import attend, choose_kernel, packed_mask
from ra3_jax.model.config import LoRAConfig, ModelConfig
from ra3_jax.model.language_model import LanguageModel
from ra3_jax.model.splash import block_size, splash_attend

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed: pip install libtpu"
)
SMALL = ModelConfig(
    "llama", 512, d_model=128, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=64, d_ff=256, rope_theta=1e4,
    norm_eps=1e-5, tie_embeddings=True, max_positions=4096, dtype="bfloat16", remat="full",
)  # fmt: skip
KERNEL = "tpu_custom_call"


@pytest.fixture(autouse=True, scope="module")
def environment():
    """What the command sets; and no cache of programs, which cannot hold those of a machine that is not here."""
    before = dict(os.environ)
    prepare_environment("v5e:1x1")
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    os.environ.clear()
    os.environ.update(before)


def small_jobs(devices: int, rows: int = 1, length: int = 128) -> PreflightConfig:
    """The llama3.2-1b jobs, cut down; `rows` on each device."""
    base, n = PRESETS["llama3.2-1b"], devices * rows
    midtrain, rlvr = base.midtrain, base.rlvr
    midtrain = dataclasses.replace(
        midtrain,
        data=dataclasses.replace(midtrain.data, sequence_length=length),
        mstep=dataclasses.replace(
            midtrain.mstep, loop=dataclasses.replace(midtrain.mstep.loop, batch_size=n, accumulate=1)
        ),
        estep=dataclasses.replace(
            midtrain.estep, group=2, programs_per_update=n, window_lines=8, max_latent_tokens=4, accumulate=1
        ),
        rollout_batch=2 * n,
        vocab_chunk=64,
    )
    rollout = dataclasses.replace(rlvr.rollout, prompts=n, samples=2, max_new=64, lanes=n)
    rlvr = dataclasses.replace(rlvr, rollout=rollout, accumulate=1, vocab_chunk=64)
    return dataclasses.replace(base, midtrain=midtrain, rlvr=rlvr)


def step_of(programs: Programs, name: str) -> Step:
    return next(step for step in programs.steps() if name in step.name)


# --- the compiler


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "mesh", "name", "limit", "kernel"),
    [
        ("v5e:2x2", MeshConfig(1, 4, 1), "prefill", 15.75, True),
        ("v5p:2x2x1", MeshConfig(2, 2, 1), "scorer", 95.7, True),
        ("v6e:2x2", MeshConfig(1, 4, 1), "scorer", 31.2, True),
        ("v4:2x2x1", MeshConfig(1, 4, 1), "decode", 31.0, False),
        ("tpu7x:2x2x1", MeshConfig(1, 8, 1), "decode", 94.7, False),
    ],
)
def test_every_generation_compiles(topology: str, mesh: MeshConfig, name: str, limit: float, kernel: bool):
    made = make_mesh(mesh, devices_of(topology))
    config = small_jobs(made.devices.size)
    with jax.set_mesh(made):
        assert (memory_limit(made) or 0) / GIB == pytest.approx(limit, abs=0.6)
        step = step_of(Programs(made, config.midtrain, config.rlvr, Shapes(prompt=128)), name)
        lowered = step.build(LanguageModel(SMALL), step.choices[0]).work.lower()
        found = compile_lowered(lowered).result
    assert isinstance(found, Memory) and 0 < found.total < 2**28
    assert (KERNEL in lowered.as_text()) == kernel  # a cache is read by the einsum


@needs_libtpu
def test_an_update_takes_over_its_state_and_keeps_its_gradient_sharded():
    mesh = make_mesh(MeshConfig(1, 4, 1), devices_of("v5e:2x2"))
    config = small_jobs(4)
    with jax.set_mesh(mesh):
        step = step_of(Programs(mesh, config.midtrain, config.rlvr, Shapes()), "M-step")
        finding = find_fit(step, LanguageModel(SMALL), memory_limit(mesh), search=False)
    memory = finding.last.compiled.result
    assert finding.fits and isinstance(memory, Memory)
    state = 3 * 4 * SMALL.n_params / 4  # weights and two moments in float32, cut over four devices
    assert state <= memory.donated < 1.5 * state  # small arrays are padded to tiles
    assert finding.last.program.beside == pytest.approx(0)  # nothing else lies there
    tokens, per_token = 4 * 128, SMALL.forward_flops(64)
    assert 3 * per_token * tokens < finding.flops < 5 * per_token * tokens  # backward, and forward once more (remat)


@needs_libtpu
def test_what_does_not_fit_is_said_and_what_does_is_found():
    """The logits of 64 rows at once on one v5e: too large, in seconds; those of 4 rows fit."""
    mesh = make_mesh(MeshConfig(1, 1, 1), devices_of("v5e:1x1"))
    config = small_jobs(1)
    config = dataclasses.replace(config, rlvr=dataclasses.replace(config.rlvr, vocab_chunk=None))
    model = dataclasses.replace(SMALL, vocab_size=32768)
    with jax.set_mesh(mesh):
        steps = Programs(mesh, config.midtrain, config.rlvr, Shapes(prompt=4096)).steps()
        step = next(step for step in steps if (step.job, step.name) == ("rlvr", "scorer"))
        step = dataclasses.replace(step, choices=(64, 4))
        finding = find_fit(step, LanguageModel(model), memory_limit(mesh), search=True)
    first, last = finding.attempts
    assert isinstance(first.compiled.result, TooLarge)
    assert re.search(r"RESOURCE_EXHAUSTED.*15\.75G", first.problem or "")
    assert finding.fits and last.value == 4


@needs_libtpu
def test_attention_is_chosen_by_the_devices_of_the_mesh():
    assert jax.default_backend() == "cpu" and choose_kernel(SMALL, 4096) == "einsum"
    with jax.set_mesh(make_mesh(MeshConfig(1, 1, 1), devices_of("v5e:1x1"))):
        assert [choose_kernel(SMALL, length) for length in (4096, 5000, 16)] == ["splash", "splash", "einsum"]
        assert choose_kernel(dataclasses.replace(SMALL, attention="einsum"), 4096) == "einsum"


# --- without it


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5p-8", "a name of Google Cloud"),
        ("v5litepod-16", "a name of Google Cloud"),
        ("v5e", "v5e:1x1 2x2"),
        ("h100", "cpu, cpu:N"),
        ("v7x:2x2x1", "tpu7x:2x2x1"),
        ("cpu:many", "cpu:many"),
    ],
)
def test_wrong_names_give_the_accepted_forms(name: str, said: str):
    with pytest.raises(InputError, match=re.escape(said)) as error:
        devices_of(name)
    assert name in str(error.value)


@needs_libtpu
def test_a_slice_that_does_not_exist_shows_the_compilers_words():
    with pytest.raises(InputError, match="not divisible.*expected one of"):
        devices_of("v5e:3x7".replace("\n", " "))


def test_the_first_sentence_of_a_refusal():
    words = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (34.91G) exceeds available HBM (15.75G). HLO module: jit_f.\nSee https://openxla.org for details."
    )
    assert first_sentence(words).endswith("exceeds available HBM (15.75G)")


def test_the_roofline():
    v5e = CHIPS["TPU v5 lite"]
    assert v5e.floor_seconds(197e12, 0) == 1.0 and v5e.floor_seconds(0, 819e9) == 1.0
    assert v5e.bound_by(197e12, 1e9) == "FLOPs" and v5e.bound_by(1e9, 1e9) == "HBM"
    assert chip_of("cpu") is None
    assert CHIPS["TPU7x"].bf16_flops == 2307e12 / 2  # a chip is two devices


def test_a_job_on_cpus(capsys, tmp_path):
    """The whole command: no TPU, no limit, no bound; what the compiler says nevertheless."""
    table = tmp_path / "table.md"
    argv = ["--preset", "micro", "--topology", "cpu:2", "--steps", "M-step", "decode", "--out", str(table)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "midtrain: M-step / NTP update" in printed and "everything fits" in printed
    written = table.read_text()
    assert "python -m experiments.preflight --preset micro" in written and "| unknown |" in written
    assert str(tmp_path) not in written


def test_adapters_on_cpus():
    """Frozen weights are arguments, not donated; of what lies beside, moments are those of the adapters."""
    config = PRESETS["micro"]
    lora = LoRAConfig(rank=2)
    midtrain = dataclasses.replace(
        config.midtrain,
        estep=dataclasses.replace(config.midtrain.estep, method="policy_gradient", lora=lora),
        mstep=dataclasses.replace(config.midtrain.mstep, lora=lora),
        ntp=dataclasses.replace(config.midtrain.ntp, compare=False),
    )
    rlvr = dataclasses.replace(config.rlvr, lora=lora)
    config = dataclasses.replace(config, topology="cpu:1", midtrain=midtrain, rlvr=rlvr)
    config = dataclasses.replace(config, steps=("E-step", "decode"))
    report = check("micro", config)
    assert report.status == 0 and len(report.findings) == 2
    weights = 4 * report.model.n_params
    for finding in report.findings:
        memory, program = finding.last.compiled.result, finding.last.program
        assert isinstance(memory, Memory) and memory.arguments > weights
        if "update" in finding.step.name:
            assert 0 < bytes_per_device(program.donated) <= memory.donated < weights and program.beside == 0
        else:
            assert 0 < program.beside < weights


def test_settings_that_no_job_would_accept():
    config = dataclasses.replace(PRESETS["micro"], topology="cpu:8", steps=("M-step",))
    with pytest.raises(InputError, match="no multiple of 3 x 8"):
        check("micro", dataclasses.replace(config, rows=3))
    with pytest.raises(InputError, match="no step has such a name"):
        check("micro", dataclasses.replace(config, steps=("mstp",)))
    with pytest.raises(InputError, match="expected one of llama3.2-1b"):
        check("micro", dataclasses.replace(config, model="gpt-5"))


def test_rows_and_search_on_cpus():
    """Half of the rows a device: two microbatches; the cells of the table say so."""
    config = dataclasses.replace(PRESETS["micro"], topology="cpu:2", steps=("M-step",), rows=2)
    report = check("micro", config)
    (finding,) = report.findings
    assert finding.last.value == 2 and report.status == 0 and notes(report) == []
    assert row(finding, report)[1] == "2"


# --- the kernel


@pytest.mark.parametrize(("length", "head_dim", "rows"), [(200, 64, 4), (128, 128, 3), (300, 128, 2)])
def test_the_kernel_takes_any_rows(length: int, head_dim: int, rows: int):
    """Values and gradients equal the reference's where neither length nor rows fit blocks and mesh."""
    rng = np.random.default_rng(0)
    q_BTKGE, weight_BTKGE = rng.normal(size=(2, rows, length, 2, 2, head_dim)).astype(np.float32)
    k_BKTE, v_BKTE = rng.normal(size=(2, rows, 2, length, head_dim)).astype(np.float32)
    segment_ids_BT = np.sort(rng.integers(0, 4, (rows, length)), axis=-1).astype(np.int32)

    def by_splash(q, k, v):
        return jnp.sum(splash_attend(q, k, v, jnp.asarray(segment_ids_BT), interpret=True) * weight_BTKGE)

    def by_einsum(q, k, v):
        return jnp.sum(attend(q, k, v, packed_mask(jnp.asarray(segment_ids_BT))) * weight_BTKGE)

    inputs = (q_BTKGE, k_BKTE, v_BKTE)
    expected = jax.jit(jax.value_and_grad(by_einsum, (0, 1, 2)))(*inputs)
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
        found = jax.jit(jax.value_and_grad(by_splash, (0, 1, 2)))(*inputs)
    for a, b in zip(jax.device_get(jax.tree.leaves(found)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-4)


def test_blocks():
    assert [block_size(n) for n in (128, 300, 512, 1000, 4096, 5184)] == [128, 128, 512, 512, 512, 512]
    assert all(-n % block_size(n) <= max(n / 8, 127) for n in range(128, 6000, 37))
