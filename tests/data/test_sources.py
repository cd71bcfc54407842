"""Every kind of corpus is read, and no content of one stops the reading."""

import gzip
import itertools
import json

import pytest

from ra3_jax.data.config import DataConfig
from ra3_jax.data.corpus import load_corpus
from ra3_jax.data.identity import ID_BITS, content_id, is_held_out
from ra3_jax.data.lines import logical_lines
from ra3_jax.data.sources import Document, SkipReport, documents

FUNCTION = "def add(a, b):\n    # sum\n    c = a + b\n    return c\n"
ADD = ("def add(a, b):\n", "    # sum\n    c = a + b\n    return c\n")


def read(corpus, **settings) -> tuple[list[Document], SkipReport]:
    report = SkipReport()
    return list(documents(DataConfig(corpus=str(corpus), **settings), report)), report


def write_jsonl(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_standard_library():
    report = SkipReport()
    stream = documents(DataConfig(corpus="stdlib"), report)
    found = list(itertools.islice(stream, 400))
    assert len(found) == 400
    for document in found:
        path, function = document.name.split("::")
        assert not {"test", "tests", "site-packages"} & set(path.split("/"))
        assert document.prompt.endswith("\n") and function
        assert logical_lines(document.code, document.prompt)
    again = documents(DataConfig(corpus="stdlib"), SkipReport())
    assert list(itertools.islice(again, 400)) == found
    first_letters = {document.name[0] for document in found}
    assert len(first_letters) > 5, "a beginning of the corpus is not the beginning of the alphabet"


def test_hostile_files_are_counted_with_an_example(tmp_path):
    files = {
        "good.py": FUNCTION.encode(),
        "cookie.py": b"# -*- coding: latin-1 -*-\ndef f():\n    return '\xe9'\n",
        "bom.py": b"\xef\xbb\xbfdef g():\r\n    return 1\r\n",
        "binary.py": b"\x00\x01\x02",
        "undecodable.py": b"x = '\xff\xfe'\n",
        "unknown_codec.py": b"# coding: klingon\nx = 1\n",
        "not_text_codec.py": b"# coding: rot13\nx = 1\n",
        "python2.py": b"print 'hello'\n",
        "empty.py": b"",
        "long_line.py": b"def f():\n    return '" + b"x" * 10_000_000 + b"'\n",
        "minified.py": b"def f():\n    return '" + b"x" * 2000 + b"'\n",
        "deep.py": b"x = " + b"(" * 5000 + b"\n",
        "notes.txt": b"not code",
        ".hidden/secret.py": FUNCTION.encode(),
        "site-packages/installed.py": FUNCTION.encode(),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "broken_link.py").symlink_to(tmp_path / "nowhere.py")
    found, report = read(tmp_path)
    assert {d.name: (d.prompt, d.code) for d in found} == {
        "good.py::add": ADD,
        "cookie.py::f": ("def f():\n", "    return 'é'\n"),
        "bom.py::g": ("def g():\n", "    return 1\n"),
    }
    assert report.counts == {
        "binary file": 1,
        "undecodable": 3,
        "not Python": 2,
        "no function in it": 1,
        "larger than max_file_bytes": 1,
        "line longer than max_line_bytes": 1,
        "unreadable": 1,
    }
    assert "long_line.py" in report.examples["larger than max_file_bytes"]
    assert "skipped 3: undecodable (such as" in str(report)


def test_file_unit_and_line_limits(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n\n# note\ny = 2")
    (tmp_path / "b.py").write_text("x = (1,\n     2)\n")
    (tmp_path / "c.py").write_text("# nothing else\n")
    found, report = read(tmp_path, unit="file")
    assert sorted((d.name, d.prompt, d.code) for d in found) == [
        ("a.py", "", "x = 1\n\n# note\ny = 2\n"),
        ("b.py", "", "x = (1,\n     2)\n"),
    ]
    assert report.counts == {"fewer lines than min_lines": 1}
    found, report = read(tmp_path, unit="file", min_lines=2)
    assert [d.name for d in found] == ["a.py"] and report.counts.total() == 2
    found, report = read(tmp_path, unit="file", max_lines=1)
    assert [d.name for d in found] == ["b.py"] and report.counts["more lines than max_lines"] == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_jsonl_counts_broken_rows_with_their_number(tmp_path, suffix):
    lines = [json.dumps({"content": FUNCTION}), "", "{broken", "[1]", json.dumps({"content": None})]
    lines += [json.dumps({"other": 1}), json.dumps({"content": "def g():\n    return '\ud800'\n"})]
    path = tmp_path / f"rows{suffix}"
    data = "\n".join(lines).encode() + b'\n{"content": "\xff"}\n'
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    found, report = read(path)
    assert found == [Document(f"{path.name}:1::add", *ADD)]
    assert report.counts == {"broken row": 3, "row without text": 2, "not Python": 1}
    assert f"{path.name}:3" in report.examples["broken row"]


def test_damaged_gzip_names_the_file(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    rows = [{"content": FUNCTION + f"# {i}"} for i in range(500)]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode())[:-30])
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: damaged or incomplete gzip"):
        read(path)


def test_parquet_and_prompt_column(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = {"code": [ADD[1], None, "    return 1\n"], "head": [ADD[0][:-1], "x", "def f():\n"]}
    table = pyarrow.table({**columns, "stars": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "part.parquet", row_group_size=2)
    found, report = read(tmp_path, unit="file", text_column="code", prompt_column="head")
    assert found == [
        Document("part.parquet:1", *ADD),
        Document("part.parquet:3", "def f():\n", "    return 1\n"),
    ]
    assert report.counts == {"row without text": 1}
    with pytest.raises(ValueError, match="'content' is not a column; found code, head, stars"):
        read(tmp_path)
    (tmp_path / "part.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"part\.parquet: not a parquet file"):
        read(tmp_path)


def test_wrong_corpora_are_refused_with_what_was_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no \.py, \.jsonl"):
        read(tmp_path)
    (tmp_path / "code.txt").write_text("x = 1")
    with pytest.raises(ValueError, match=r"found suffix '\.txt'"):
        read(tmp_path / "code.txt")
    write_jsonl(tmp_path / "rows.jsonl", [{"text": FUNCTION, "id": 1}])
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: text_column='content' .* found id, text"):
        read(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="puzzles"):
        read("puzzles")
    with pytest.raises(ValueError, match="needs unit='file'"):
        DataConfig(prompt_column="prompt")


def fake_hub(monkeypatch, rows, asked):
    """A hub with one data set; `asked` collects the arguments of the calls."""
    import datasets
    import huggingface_hub

    class Api:
        def dataset_info(self, dataset_id, revision):
            asked["info"] = (dataset_id, revision)
            return huggingface_hub.DatasetInfo(id=dataset_id, sha="abc123")

    def load_dataset(dataset_id, name, **settings):
        asked["load"] = (dataset_id, name, settings)
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_hf_dataset_is_streamed_at_its_resolved_commit(monkeypatch):
    asked = {}
    fake_hub(monkeypatch, [{"content": FUNCTION}, {"content": "x ="}, {"content": FUNCTION}], asked)
    found, report = read("hf:some/corpus", hf_data_dir="data/python", hf_revision="main")
    assert [d.name for d in found] == ["some/corpus:1::add", "some/corpus:3::add"]
    assert report.source == "hf:some/corpus@abc123"
    assert report.counts == {"not Python": 1}
    assert asked["info"] == ("some/corpus", "main")
    settings = {"data_dir": "data/python", "split": "train", "revision": "abc123"}
    assert asked["load"] == ("some/corpus", None, {**settings, "streaming": True})
    with pytest.raises(ValueError, match="'code' is not a column; found content"):
        read("hf:some/corpus", text_column="code")


def test_unreachable_hf_dataset_says_what_to_do(monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(ValueError, match="no route") as error:
        read("hf:some/corpus")
    assert "hf auth login" in str(error.value) and ".parquet" in str(error.value)


def test_load_corpus_filters_limits_and_reports(tmp_path):
    functions = [f"def f{i}(a):\n    return a + {i}\n" for i in range(6)]
    write_jsonl(tmp_path / "rows.jsonl", [{"content": text} for text in functions + functions[:2]])
    config = DataConfig(corpus=str(tmp_path / "rows.jsonl"))
    kept, report = load_corpus(config)
    assert len(kept) == report.kept == 6 and report.counts == {"duplicate": 2}
    assert "not decontaminated: no benchmark data" in str(report)
    kept, _ = load_corpus(DataConfig(corpus=config.corpus, max_documents=4))
    assert [d.prompt for d in kept] == [f"def f{i}(a):\n" for i in range(4)]
    with pytest.raises(ValueError, match="the corpus is empty(.|\n)*skipped 8: fewer lines than"):
        load_corpus(DataConfig(corpus=config.corpus, min_lines=9))


def test_content_id():
    assert content_id("def f():\n", "    return 1\n") == 1506164300  # the split of old runs stays
    assert content_id("def f():\r\n", "    return 1  \n\n") == content_id("def f():", "    return 1")
    assert content_id("a", "bc") != content_id("ab", "c")
    ids = [content_id(str(i)) for i in range(4000)]
    assert all(0 <= i < 2**ID_BITS for i in ids) and len(set(ids)) == 4000
    small = {i for i in ids if is_held_out(i, 0.05)}
    large = {i for i in ids if is_held_out(i, 0.2)}
    assert small < large and 150 < len(small) < 250 and 700 < len(large) < 900
    assert not any(is_held_out(i, 0.0) for i in ids)
    with pytest.raises(ValueError, match="held_out=1.0"):
        is_held_out(0, 1.0)
