"""Runs programs in a process of its own: `python -m ra3_jax.tasks.worker`, started by `runner`.

Reads jobs (one JSON object a line) on standard input and writes one JSON line for each to a private
descriptor. What a program may do is the business of `language`; the process adds resource limits,
no environment, no files and nothing worth having: expected outputs are never sent here.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from ra3_jax.tasks.language import Budget, Limit, Refused, compile_program
from ra3_jax.tasks.values import decode, encode

MAX_DETAIL = 200  # characters
READY = "ready\n"  # first line of a worker


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Runs a program on its inputs.

    `job`: source, entry_point, inputs (encoded argument tuples), steps, items. Returns status,
    detail and results. The status is `ran`, with one (status, value or detail) an input, or for a
    program that did not get as far `syntax`, `refused`, `missing`, `error` or `limit`. The status
    of a result is `returned` (the value is encoded), `error`, or `limit` (in this call or an
    earlier one).
    """
    budget = Budget(job["steps"], job["items"])
    namespace = budget.namespace()
    try:
        code = compile_program(job["source"])
    except SyntaxError as error:
        return _stopped("syntax", f"{error.msg} (line {error.lineno})")
    except Refused as refused:
        return _stopped("refused", str(refused))
    status, detail = _guard(budget, lambda: exec(code, namespace))
    if status != "returned":
        return _stopped(status, detail)
    function = namespace.get(job["entry_point"])
    if not callable(function):
        return _stopped("missing", f"no function {job['entry_point']}")
    results = []
    for encoded in job["inputs"]:
        args = decode(encoded)
        budget.refill(job["steps"])
        results.append(_guard(budget, lambda args=args: encode(function(*args))))
        if results[-1][0] == "limit":  # the other calls would most likely run away too
            results += [("limit", "not called")] * (len(job["inputs"]) - len(results))
            break
    return {"status": "ran", "detail": "", "results": results}


def _stopped(status: str, detail: str) -> dict[str, Any]:
    return {"status": status, "detail": detail[:MAX_DETAIL], "results": []}


def _guard(budget: Budget, call: Callable[[], Any]) -> tuple[str, Any]:
    """("returned", value), ("error", what was raised) or ("limit", which)."""
    try:
        status, value = "returned", call()
    except Limit as limit:
        status, value = "limit", str(limit)
    except MemoryError:
        status, value = "limit", "memory"
    except BaseException as error:  # anything at all may come out of a program
        status, value = "error", _describe(error)
    return ("limit", budget.reason) if budget.reason else (status, value)


def _describe(error: BaseException) -> str:
    """Type and message. Only a message that is plain text is looked at: others may never print."""
    message = error.args[0] if error.args and type(error.args[0]) is str else ""
    return f"{type(error).__name__}: {message[:MAX_DETAIL]}"


def main() -> None:
    """Arguments: the descriptor, CPU seconds of a program, megabytes of address space."""
    import resource  # Unix only, and the parent imports this module too

    out, cpu_s, memory_mb = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    jobs = [json.loads(line) for line in sys.stdin]
    limits = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_CPU: math.ceil(cpu_s * (len(jobs) + 1)) + 5,
        resource.RLIMIT_FSIZE: 256 << 20,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "darwin":  # cannot be set there; the checks of sizes remain
        del limits[resource.RLIMIT_AS]
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    _write(out, READY)
    for job in jobs:
        # The default action of SIGPROF: the kernel ends this process, wherever it is.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        line = json.dumps(run_job(job)) + "\n"
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(out, line)


def _write(descriptor: int, line: str) -> None:
    data = line.encode()
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main()
