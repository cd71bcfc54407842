"""Where rows of benchmarks and training tasks come from: local files, or data sets of the Hugging Face hub.

A local copy is hashed, and compared with the known release where there is one. A data set of the hub is read at the
commit that its revision stands for. What cannot be found is an error that names the command to fetch it; nothing takes
its place.

The hub ids of `SPECS` were written down from the pages of the data sets; none could be tried where this was written.
"""

import dataclasses
import itertools
import shlex
from collections.abc import Callable, Iterator
from typing import Literal

from etils import epath

from ra3_jax.core.errors import InputError
from ra3_jax.core.paths import is_remote, optional_path
from ra3_jax.tasks.rows import Row, read_json, read_rows, sha256_of

__all__ = [
    "KNOWN",
    "SPECS",
    "Hub",
    "Origin",
    "Row",
    "Source",
    "Spec",
    "fetch_command",
    "find",
    "read_json",
    "read_rows",
]


@dataclasses.dataclass(frozen=True)
class Origin:
    """What was loaded; goes into every result."""

    kind: Literal["file", "hub"]
    place: str  # path (several joined by ", "), or id of the data set
    version: str  # sha256 of the file (several joined by ", "), or the commit of the data set
    known: bool | None  # the known release; None where none is known
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        known = {True: ", the known release", False: ", not the known release", None: ""}[self.known]
        return f"{self.place} ({'sha256' if self.kind == 'file' else 'commit'} {self.version[:12]}{known})"


@dataclasses.dataclass(frozen=True)
class Source:
    origin: Origin
    rows: Callable[[], Iterator[Row]]  # streams them anew at every call


@dataclasses.dataclass(frozen=True)
class Hub:
    """A data set of the hub: splits read through `datasets`, or files fetched as they are."""

    id: str
    config: str | None = None
    splits: tuple[str, ...] = ("test",)
    files: tuple[str, ...] = ()  # instead of splits


@dataclasses.dataclass(frozen=True)
class Spec:
    files: tuple[str, ...]  # names, or patterns, in a data folder; all are read, in this order
    fetch: str  # shell command that puts them into {folder}
    hub: Hub | None
    fields: tuple[str, ...]  # that the first row must have: tells formats of one name apart


KNOWN = {
    "HumanEval.jsonl.gz": "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    "HumanEvalPlus.jsonl.gz": "272720b90ac375502c8ed23cd791c2a93dfb22a911641a494da74a426c09f101",
    "HumanEvalPlus-Mini.jsonl.gz": "91486741f1627101021fbe50523df08eebb5b0bf5e804b633dcd5ca3c14dbd2f",
    "HumanEvalPlus-NoExtreme.jsonl.gz": "298f79977b2663b8b8ab6b5fa50b17d6f23a92603d24f39e26203fe58c37eeda",
    "MbppPlus.jsonl.gz": "af43697e8791c4c149bdfd6b489d8b5412507551ac20e28a439f650b8225db63",
    "MbppPlus-NoExtreme.jsonl.gz": "72d32acaea73d5606cb97041b30d45bbda9435a675369d3e31965513ee94e564",
    "mbpp.jsonl": "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
    "rllm_test_codeforces.json": "8e9eab7fce7e432abe4437dd997c16f1514be51d224f2d72a7bd07d58cce476a",
    "rllm_metadata_cf.json": "db36f9362f305a1bffc5d4a0554207d6bf2f07f9c6f865fca44c7d69045968b2",
    "rllm_ratings_2024.json": "ed2a232032db90e3be586163aa14fa9be820aae4e9bcad41a03d6a21b45de814",
    "rllm_train_leetcode.json": "4bd9c5e47165d184b3f3273005cdcd1ef161f55e1ad727101522a288203d2017",
}
"""sha256 of the releases: HumanEval of openai/human-eval 6d43fb9, HumanEval+ v0.1.10, MBPP+ v0.2.0, MBPP of
google-research, rllm_* of agentica-project/rllm 874daa4 (DeepCoder)."""


def _curl(name: str, url: str) -> str:
    return f"curl -fL -o {{folder}}/{name} {url}"


def _release(repository: str, version: str, name: str) -> str:
    return _curl(name, f"https://github.com/evalplus/{repository}/releases/download/{version}/{name}")


def _rllm(name: str, path: str) -> str:
    """Later commits have moved the file."""
    clone = "git clone -q --filter=blob:none --no-checkout https://github.com/agentica-project/rllm {folder}/rllm"
    return f"test -d {{folder}}/rllm || {clone}; git -C {{folder}}/rllm show 874daa4:{path} > {{folder}}/{name}"


def _hf(dataset_id: str, *include: str) -> str:
    patterns = "".join(f" --include {shlex.quote(pattern)}" for pattern in include)
    return f"hf download {dataset_id} --repo-type dataset{patterns} --local-dir {{folder}}"


