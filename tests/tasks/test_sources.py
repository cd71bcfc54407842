"""Rows and where they come from: broken, hostile and missing data give errors that name the place and the way out."""

import gzip
import hashlib
import json
import subprocess
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest

from ra3_jax.core.errors import InputError
from ra3_jax.tasks import rows as rows_module
from ra3_jax.tasks import sources
from ra3_jax.tasks.rows import Row, read_json, read_rows
from ra3_jax.tasks.sources import KNOWN, SPECS, Hub, fetch_command, find
from tests.bench_data import bench_file


def write(path, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


HUMANEVAL_ROW = {"task_id": "HumanEval/0", "prompt": "p", "canonical_solution": "c", "test": "t", "entry_point": "f"}


# Rows


def test_fields_are_read_by_type():
    row = Row({"a": "x", "n": 3, "f": 2.5, "b": True, "none": None, "l": ["y"], "j": '{"k": [1]}'}, "file", 7)
    assert row.text("a") == "x" and row.get("n", int) == 3 and row.get("n", float) == 3.0 and row.get("b", bool)
    assert row.text("none", "default") == "default" and row.text("missing", "") == "" and not row.has("none")
    assert row.list_of("l", str) == ["y"] and row.json("j", dict) == {"k": [1]}
    assert row.value_or_json("j", dict) == {"k": [1]} and row.value_or_json("l", list) == ["y"]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda row: row.text("n"), r"file, line 7, field 'n': found int 3, expected str"),
        (lambda row: row.get("b", int), r"field 'b': found bool True, expected int"),
        (lambda row: row.text("none"), r"field 'none': found null, expected str"),
        (lambda row: row.text("gone"), r"field 'gone': found no such field \(only a, n, b, none, l, j, half, halves\)"),
        (lambda row: row.text("half"), r"field 'half': found no text \(at character 1\), expected text"),
        (lambda row: row.list_of("halves", str), r"field 'halves\[0\]': found no text"),
        (lambda row: row.list_of("l", str), r"field 'l\[1\]': found int 1, expected str"),
        (lambda row: row.json("a", dict), r"file, line 7, field 'a': not JSON"),
        (lambda row: row.json("j", list), r"field 'j': found JSON dict"),
        (lambda row: row.child("x", [1]), r"field 'x': found list \[1\], expected an object"),
        (lambda row: row.child("x", {"y": 1}).text("y"), r"file, line 7, field 'x', field 'y': found int 1"),
    ],
)
def test_wrong_fields_name_file_line_field_found_and_expected(read, message):
    data = {
        "a": "x",
        "n": 3,
        "b": True,
        "none": None,
        "l": ["y", 1],
        "j": "{}",
        "half": "x\ud800",
        "halves": ["\udc80"],
    }
    row = Row(data, "file", 7)
    with pytest.raises(InputError, match=message):
        read(row)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_json_lines(tmp_path, name):
    path = write(tmp_path / name, {"a": 1}, {"a": "\u2028 one line"})
    path = tmp_path / name
    assert [(row.line, row.data["a"]) for row in read_rows(path)] == [(1, 1), (2, "\u2028 one line")]


def test_empty_lines_count_but_are_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}')
    assert [row.line for row in read_rows(tmp_path / "a.jsonl")] == [2, 4]


