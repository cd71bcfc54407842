"""The notebooks of colab/ run from end to end at `micro`; what is committed of them is a run without errors."""

import json
import re
import tempfile
from pathlib import Path

import pytest

from experiments.install import TooOld, constraints, plan, requirements, with_plugin
from experiments.notebooks import FOLDER, NAMES, ROOT, execute
from tests.processes import environment

CACHE = Path(tempfile.gettempdir()) / "ra3_jax_tests_cache"  # of compiled programs, kept between runs of the tests


def outputs(notebook) -> list[dict]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def shown(notebook, mime: str) -> list[str]:
    """What the notebook shows in this form; text/plain is what it prints as well."""
    found = [o["data"][mime] for o in outputs(notebook) if mime in o.get("data", {})]
    printed = [o["text"] for o in outputs(notebook) if o["output_type"] == "stream" and mime == "text/plain"]
    return ["".join(text) for text in [*found, *printed]]


def check_quickstart(notebook, thoughts: bool) -> None:
    """All that a reader comes for is there: annotated code, the table, a plot, the files. `thoughts`: they are many."""
    html, text = shown(notebook, "text/html"), "\n".join(shown(notebook, "text/plain"))
    inspected = [h for h in html if "of the program" in h and "nats without thoughts" in h]
    assert len(inspected) == 2, "the first look, and the trained model"
    for piece in inspected:
        assert "xs = out" in piece and ">-0%" not in piece and piece.count("<tr>") == 2 + 22
        assert not thoughts or piece.count("<i ") >= 5
    (scores,) = (h for h in html if "<caption>" in h)
    for name in ("ra3 round 1", "ntp equal steps", "pass@1", "IWAE"):
        assert name in scores, name
    (png,) = shown(notebook, "image/png")
    assert len(png) > 10_000
    assert "running on" in text and "round 1: think rate" in text and "model.json" in text and "checkpoints:" in text


def check_inspection(notebook) -> None:
    tables = [h for h in shown(notebook, "text/html") if "nats without thoughts" in h]
    assert len(tables) == 3 and all("dict.fromkeys" in h for h in tables)
    assert re.search(r"\d% +\d+\.\d\d nats      xs = sorted\( xs \)", "\n".join(shown(notebook, "text/plain")))


def test_both_notebooks_at_micro(tmp_path):
    env = environment(devices=1, cache=CACHE, RA3_PRESET="micro", RA3_OUT=str(tmp_path / "run"))
    check_quickstart(execute("ra3_quickstart", env), thoughts=False)
    check_inspection(execute("inspect_latents", env | {"RA3_MODEL": str(tmp_path / "run")}))


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebooks_were_run(name):
    path = FOLDER / f"{name}.ipynb"
    notebook = json.loads(path.read_text())
    assert path.stat().st_size < 1_000_000
    assert set(notebook["metadata"]) == {"accelerator", "kernelspec", "language_info"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert all(set(cell["metadata"]) <= {"id"} for cell in code)
    assert not [o for o in outputs(notebook) if o["output_type"] == "error"]
    assert not [o["text"] for o in outputs(notebook) if o.get("name") == "stderr"]
    for text in map(json.dumps, outputs(notebook)):
        assert str(ROOT) not in text and not re.search(r"/(home|root|tmp|Users|content)/", text)
    if name == "ra3_quickstart":
        check_quickstart(notebook, thoughts=True)
        assert len(shown(notebook, "text/html")) >= 3
    else:
        check_inspection(notebook)


def test_install_leaves_jax_alone(monkeypatch):
    """What is there and new enough stays; an old JAX gets one command; what is imported is not replaced."""
    wanted = requirements()
    assert {"jax", "flax", "numpy"} <= {r.name for r in wanted} and plan(wanted) == []
    there = {r.name: "999" for r in wanted} | {"libtpu": "0.0.30"}
    monkeypatch.setattr("experiments.install.installed", there.get)
    assert plan(wanted) == []
    del there["tyro"]
    there["flax"] = "0.0.1"
    assert [x.partition(">")[0] for x in plan(wanted)] == ["flax", "tyro"]
    there["jax"] = "0.0.1"
    with pytest.raises(TooOld, match=r"jax 0.0.1 is installed, .* jax>=\S+\. .*\n    pip install -U 'jax\[tpu\]>="):
        plan(wanted)
    assert with_plugin() == "jax[tpu]"
    del there["libtpu"]
    assert with_plugin() == "jax"
    monkeypatch.undo()
    kept = [line.partition("==")[0] for line in constraints()]
    assert {"jax", "jaxlib", "pytest", "numpy"} <= set(kept) and "pyright" not in kept  # which nobody imports
