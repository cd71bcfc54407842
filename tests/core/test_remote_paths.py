"""What the jobs write and read below gs://, on a fake bucket. Checkpoints are Orbax's matter."""

from ra3_jax.core.metrics import MetricsWriter, read_metrics
from ra3_jax.core.rundir import RunDir, open_run
from ra3_jax.midtrain.annotate import Totals
from ra3_jax.midtrain.parts import Parts
from tests.midtrain.micro import CODEC, PROGRAMS


def test_a_run_directory_in_a_bucket(bucket):
    run, start = open_run("gs://bucket/runs/one", {"seed": 1})
    assert start is None and (bucket / "bucket/runs/one/config.json").exists()
    assert run.read_config() == {"seed": 1}
    with MetricsWriter(run.metrics) as metrics:
        metrics.write(1, "mstep", {"loss": 2.0})
        metrics.write(2, "mstep", {"loss": 1.0})
    with MetricsWriter(run.metrics, resume_step=1) as metrics:
        metrics.write(2, "mstep", {"loss": 3.0})
    assert [line["loss"] for line in read_metrics(run.metrics)] == [2.0, 3.0]
    run.save_artifacts({"tokenizer/a.json": "{}"})
    run.save_artifacts({"tokenizer/a.json": "{}"})
    assert run.artifact("tokenizer/a.json") == b"{}"


def test_parts_of_an_annotation_in_a_bucket(bucket):
    from ra3_jax.data.trace import plain

    run = RunDir.at("gs://bucket/runs/two")
    parts = Parts(run, 0, "settings")
    parts.add({0: plain(PROGRAMS[0])}, Totals(kept=1))
    parts.flush()
    parts.add({2: plain(PROGRAMS[2])}, Totals(kept=2))
    parts.flush()
    assert len(list((bucket / "bucket/runs/two/traces/round-1.parts").iterdir())) == 2
    again = Parts(run, 0, "settings")
    done, totals = again.load(PROGRAMS)
    assert sorted(done) == [0, 2] and totals == Totals(kept=2)
    assert (done[2].tokens_T == plain(PROGRAMS[2]).tokens_T).all() and CODEC.decode(done[2].tokens_T)
    again.add({1: plain(PROGRAMS[1])}, Totals(kept=3))
    again.flush()  # after those that were there
    assert sorted(Parts(run, 0, "settings").load(PROGRAMS)[0]) == [0, 1, 2]
    again.remove()
    assert Parts(run, 0, "settings").load(PROGRAMS)[0] == {}