def _training(hub: Hub, files: str, fields: tuple[str, ...]) -> Spec:
    return Spec((files,), _hf(hub.id, files), hub, fields)


_DEEPCODER = "agentica-org/DeepCoder-Preview-Dataset"
_EVALPLUS_FIELDS = ("prompt", "base_input", "plus_input")
_LCB = "livecodebench/code_generation_lite"

SPECS = {
    "humaneval": Spec(
        ("HumanEval.jsonl.gz",),
        _curl(
            "HumanEval.jsonl.gz", "https://raw.githubusercontent.com/openai/human-eval/master/data/HumanEval.jsonl.gz"
        ),
        Hub("openai/openai_humaneval"),
        ("prompt", "canonical_solution", "test"),
    ),
    "mbpp": Spec(
        ("mbpp.jsonl",),
        _curl("mbpp.jsonl", "https://raw.githubusercontent.com/google-research/google-research/master/mbpp/mbpp.jsonl"),
        Hub("google-research-datasets/mbpp", "full", ("prompt", "test", "validation", "train")),
        ("text", "code", "test_list"),
    ),
    "codeforces": Spec(
        ("rllm_test_codeforces.json",),
        _rllm("rllm_test_codeforces.json", "rllm/data/test/code/codeforces.json"),
        Hub(_DEEPCODER, "codeforces"),
        ("problem", "tests"),
    ),
    "codeforces/metadata": Spec(
        ("rllm_metadata_cf.json",),
        _rllm("rllm_metadata_cf.json", "scripts/deepcoder/benchmark/codeforces/metadata_cf.json"),
        None,
        (),
    ),
    "codeforces/ratings": Spec(
        ("rllm_ratings_2024.json",),
        _rllm("rllm_ratings_2024.json", "scripts/deepcoder/benchmark/codeforces/ratings_2024.json"),
        None,
        (),
    ),
    "codeforces/open-r1": _training(Hub("open-r1/codeforces"), "data/test-*.parquet", ("id", "official_tests")),
    "leetcode": Spec(
        ("rllm_train_leetcode.json",),
        _rllm("rllm_train_leetcode.json", "rllm/data/train/code/leetcode.json"),
        None,
        ("problem", "tests"),
    ),
    "codecontests": _training(
        Hub("deepmind/code_contests", splits=("train",)), "data/train-*.parquet", ("description", "public_tests")
    ),
    "areal-boba-2": _training(
        Hub("inclusionAI/AReaL-boba-2-RL-Code", splits=("train",)), "*.jsonl", ("prompt", "input_output")
    ),
}
for _variant, _suffix in (("", ""), ("/mini", "-Mini"), ("/noextreme", "-NoExtreme")):
    _he, _mbpp = f"HumanEvalPlus{_suffix}.jsonl.gz", f"MbppPlus{_suffix}.jsonl.gz"
    SPECS[f"humaneval+{_variant}"] = Spec(
        (_he,), _release("humanevalplus_release", "v0.1.10", _he), Hub("evalplus/humanevalplus"), _EVALPLUS_FIELDS
    )
    SPECS[f"mbpp+{_variant}"] = Spec(
        (_mbpp,), _release("mbppplus_release", "v0.2.0", _mbpp), Hub("evalplus/mbppplus"), _EVALPLUS_FIELDS
    )
for _part in ("primeintellect", "taco", "lcbv5"):
    SPECS[f"deepcoder/{_part}"] = _training(
        Hub(_DEEPCODER, _part, ("train",)), f"{_part}/train-*.parquet", ("problem", "tests")
    )
for _n in range(1, 7):
    _files = ("test.jsonl", *(f"test{i}.jsonl" for i in range(2, _n + 1)))
    SPECS[f"livecodebench/release_v{_n}"] = Spec(
        _files, _hf(_LCB, *_files), Hub(_LCB, files=_files), ("question_content", "private_test_cases")
    )


def find(
    name: str,
    *,
    data_dir: epath.PathLike | None = None,
    file: epath.PathLike | None = None,
    hub: Hub | None = None,
    revision: str | None = None,
) -> Source:
    """The source `name` of `SPECS`: the given file, or else that in `data_dir` (both may be gs://), or else the data
    set of the hub (the given one instead of the usual).

    Raises InputError: nothing is there, or not in the expected format (its first row is looked at)."""
    spec = SPECS[name]
    if file is not None and data_dir is not None:
        raise InputError(f"{name}: both a file ({file}) and a data folder ({data_dir}) are given; give one of them")
    if file is not None or data_dir is not None:
        if revision is not None:
            raise InputError(f"{name}: a revision ({revision}) is of the hub, but local files are given")
        source = _from_files(name, spec, optional_path(data_dir), optional_path(file))
    else:
        source = _from_hub(name, spec, hub or spec.hub, revision)
    if spec.fields:
        _check_fields(name, spec, source)
    return source