def test_json_list_and_parquet(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": 2}]')
    assert [row.place for row in read_rows(tmp_path / "a.json")] == [f"{tmp_path}/a.json, row {n}" for n in (1, 2)]
    table = pyarrow.table({"a": list(range(40)), "t": [[{"input": "1"}]] * 40})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = list(read_rows(tmp_path / "a.parquet"))
    assert len(rows) == 40 and rows[39].data == {"a": 39, "t": [{"input": "1"}]} and rows[39].line == 40


# Without the time of day: the bytes are part of a test's name, on which all workers must agree.
CUT_OFF = gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"a.jsonl, line 2: found JSON list \[1\], expected an object"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a.jsonl, line 1: not JSON"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", r"a.jsonl, line 1: not JSON \(Exceeds the limit"),
        ("a.jsonl", b"[" * 200_000 + b"\n", r"a.jsonl, line 1: JSON nested too deeply"),
        ("a.json", b'{"a": 1}', r"a.json: found JSON dict, expected a list"),
        ("a.json", b'[{"a": 1}, 2]', r"a.json, row 2: found JSON int 2"),
        ("a.txt", b"", r"a.txt: found suffix '.txt', expected one of .jsonl"),
        ("a.jsonl.gz", b"no gzip", r"a.jsonl.gz: damaged or incomplete gzip file"),
        ("a.jsonl.gz", CUT_OFF, r"damaged or incomplete gzip file .*fetch it again"),
        ("a.parquet", b"PAR1 no parquet", r"a.parquet: not a parquet file"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"gone.jsonl: cannot be read \(No such file"):
        list(read_rows(tmp_path / "gone.jsonl"))
    with pytest.raises(InputError, match=r"gone.json: cannot be read"):
        read_json(tmp_path / "gone.json")


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["one line", "lines"])
def test_archive_bomb(tmp_path, end):
    bomb = gzip.compress((b" " * 999 + end) * 100_000, 9)
    (tmp_path / "a.jsonl.gz").write_bytes(bomb)
    assert len(bomb) < 250_000
    with pytest.raises(InputError, match=r"a.jsonl.gz, line \d+: unpacks to more than \d+ bytes.*bomb"):
        list(read_rows(tmp_path / "a.jsonl.gz"))


def test_lines_and_lists_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "MAX_LINE", 1000)
    path = write(tmp_path / "a.jsonl", {"a": 1}, {"a": "x" * 1000})
    with pytest.raises(InputError, match="line 2: longer than"):
        list(read_rows(path))
    (tmp_path / "a.json").write_text(json.dumps(["x" * 1000]))
    with pytest.raises(InputError, match=r"a.json: larger than"):
        read_json(tmp_path / "a.json")


# Local sources


def test_known_file_is_recognised(tmp_path):
    path = bench_file("HumanEval.jsonl.gz")
    for source in (find("humaneval", data_dir=path.parent), find("humaneval", file=path)):
        assert source.origin.known is True and source.origin.warnings == ()
        assert source.origin.version == KNOWN["HumanEval.jsonl.gz"] and source.origin.kind == "file"
        assert len(list(source.rows())) == len(list(source.rows())) == 164


def test_another_file_gives_a_warning(tmp_path):
    path = write(tmp_path / "HumanEval.jsonl.gz", HUMANEVAL_ROW)
    origin = find("humaneval", data_dir=tmp_path).origin
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert origin.known is False and origin.version == digest
    assert digest in origin.warnings[0] and KNOWN["HumanEval.jsonl.gz"] in origin.warnings[0]
    assert "not the known release" in str(origin)


def test_a_file_known_as_another_one_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "mine.jsonl", {"prompt": "", "base_input": [], "plus_input": []})
    monkeypatch.setitem(KNOWN, "HumanEvalPlus-Mini.jsonl.gz", hashlib.sha256(path.read_bytes()).hexdigest())
    assert find("humaneval+/mini", file=path).origin.known is True
    with pytest.raises(InputError, match=r"found HumanEvalPlus-Mini.jsonl.gz .*expected HumanEvalPlus.jsonl.gz"):
        find("humaneval+", file=path)


def test_source_of_several_files(tmp_path):
    rows = [{"question_content": "q", "private_test_cases": "", "n": n} for n in (1, 2)]
    write(tmp_path / "test.jsonl", rows[0])
    with pytest.raises(InputError, match=r"no test2.jsonl \(livecodebench/release_v2\)"):
        find("livecodebench/release_v2", data_dir=tmp_path)
    write(tmp_path / "test2.jsonl", rows[1])
    source = find("livecodebench/release_v2", data_dir=tmp_path)
    assert [row.data["n"] for row in source.rows()] == [1, 2]
    assert source.origin.known is None and len(source.origin.version.split(", ")) == 2


@pytest.mark.parametrize("name", SPECS)
def test_what_is_missing_is_an_error_with_the_command_that_fetches_it(tmp_path, name):
    folder = tmp_path / "my data"
    with pytest.raises(InputError) as error:
        find(name, data_dir=folder)
    message = str(error.value)
    assert SPECS[name].files[0] in message and fetch_command(name, folder) in message
    assert f"'{folder}'" in fetch_command(name, folder)  # quoted for the shell
    assert any(tool in message for tool in ("curl -fL -o ", "hf download ", "git clone "))
    with pytest.raises(InputError, match="no such file"):
        find(name, file=folder / "x.jsonl")


