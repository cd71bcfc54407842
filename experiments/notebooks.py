"""Runs the notebooks of colab/ and writes their outputs into them: `python -m experiments.notebooks [NAME ...]`.

Outputs are kept as they came, but for paths of this machine. Needs the `test` extra (nbclient and ipykernel).
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "colab"
NAMES = ("ra3_quickstart", "inspect_latents")  # the second inspects the run of the first
CELL_TIMEOUT_S = 3600


def main(argv: Sequence[str]) -> int:
    for name in argv or NAMES:
        began = time.monotonic()
        import nbformat

        nbformat.write(execute(name), FOLDER / f"{name}.ipynb")
        print(f"{name}: {time.monotonic() - began:.0f} s")
    return 0


def execute(name: str, environ: Mapping[str, str] = os.environ) -> "NotebookNode":
    """The notebook with fresh outputs. Raises nbclient's CellExecutionError where a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )  # fmt: skip
    client.execute(env=dict(environ))
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [without_paths(output) for output in joined(cell.outputs)]
    return notebook


def joined(outputs: Sequence[Any]) -> list[Any]:
    """Neighbouring pieces of one stream become one; the order stays."""
    out: list[Any] = []
    for output in outputs:
        if out and output.output_type == "stream" and out[-1].get("name") == output.name:
            out[-1].text += output.text
        else:
            out.append(output)
    return out


def without_paths(value: Any) -> Any:
    """The checkout's and the home directory's places taken out of all text in an output."""
    if isinstance(value, str):
        return value.replace(f"{ROOT}/", "").replace(str(ROOT), ".").replace(str(Path.home()), "~")
    if isinstance(value, list):
        return [without_paths(x) for x in value]
    if isinstance(value, dict):
        return type(value)({k: without_paths(v) for k, v in value.items()})
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
