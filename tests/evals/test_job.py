"""The command from flags to files: what goes in, what comes out, and what is said when something is wrong."""

import gzip
import json
import sys
from pathlib import Path

import jax
import pytest

from experiments import cli, evaluate
from ra3_jax.core.errors import InputError
from ra3_jax.data import puzzles
from ra3_jax.evals import job
from ra3_jax.evals.config import EvaluateConfig
from tests.bench_data import bench_file, bench_folder
from tests.evals.small import hf_model


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path: Path):
    """Little compiling; a working directory of its own for `runs/`."""
    monkeypatch.setattr(cli, "set_up_jax", lambda: None)
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def puzzle_file(path: Path, n: int = 6) -> Path:
    """Right programs for the even puzzles, unfinished ones for the odd, each twice and with a thought."""
    rows = []
    for i, puzzle in enumerate(puzzles.generate("test", n, job.PUZZLE_SEED)):
        code = puzzle.prompt + "# thought\n" + (puzzle.code if i % 2 == 0 else "    return xs\n")
        rows += [{"task_id": puzzle.name, "solution": code, "sample": k} for k in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_samples_of_puzzles(tmp_path: Path, capsys):
    path = puzzle_file(tmp_path / "mine.jsonl")
    argv = ["--benchmark", "puzzles", "--samples", str(path), "--max-tasks", "6", "--k", "1", "2"]
    assert evaluate.main(argv) == 0
    out = capsys.readouterr().out
    assert "pass@1 │ 50.0 % [" in out and "pass@2 │ 50.0 % [" in out and "6 tasks" in out
    run = tmp_path / "runs" / "evaluate-puzzles-mine"
    assert {file.name for file in run.iterdir()} == {"config.json", "results.json", "report.html", "verdicts.jsonl"}
    results = json.loads((run / "results.json").read_text())
    assert results["summary"]["pass@k"]["2"]["mean"] == 0.5
    assert [t["samples"][0]["status"] for t in results["tasks"]] == ["pass", "fail"] * 3
    assert results["summary"]["samples"]["sha256"] and results["summary"]["model"] is None
    assert len((run / "verdicts.jsonl").read_text().splitlines()) == 6  # equal programs are judged once
    assert evaluate.main([*argv, "--strip-thoughts"]) == 0
    again = json.loads((run / "results.json").read_text())
    assert again["summary"]["strip_thoughts"] is True and again["tasks"] == results["tasks"]
    assert len((run / "verdicts.jsonl").read_text().splitlines()) == 12
    assert "# thought" not in (run / "report.html").read_text()


def test_the_same_command_again_changes_nothing(tmp_path: Path):
    path = puzzle_file(tmp_path / "mine.jsonl")
    config = EvaluateConfig("puzzles", samples=str(path), max_tasks=6)
    first, second = job.evaluate(config), job.evaluate(config)
    assert first == second


@pytest.mark.parametrize("chat", [True, False])
def test_a_random_hf_checkpoint_end_to_end(tmp_path: Path, chat: bool, capsys):
    """Asked by its chat template where it has one, else given the prompt; what it writes passes nothing."""
    model = hf_model(tmp_path, chat=chat)
    dtype = "bfloat16" if chat else None
    config = EvaluateConfig("puzzles", model=str(model), max_tasks=2, max_new=16, batch=2, out="out", dtype=dtype)
    results = job.evaluate(config)
    summary = results["summary"]
    assert summary["settings"]["chat"] is chat and summary["model"] == f"hf {model}"
    assert summary["pass@k"]["1"]["mean"] == 0 and 0 < summary["tokens_per_sample"] <= 16
    assert ("asked by its chat template" if chat else "given prompts to continue") in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("out/samples.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    for row, puzzle in zip(rows, puzzles.generate("test", 2, job.PUZZLE_SEED), strict=True):
        assert row["task_id"] == puzzle.name and row["model"] == f"hf {model}"
        if chat:
            assert row["completion"] == "\n" + row["solution"] and row["response"]
        else:
            assert row["solution"] == puzzle.prompt + row["completion"]
    assert job.evaluate(config)["tasks"] == results["tasks"]


def test_humaneval_in_the_sandbox(tmp_path: Path):
    """Three tasks: the canonical solution, a wrong one, and one that would like to end its judge."""
    with gzip.open(bench_file("HumanEval.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file][:3]
    rows[1]["canonical_solution"] = "    return []\n"
    rows[2]["canonical_solution"] = "    import os\n    os.kill(os.getppid(), 9)\n    os._exit(0)\n"
    path = tmp_path / "samples.jsonl"
    samples = [{"task_id": r["task_id"], "completion": r["canonical_solution"]} for r in rows]
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    config = EvaluateConfig(
        "humaneval", samples=str(path), data_dir=str(bench_folder()), max_tasks=3, level=0, allow_unsandboxed=True
    )
    results = job.evaluate(config)
    statuses = [task["samples"][0]["status"] for task in results["tasks"]]
    assert statuses[:2] == ["pass", "fail"] and statuses[2] in ("error", "killed")
    assert results["summary"]["label"] == "HumanEval (164), first 3 tasks only"
    assert results["summary"]["origin"]["known"] is True and results["summary"]["sandbox"].startswith("L")
    assert results["tasks"][1]["samples"][0]["first_failing"] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "either --samples FILE"),
        (["--samples", "a", "--model", "b"], "either --samples FILE"),
        (["--samples", "a", "--k", "0"], "--k (0,): expected numbers from 1 on"),
        (["--model", "m", "--samples-per-task", "4"], "greedy samples of a task are all the same"),
        (["--model", "m", "--top-p", "0"], "--top-p 0"),
        (["--samples", "a", "--data-dir", "d"], "--data-dir: puzzles are generated"),
        (["--samples", "a", "--max-tasks", "0"], "--max-tasks 0: expected at least 1"),
        (["--samples", "none.jsonl"], "none.jsonl"),
        (["--model", "no/such/model"], "no such directory"),
    ],
)
def test_flags_that_cannot_be_are_explained(argv: list[str], message: str, capsys):
    with pytest.raises(SystemExit) as error:
        evaluate.main(["--benchmark", "puzzles", *argv])
    assert error.value.code == 1
    found = capsys.readouterr().err
    assert message in found and found.startswith("error: ")


def test_flags_of_benchmarks(tmp_path: Path):
    folder = str(bench_folder())
    cases = {
        "expected a day": EvaluateConfig("livecodebench", samples="s", data_dir=folder, start_date="August"),
        "has no such option": EvaluateConfig("humaneval", samples="s", data_dir=folder, release="release_v5"),
        "no HumanEvalPlus.jsonl.gz": EvaluateConfig("humaneval+", samples="s", data_dir=str(tmp_path)),
    }
    for message, config in cases.items():
        with pytest.raises(InputError, match=message):
            job.evaluate(config)


def test_a_level_that_this_machine_lacks_is_an_input_error(tmp_path: Path, monkeypatch):
    from ra3_jax.sandbox.level import IsolationError

    def refuse(*args, **kwargs):
        raise IsolationError("isolated at level L0 here; to change that: sudo ...")

    monkeypatch.setattr(job, "Pool", refuse)
    config = EvaluateConfig("humaneval", samples="s.jsonl", data_dir=str(bench_folder()), allow_partial=True)
    Path("s.jsonl").write_text('{"task_id": "HumanEval/0", "completion": "x"}\n')
    with pytest.raises(InputError, match="to change that: sudo"):
        job.evaluate(config)


@pytest.mark.parametrize("argv", [["--benchmark", "humanevil"], ["--levle", "2"], ["--k", "one"], []])
def test_wrong_flags_end_with_status_2(argv: list[str], capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate"])
    with pytest.raises(SystemExit) as error:
        evaluate.main(argv)
    assert error.value.code == 2


def codeforces_files(folder: Path, n: int = 3) -> Path:
    """Problems 1971A, B, ... that ask for the input plus one; right programs for all but the last; standings."""
    rows = [{"problem": f"Add one. {i}", "tests": [{"input": f"{i}\n", "output": f"{i + 1}\n"}]} for i in range(n)]
    (folder / "test_codeforces.json").write_text(json.dumps(rows))
    (folder / "rllm_test_codeforces.json").write_text(json.dumps(rows))
    ids = [f"1971{'ABCDEF'[i]}" for i in range(n)]
    (folder / "rllm_metadata_cf.json").write_text(json.dumps(ids))
    people = [{"party": {"members": [{"handle": f"p{i}"}]}, "points": 2.0 - i / 300, "penalty": 0} for i in range(300)]
    problems = [{"contestId": 1971, "index": "ABCDEF"[i], "points": 1.0} for i in range(n)]
    changes = [{"handle": f"p{i}", "oldRating": 2000 - i} for i in range(300)]
    contest = {"standings": {"rows": people, "problems": problems}, "rating_changes": changes}
    (folder / "standings.json").write_text(json.dumps({"1971": contest}))
    samples = folder / "samples.jsonl"
    program = "print(int(input()) + 1)\n"
    lines = [{"task_id": f"codeforces/{i}", "solution": program if i < n - 1 else "print(0)\n"} for i in range(n)]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return samples


def test_a_rating_where_standings_are_given_and_pass_at_k_otherwise(tmp_path: Path, capsys):
    samples = codeforces_files(tmp_path)
    argv = ["--benchmark", "codeforces", "--samples", str(samples), "--data-dir", str(tmp_path)]
    assert evaluate.main([*argv, "--out", str(tmp_path / "plain")]) == 0
    assert "without them there is pass@k only" in capsys.readouterr().out
    plain = json.loads((tmp_path / "plain" / "results.json").read_text())
    assert plain["summary"]["rating"] is None and plain["summary"]["pass@k"]["1"]["mean"] == pytest.approx(2 / 3)
    assert (
        evaluate.main([*argv, "--out", str(tmp_path / "rated"), "--standings", str(tmp_path / "standings.json")]) == 0
    )
    assert "Codeforces rating" in capsys.readouterr().out
    rated = json.loads((tmp_path / "rated" / "results.json").read_text())
    # 2 points: nobody has more, one person has as many: at the top, no further than 100 above the best
    assert rated["summary"]["rating"]["rating"] >= 1999 and rated["summary"]["rating"]["left_out"] == []


def test_only_codeforces_has_a_rating(tmp_path: Path):
    path = puzzle_file(tmp_path / "mine.jsonl")
    config = EvaluateConfig("puzzles", samples=str(path), standings="x.json")
    with pytest.raises(InputError, match="only codeforces"):
        job.evaluate(config)
