"""Worker processes: what a hostile program can and cannot do to them."""

import json
import os

import pytest

from ra3_jax.tasks import runner
from ra3_jax.tasks.runner import Job, Limits, Outcome, Result, run_programs

PYTHON = runner.WORKER[:-2]  # without "-m" and the module
GOOD = Job("def f(x):\n    return x + 1\n", "f", ((1,), (2,)))
DONE = Outcome("ran", "", (Result("returned", 2), Result("returned", 3)))


def job(source: str) -> Job:
    return Job(source, "f", ((1,),))


def test_runs_in_order_on_any_number_of_workers():
    jobs = [Job(f"def f(x):\n    return x * {i}\n", "f", ((i,),)) for i in range(7)]
    expected = [Outcome("ran", "", (Result("returned", i * i),)) for i in range(7)]
    assert run_programs(jobs) == expected
    assert run_programs(jobs, Limits(workers=3)) == expected
    assert run_programs([]) == []


def test_hostile_programs_lose_only_themselves():
    hostile = [
        "import os\nos._exit(0)\ndef f(x): pass",
        "def f(x):\n    print('ready')\n    print('{\"status\": \"ran\"}' * 99)\n    return 0",
        "def f(x):\n    return f(x)",
        "def f(x):\n    while True:\n        x = [x] * 1000",
        "def f(x):\n    raise ValueError('y' * 90000)",
        "def f(x):\n    return open('/dev/fd/3', 'w')",
        "def f(x):\n    return ().__class__.__base__.__subclasses__()",
    ]
    jobs = [j for source in hostile for j in (GOOD, job(source))] + [GOOD]
    outcomes = run_programs(jobs)
    assert outcomes[::2] == [DONE] * (len(hostile) + 1)
    statuses = [o.status if o.status != "ran" else o.results[0].status for o in outcomes[1::2]]
    assert statuses == ["refused", "returned", "error", "limit", "error", "error", "refused"]


def test_memory_limit_is_a_limit():
    """No single operation is large, but the sum is."""
    hog = job("def f(x):\n    y = []\n    while True:\n        y.append([x] * 90000)\n")
    [outcome, after] = run_programs([hog, GOOD], Limits(memory_mb=200))
    assert outcome.results[0] == Result("limit", None, "memory")
    assert after == DONE


def test_program_that_the_kernel_must_stop_is_a_timeout():
    """Equality of two shared structures takes 2^60 comparisons, and not a single step."""
    slow = job(
        "def g():\n    x = []\n    for i in range(60):\n        x = [x, x]\n    return x\n"
        "def f(x):\n    return g() == g()\n"
    )
    outcomes = run_programs([GOOD, slow, GOOD], Limits(cpu_s=0.3))
    assert outcomes == [DONE, Outcome("timeout", "more than 0.3 s of CPU"), DONE]


WORKER_THAT_DIES = """
import json, os, sys
os.write(int(sys.argv[1]), b"ready\\n")
for line in sys.stdin:
    if "DIE" in line:
        os._exit(7)
    if "CUT" in line:
        os.write(int(sys.argv[1]), b'{"status": "ran", "res')
        os._exit(7)
    if "LIE" in line:
        reply = {"status": "ran", "detail": "", "results": [["returned", [1]]]}
    else:
        reply = {"status": "missing", "detail": "", "results": []}
    os.write(int(sys.argv[1]), json.dumps(reply).encode() + b"\\n")
"""


def test_failing_worker_is_infra_never_wrong(tmp_path, monkeypatch):
    path = tmp_path / "worker.py"
    path.write_text(WORKER_THAT_DIES)
    monkeypatch.setattr(runner, "WORKER", (*PYTHON, str(path)))
    sources = ["ok", "DIE", "ok", "CUT", "LIE", "ok", "DIE"]
    outcomes = run_programs([job(s) for s in sources])
    assert [o.status for o in outcomes] == [
        "missing",
        "infra",
        "missing",
        "infra",
        "infra",
        "missing",
        "infra",
    ]
    assert outcomes[1].detail == "worker ended with code 7"


def test_worker_that_cannot_start_raises(tmp_path, monkeypatch):
    path = tmp_path / "worker.py"
    path.write_text("raise OSError('no room')")
    monkeypatch.setattr(runner, "WORKER", (*PYTHON, str(path)))
    with pytest.raises(RuntimeError, match="no room"):
        run_programs([GOOD])


def test_worker_that_hangs_is_infra(tmp_path, monkeypatch):
    path = tmp_path / "worker.py"
    path.write_text('import os, sys, time\nos.write(int(sys.argv[1]), b"ready\\n")\ntime.sleep(60)\n')
    monkeypatch.setattr(runner, "WORKER", (*PYTHON, str(path)))
    [outcome] = run_programs([GOOD], Limits(wall_s=0.3, cpu_s=0.1))
    assert outcome == Outcome("infra", "no end within the wall limit")


def test_worker_has_no_environment_files_or_descriptors(tmp_path, monkeypatch):
    """A worker that reports what it can see, in place of the real one, under the real runner."""
    path = tmp_path / "worker.py"
    path.write_text(
        "import json, os, sys\n"
        "out = int(sys.argv[1])\n"
        "fds = [fd for fd in range(64) if fd != out and os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "leads = os.getpgrp() == os.getpid()\n"
        "seen = [sorted(os.environ), os.listdir(), fds, leads, sys.path[0]]\n"
        "row = {'status': 'missing', 'detail': json.dumps(seen), 'results': []}\n"
        "os.write(out, ('ready\\n' + json.dumps(row) + '\\n').encode())\n"
    )
    monkeypatch.setattr(runner, "WORKER", (*PYTHON, str(path)))
    monkeypatch.setenv("SECRET", "x")
    extra = os.open(path, os.O_RDONLY)
    os.set_inheritable(extra, True)
    [outcome] = run_programs([GOOD])
    os.close(extra)
    environ, files, descriptors, own_group, first_path = json.loads(outcome.detail)
    assert set(environ) <= {*runner.ENVIRONMENT, "LC_CTYPE"}  # Python itself adds LC_CTYPE
    assert files == [] and descriptors == [0, 1, 2] and own_group
    assert first_path == runner.ENVIRONMENT["PYTHONPATH"]