def fetch_command(name: str, folder: epath.Path | None = None) -> str:
    """The shell command that fetches the files of a source."""
    return SPECS[name].fetch.replace("{folder}", shlex.quote(str(folder or "data")))


def _how_to_get(name: str, folder: epath.Path | None = None) -> str:
    files = ", ".join(SPECS[name].files)
    if folder is not None and is_remote(folder):
        return f"Fetch {files} with\n  {fetch_command(name)}\nand copy from there to {folder}"
    return f"Fetch {files} with\n  {fetch_command(name, folder)}"


def _from_files(name: str, spec: Spec, data_dir: epath.Path | None, file: epath.Path | None) -> Source:
    if file is not None:
        if not file.is_file():
            raise InputError(f"{file}: no such file. {_how_to_get(name, file.parent)}")
        paths = [file]
    else:
        assert data_dir is not None
        found = {part: sorted(data_dir.glob(part)) for part in spec.files}
        missing = [part for part, matches in found.items() if not matches]
        if missing:
            raise InputError(f"{data_dir}: no {', '.join(missing)} ({name}). {_how_to_get(name, data_dir)}")
        paths = list(itertools.chain.from_iterable(found.values()))
    digests = [sha256_of(path) for path in paths]
    known, warnings = _compare(name, spec, paths, digests)
    origin = Origin("file", ", ".join(map(str, paths)), ", ".join(digests), known, tuple(warnings))
    return Source(origin, lambda: itertools.chain.from_iterable(map(read_rows, paths)))


def _compare(name: str, spec: Spec, paths: list[epath.Path], digests: list[str]) -> tuple[bool | None, list[str]]:
    """Are these the known releases? Raises InputError for a file that is known to be another one."""
    expected = [KNOWN.get(part) for part in spec.files]
    for path, digest in zip(paths, digests, strict=True):
        other = next((part for part, known in KNOWN.items() if known == digest), None)
        if other is not None and other not in spec.files:
            raise InputError(f"{path}: found {other} (by its sha256), expected {', '.join(spec.files)} ({name})")
    if None in expected:
        return None, []
    if digests == expected:
        return True, []
    warnings = [
        f"{path}: sha256 {digest} is not that of the known {part} ({wanted}): figures may not compare"
        for path, digest, part, wanted in zip(paths, digests, spec.files, expected, strict=False)
        if digest != wanted
    ]
    return False, warnings


def _from_hub(name: str, spec: Spec, hub: Hub | None, revision: str | None) -> Source:
    if hub is None:
        raise InputError(f"{name} is on no hub. {_how_to_get(name)}\nand give that folder as the data folder")
    try:
        import huggingface_hub

        # a commit is asked for first: it fails at once where the loader would retry for half a minute
        sha = huggingface_hub.HfApi().dataset_info(hub.id, revision=revision).sha
    except Exception as error:  # of whatever type: the hub passes on the errors of its transport
        raise _unreachable(name, hub, revision, error) from error
    origin = Origin("hub", hub.id, str(sha), None)
    return Source(origin, lambda: _hub_rows(name, hub, str(sha)))


def _hub_rows(name: str, hub: Hub, sha: str) -> Iterator[Row]:
    try:
        if hub.files:
            import huggingface_hub

            for part in hub.files:
                path = huggingface_hub.hf_hub_download(hub.id, part, repo_type="dataset", revision=sha)
                yield from read_rows(path)
            return
        import datasets

        for split in hub.splits:
            rows = datasets.load_dataset(hub.id, hub.config, split=split, revision=sha, streaming=True)
            for number, data in enumerate(rows, start=1):
                yield Row(data, f"{hub.id}@{sha[:12]}, split {split}", number, "row")
    except InputError:
        raise
    except Exception as error:
        raise _unreachable(name, hub, sha, error) from error


def _unreachable(name: str, hub: Hub, revision: str | None, error: Exception) -> InputError:
    return InputError(
        f"data set {hub.id!r} (config {hub.config!r}, revision {revision!r}) of the Hugging Face hub cannot be read:"
        f" {type(error).__name__}: {error}\nWithout a connection, use a local copy. {_how_to_get(name)}"
    )


def _check_fields(name: str, spec: Spec, source: Source) -> None:
    first = next(iter(source.rows()), None)
    if first is None:
        raise InputError(f"{source.origin.place}: no rows ({name}). {_how_to_get(name)}")
    missing = [field for field in spec.fields if field not in first.data]
    if missing:
        raise InputError(
            f"{first.place}: no field {', '.join(missing)} (only {', '.join(map(str, first.data))}), so this is another"
            f" format than that of {name}. {_how_to_get(name)}"
        )