def test_rows_of_another_format_are_refused(tmp_path):
    """As those of evalplus/humanevalplus on the hub, which have no inputs."""
    path = write(tmp_path / "a.jsonl", HUMANEVAL_ROW)
    with pytest.raises(InputError, match=r"a.jsonl, line 1: no field base_input, plus_input .*\n.*curl -fL"):
        find("humaneval+", file=path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=r"empty.jsonl: no rows"):
        find("humaneval+", file=tmp_path / "empty.jsonl")


def test_contradicting_options(tmp_path):
    path = write(tmp_path / "HumanEval.jsonl.gz", HUMANEVAL_ROW)
    with pytest.raises(InputError, match="both a file .* and a data folder"):
        find("humaneval", data_dir=tmp_path, file=path)
    with pytest.raises(InputError, match="a revision .* is of the hub"):
        find("humaneval", file=path, revision="main")


# The hub, which is not there: its two libraries are played


class FakeHub:
    """Stands for huggingface_hub and datasets; records how it was asked."""

    def __init__(self, monkeypatch, rows, files=()):
        self.asked = []
        self.rows, self.files = rows, dict(files)
        hub = types.SimpleNamespace(HfApi=lambda: self, hf_hub_download=self.download)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=self.load))

    def dataset_info(self, dataset_id, revision):
        self.asked.append((dataset_id, revision))
        if revision == "nonsense":
            raise ConnectionError("404")
        return types.SimpleNamespace(sha="0123456789abcdef")

    def load(self, dataset_id, config, *, split, revision, streaming):
        self.asked.append((dataset_id, config, split, revision))
        assert streaming
        return iter(self.rows[split])

    def download(self, dataset_id, name, *, repo_type, revision):
        assert (repo_type, revision) == ("dataset", "0123456789abcdef")
        return str(self.files[name])


def test_hub_rows_are_those_of_the_resolved_commit(monkeypatch):
    rows = {
        split: [{"text": split, "code": "", "test_list": []}] for split in ("prompt", "test", "validation", "train")
    }
    hub = FakeHub(monkeypatch, rows)
    source = find("mbpp", revision="v1")
    assert source.origin == sources.Origin("hub", "google-research-datasets/mbpp", "0123456789abcdef", None)
    assert hub.asked[0] == ("google-research-datasets/mbpp", "v1")
    assert [row.text("text") for row in source.rows()] == ["prompt", "test", "validation", "train"]
    assert {asked[3] for asked in hub.asked[1:]} == {"0123456789abcdef"}
    last = list(source.rows())[-1]
    assert last.place == "google-research-datasets/mbpp@0123456789ab, split train, row 1"


def test_hub_files(monkeypatch, tmp_path):
    row = {"question_content": "q", "private_test_cases": ""}
    files = {name: write(tmp_path / name, row) for name in ("test.jsonl", "test2.jsonl")}
    FakeHub(monkeypatch, {}, files)
    assert len(list(find("livecodebench/release_v2").rows())) == 2


def test_hub_rows_without_inputs_are_refused(monkeypatch):
    FakeHub(monkeypatch, {"test": [HUMANEVAL_ROW]})
    with pytest.raises(InputError, match=r"evalplus/humanevalplus@.*no field base_input[^$]*curl -fL"):
        find("humaneval+")


def test_hub_out_of_reach(monkeypatch):
    FakeHub(monkeypatch, {})
    with pytest.raises(
        InputError, match=r"'openai/openai_humaneval'.*revision 'nonsense'.*ConnectionError: 404[^$]*curl"
    ):
        find("humaneval", revision="nonsense")
    with pytest.raises(InputError, match=r"cannot be read: KeyError"):
        find("humaneval", hub=Hub("someone/else", splits=("gone",)))
    with pytest.raises(InputError, match=r"leetcode is on no hub[^$]*git clone"):
        find("leetcode")


def test_the_libraries_of_the_hub_are_imported_when_they_are_used():
    heavy = ("datasets", "huggingface_hub", "jax", "pyarrow")
    code = f"import sys, ra3_jax.tasks.benchmarks; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
