"""The byte view of tokenizers, their control tokens, and their directories."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from ra3_jax.data.tokenizer import BUILTIN, Tokenizer, load_tokenizer
from tests.data.small_tokenizers import (
    byte_fallback,
    gpt2,
    llama3,
    odd,
    qwen2,
    stdlib_sources,
    wrap,
)

FAMILIES = {"llama3": llama3, "qwen2": qwen2, "gpt2": gpt2}


@pytest.fixture(scope="module")
def family():
    return {name: wrap(build()) for name, build in FAMILIES.items()}


def write_hf(directory, tokenizer, **configs):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    for name, config in configs.items():
        (directory / f"{name}.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", FAMILIES)
def test_bytes_of_the_ids_are_the_text(family, name):
    tokenizer, backend = family[name], FAMILIES[name]()
    for _, text in stdlib_sources(40, 10):
        ids = tokenizer.encode(text)
        assert b"".join(tokenizer.token_bytes(i) or b"" for i in ids) == text.encode()
        assert tokenizer.decode(ids) == text == backend.decode(ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_and_single_texts_agree(family, name):
    texts = [line for _, text in stdlib_sources(40, 3) for line in text.split("\n")]
    assert family[name].encode_batch(texts) == [family[name].encode(t) for t in texts]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_id_decodes_as_the_library_decodes_it(family, name):
    backend = FAMILIES[name]()
    for i in range(family[name].size):
        assert family[name].decode([i]) == backend.decode([i], skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_text_comes_back(text):
    tokenizer = wrap(odd())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.special_ids & set(ids)


def test_control_tokens_in_a_text_are_text(family):
    text = 'x = "<|endoftext|>"  # <|begin_of_text|><|im_end|><tool_call>\n'
    for tokenizer in family.values():
        ids = tokenizer.encode(text)
        assert not tokenizer.special_ids & set(ids)
        assert tokenizer.encode_batch([text]) == [ids]
        assert tokenizer.decode(ids) == text
    added = qwen2().token_to_id("<tool_call>")  # not special: text, in one id
    assert family["qwen2"].token_bytes(added) == b"<tool_call>"
    assert family["qwen2"].encode("<tool_call>") == [added]


def test_nothing_is_added_by_the_post_processor(family):
    assert len(llama3().encode("x").ids) == 2  # the library's default adds begin-of-text
    assert len(family["llama3"].encode("x")) == 1
    assert family["llama3"].encode("") == []


def test_special_and_missing_ids_have_no_bytes(family):
    tokenizer = family["llama3"]
    assert tokenizer.token_bytes(tokenizer.bos_id) is None
    assert tokenizer.token_bytes(-1) is tokenizer.token_bytes(tokenizer.size) is None
    x = tokenizer.encode("x")
    assert tokenizer.decode([tokenizer.bos_id, *x, tokenizer.eos_id, 10**6]) == "x"


def test_broken_utf8_does_not_swallow_what_follows():
    tokenizer = wrap(odd())
    [newline], [letter] = tokenizer.encode("\n"), tokenizer.encode("a")
    ids = {tokenizer.token_bytes(i): i for i in range(tokenizer.size)}
    for broken in (
        b"\xe2\x80",
        b"\xf0\x9f\x98",
        b"\xed\xa0\x80",
        b"\xc0\x8a",
        b"\xc3",
        b"\x80\x80",
    ):
        text = tokenizer.decode([ids[broken], newline, letter])
        assert text.endswith("\na") and set(text[:-2]) == {"\ufffd"}, broken


def test_byte_fallback():
    tokenizer = wrap(byte_fallback(prepend=False))
    text = "# abc  \n\tcaf\u00e9 \U0001f600"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes(ids[0]) == b"#"
    assert tokenizer.token_bytes(3 + 0x0A) == b"\n"
    assert tokenizer.token_bytes(0) is None  # <unk>
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2,), 2)


def test_unknown_decoders_are_refused():
    backend = byte_fallback(prepend=False)
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="decoder WordPiece of tokenizer.json is not supported"):
        wrap(backend).decode([1, 40])


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin(name, tmp_path):
    tokenizer = load_tokenizer(name)
    assert len({tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}) == 3
    text = "def f(x):\n    # caf\u00e9\n    return x\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    for field in ("bos_id", "eos_ids", "pad_id", "special_ids", "size", "content_hash"):
        assert getattr(again, field) == getattr(tokenizer, field)


def test_qwen_base_directory(tmp_path):
    end = qwen2().token_to_id("<|endoftext|>")
    config = {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    folder = write_hf(tmp_path, qwen2(), tokenizer_config=config, generation_config={"eos_token_id": end})
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (end, (end,), end)


def test_qwen_instruct_directory(tmp_path):
    end, im_end = (qwen2().token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>"))
    folder = write_hf(
        tmp_path,
        qwen2(),
        tokenizer_config={"bos_token": None, "eos_token": "<|im_end|>", "pad_token": None},
        generation_config={"eos_token_id": [im_end, end]},
    )
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (end, (im_end, end))
    assert tokenizer.eos_id == tokenizer.pad_id == im_end


def test_llama_base_directory(tmp_path):
    bos, end = (llama3().token_to_id(t) for t in ("<|begin_of_text|>", "<|end_of_text|>"))
    names = {"bos_token": {"content": "<|begin_of_text|>"}, "eos_token": "<|end_of_text|>"}
    folder = write_hf(tmp_path, llama3(), special_tokens_map=names)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (bos, (end,), end)


def test_control_ids_that_are_not_marked_special_still_have_no_text(tmp_path):
    config = {"eos_token": "<tool_call>"}
    tokenizer = load_tokenizer(write_hf(tmp_path, qwen2(), tokenizer_config=config))
    assert tokenizer.token_bytes(tokenizer.eos_id) is None


def test_hash_and_save_keep_the_original_files(tmp_path):
    config = {"eos_token": "<|endoftext|>", "unusual": 1}
    folder = write_hf(tmp_path / "a", qwen2(), tokenizer_config=config)
    (folder / "merges.txt").write_text("a b\n")
    tokenizer = load_tokenizer(folder)
    content = (folder / "tokenizer.json").read_bytes()
    assert tokenizer.content_hash == hashlib.sha256(content).hexdigest()
    tokenizer.save(tmp_path / "b" / "c")
    saved = {p.name: p.read_bytes() for p in (tmp_path / "b" / "c").iterdir()}
    assert saved == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_transformers_reads_what_is_saved(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer("stdlib")
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n    return [x, 12]  # why\n"
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert theirs.decode(ours.encode(text)) == text


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such directory or file.*puzzles"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: missing"):
        load_tokenizer(tmp_path)


def test_bad_configs_are_named(tmp_path):
    folder = write_hf(tmp_path / "a", llama3(), tokenizer_config={"eos_token": "<nope>"})
    with pytest.raises(ValueError, match=r"a: eos_token '<nope>' is not in tokenizer\.json"):
        load_tokenizer(folder)
    folder = write_hf(tmp_path / "b", llama3(), tokenizer_config={"bos_token": None, "x": 1})
    with pytest.raises(ValueError, match=r"b: no end-of-text token; expected eos_token in"):
        load_tokenizer(folder)
    folder = write_hf(tmp_path / "c", llama3(), generation_config={"eos_token_id": 10**6})
    with pytest.raises(ValueError, match=r"c: tokenizer\.json lacks the ids \[1000000\]"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"c: tokenizer_config\.json is not JSON"):
        load_tokenizer(folder)
    with pytest.raises(ValueError, match=r"d: tokenizer\.json is not JSON"):
        Tokenizer({"tokenizer.json": b"<html>"}, "d")
