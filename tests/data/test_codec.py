"""Programs in id space: spans, events, and the promise that any thought is a comment."""

import ast
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ra3_jax.data.codec import Codec
from ra3_jax.data.lines import DataError, logical_lines
from ra3_jax.data.trace import Kind, Latent, annotate, plain, trace_from_json, trace_to_json
from tests.data.small_tokenizers import (
    ODD_BYTES,
    byte_fallback,
    gpt2,
    llama3,
    odd,
    qwen2,
    stdlib_sources,
    wrap,
)

FAMILIES = {"llama3": llama3, "qwen2": qwen2, "gpt2": gpt2, "odd": odd}

# Every kind of place at which a thought can stand.
PLACES = '''"""Doc
# string."""
from __future__ import annotations
import os; x = 1


@staticmethod
@property  # why
def f(a,
      # inside
      b=(1,
         2)):
    """Doc."""
    if a: return b
    elif b:
        try:
            y = """
# text
"""
        except (ValueError, TypeError):
            pass
        finally:
            z = 1 + \\
                2
    else:
    \tw = f\'\'\'{a!r}
\'\'\'
    return {
        a: b}
class C:
    v = 1 \\

    def g(self): return "a\\
b"
'''


@pytest.fixture(scope="module")
def codecs():
    return {name: Codec(wrap(build())) for name, build in FAMILIES.items()}


def tree(source: bytes | str) -> str:
    return ast.dump(ast.parse(source))


def id_of(codec: Codec, text: bytes) -> int:
    return next(i for i in range(codec.tokenizer.size) if codec.tokenizer.token_bytes(i) == text)


def allowed_ids(codec: Codec) -> np.ndarray:
    return np.flatnonzero(~codec.sets.banned_V & ~codec.sets.newline_V)


def annotated(codec: Codec, program, latents):
    sets = codec.sets
    return annotate(program, latents, mark_id=sets.mark_id, newline_id=sets.newline_id)


# --- spans


@pytest.mark.parametrize("name", FAMILIES)
def test_spans_are_the_text(codecs, name):
    codec = codecs[name]
    for source, text in stdlib_sources(40, 8):
        program = codec.program("", text, source)
        lines = [line.text + "\n" for line in logical_lines(text)]
        assert [codec.decode(span) for span in program.lines] == [*lines, ""]
        assert program.prompt_ids.tolist() == [codec.sets.bos_id]
        assert program.lines[-1].tolist() == [codec.sets.eos_id]
        assert program.code_bytes == len("".join(lines).encode())
        assert codec.decode(plain(program).tokens_T) == "".join(lines)


def test_the_prompt_is_context(codecs):
    prompt, code = 'def f(x):\n    """Doc.\n\n    """\n', "    # why\n\n    return x"
    for codec in codecs.values():
        program = codec.program(prompt, code, "f")
        assert program.prompt_ids.tolist() == [codec.sets.bos_id, *codec.encode(prompt)]
        assert [codec.decode(span) for span in program.lines] == ["    return x\n", ""]
        assert program.code_bytes == len("    return x\n")
        trace = plain(program)
        assert codec.source(trace) == prompt + "    return x\n"
        prompt_kinds = trace.kinds_T[: len(program.prompt_ids)]
        assert set(prompt_kinds) == {Kind.PROMPT} and Kind.PROMPT not in trace.kinds_T[len(prompt_kinds) :]
        unfinished = codec.program(prompt[:-1], code, "f")
        assert unfinished.prompt_ids.tolist() == program.prompt_ids.tolist()
        assert unfinished.example_id == program.example_id


def test_observed_comments_are_latents(codecs):
    code = "# set\n# x\nx = 1\ny = 2\n# the end"
    for codec in codecs.values():
        program = codec.program("", code, "c", "observe")
        assert program.observed is not None
        assert [z and codec.decode(z.ids) for z in program.observed] == [" set x", None, " the end"]
        trace = annotated(codec, program, program.observed)
        assert codec.source(trace) == "# set x\nx = 1\ny = 2\n# the end\n"
        kept = codec.program("", code, "c", "keep")
        assert codec.source(plain(kept)) == code + "\n" and kept.observed is None
        stripped = codec.program("", code, "c")
        assert codec.source(plain(stripped)) == "x = 1\ny = 2\n"
        assert stripped.example_id == kept.example_id == program.example_id


def test_example_id_is_stable_and_depends_on_content_alone(codecs):
    ids = {codec.program("", "x = 1\n", name).example_id for name, codec in codecs.items()}
    assert ids == {1934446443}
    codec = codecs["odd"]
    others = [codec.program("", c, "c").example_id for c in ("x = 2", "x =  1", "x = 1\nx = 1")]
    others.append(codec.program("x = 1\n", "x = 1", "c").example_id)
    assert len({1934446443, *others}) == 5
    assert codec.program("", "\n\n# why\r\nx = 1\r\n", "c").example_id == 1934446443


@pytest.mark.parametrize(
    ("code", "row", "reason"),
    [
        ("", None, "no line of code"),
        ("# nothing\n\n", None, "no line of code"),
        ("x = (", 1, "not Python"),
        ("x = 1\n\ny = 'e\u0301'\n", 3, "the tokenizer changes the text"),
    ],
)
def test_what_cannot_be_a_program(codecs, code, row, reason):
    with pytest.raises(DataError) as caught:
        codecs["qwen2"].program("", code, "p.py")
    assert (caught.value.name, caught.value.row, caught.value.reason) == ("p.py", row, reason)


def test_the_change_by_the_tokenizer_is_shown(codecs):
    code = "x = 'e\u0301'\n"
    with pytest.raises(DataError, match=r"line 1: .*: \"x = 'e\\u0301'\\n\" becomes"):
        codecs["qwen2"].program("", code, "p.py")
    with pytest.raises(DataError, match="the tokenizer changes the text"):
        codecs["qwen2"].program(code, "y = 1", "p.py")
    program = codecs["llama3"].program("", code, "p.py")  # no normaliser: exact
    assert codecs["llama3"].source(plain(program)) == code


def test_control_tokens_in_code_stay_text(codecs):
    code = 'x = "<|endoftext|><|end_of_text|><tool_call>"\n'
    for codec in codecs.values():
        program = codec.program("", code, "c")
        assert not codec.tokenizer.special_ids & set(program.lines[0].tolist())
        assert codec.source(plain(program)) == code


# --- events


@pytest.mark.parametrize("name", FAMILIES)
def test_events_by_definition(codecs, name):
    codec = codecs[name]
    sets, tokenizer = codec.sets, codec.tokenizer
    for i in range(tokenizer.size):
        text = tokenizer.token_bytes(i)
        if text is None:
            assert (sets.mark_V[i], sets.newline_V[i], sets.banned_V[i]) == (False, False, True)
            continue
        after = text[text.index(b"\n") + 1 :] if b"\n" in text else b""
        runs = any(byte not in b" \t\n\x0b\x0c" for byte in after)
        assert sets.mark_V[i] == (text[:1] == b"#")
        assert sets.banned_V[i] == (13 in text or 0 in text or runs)
        assert sets.newline_V[i] == (b"\n" in text and not sets.banned_V[i])
    assert tokenizer.token_bytes(sets.mark_id) == b"#" and sets.mark_V[sets.mark_id]
    assert tokenizer.token_bytes(sets.newline_id) == b"\n" and sets.newline_V[sets.newline_id]
    assert sets.banned_V[[sets.eos_id, sets.bos_id, sets.pad_id]].all()


def test_merged_ids_belong_to_the_events(codecs):
    def members(codec, events_V):
        return {codec.tokenizer.token_bytes(i) for i in np.flatnonzero(events_V)}

    assert b"):\n" in members(codecs["llama3"], codecs["llama3"].sets.newline_V)
    sets = codecs["odd"].sets
    assert members(codecs["odd"], sets.mark_V) == {b"#", b"##", b"#!", b"#\n", b"# -*- coding: "}
    assert members(codecs["odd"], sets.newline_V) == {*(b"\n", b"\n\n", b"):\n", b"\n    ", b"#\n", b"\\\n")}
    assert members(codecs["odd"], sets.banned_V) == {
        *(None, b"\r", b"\r\n", b"\0", b"x\0", b"\n#", b"x\ny = 1", b"\n\x85", b"\n\r")
    }


def test_a_wider_vocabulary_is_banned_and_a_narrower_one_refused():
    tokenizer = wrap(odd())
    wide = Codec(tokenizer, tokenizer.size + 7).sets
    assert len(wide.banned_V) == tokenizer.size + 7
    assert wide.banned_V[-7:].all() and not (wide.mark_V | wide.newline_V)[-7:].any()
    with pytest.raises(ValueError, match=f"test tokenizer: {tokenizer.size} ids, but the .* 9"):
        Codec(tokenizer, 9)


def test_mark_and_newline_need_ids_of_their_own():
    with pytest.raises(ValueError, match=r"exactly '#'; encoding it gives \[b' ', b'#'\]"):
        Codec(wrap(byte_fallback(prepend=True)))  # like Llama 2: a space before every text
    Codec(wrap(byte_fallback(prepend=False)))
    words = Tokenizer(models.WordLevel({"#": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    with pytest.raises(ValueError, match=r"exactly '\\n'; encoding it gives \[None\]"):
        Codec(wrap(words))


# --- distance from the tokenizer's own ids


@pytest.mark.parametrize(
    ("name", "best", "worst"),
    [
        ("llama3", "trailing", "leading"),
        ("qwen2", "trailing", "leading"),
        ("gpt2", "leading", "trailing"),
    ],
)
def test_which_attachment_is_canonical(codecs, name, best, worst):
    codec = codecs[name]
    programs = [codec.program("", text, source) for source, text in stdlib_sources(40, 20)]
    assert codec.noncanonical_rate(programs, best) == 0.0
    assert 0.05 < codec.noncanonical_rate(programs, worst) < 0.2


def test_noncanonical_rate_by_hand():
    entries = ["\u010a", "#", "a", "b", "ab", "b\u010a", "\u010aa", "<eos>"]
    model = models.BPE({e: i for i, e in enumerate(entries)}, [("a", "b"), ("b", "\u010a"), ("\u010a", "a")])
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    codec = Codec(wrap(backend))
    program = codec.program("", "a\nb\na\n", "p")
    # both the spans and the whole text are "a" "\n" "b\n" "a" "\n", as "b\n" merges before "\na"
    assert codec.noncanonical_rate([program]) == 0.0
    # leading gives "a" "\n" "b" "\na" "\n": the third and fourth are not in the whole text
    assert codec.noncanonical_rate([program], "leading") == 2 / 5
    # behind a prompt: "b\n" "a" "\n" against "b" "\na" "\n"
    behind = codec.program("b\n", "a\n", "p")
    assert codec.noncanonical_rate([behind]) == 0.0
    assert codec.noncanonical_rate([behind], "leading") == 2 / 3
    assert codec.noncanonical_rate([]) == 0.0


# --- any thought is a comment


@pytest.mark.parametrize("name", FAMILIES)
def test_every_allowed_id_at_every_edge_of_a_thought(codecs, name):
    codec = codecs[name]
    program = codec.program("", PLACES, "places")
    expected = tree(PLACES)
    allowed = allowed_ids(codec)
    rng = np.random.default_rng(0)
    for start in range(0, len(allowed), program.n_lines):
        ids = np.resize(np.roll(allowed, -start), program.n_lines)
        other = rng.choice(allowed, program.n_lines)
        for latents in (
            [Latent((int(i),)) for i in ids],
            [Latent((int(i), int(j))) for i, j in zip(ids, other, strict=True)],
            [Latent((int(j), int(i)), cut=True) for i, j in zip(ids, other, strict=True)],
        ):
            source = codec.source(annotated(codec, program, latents))
            assert tree(source.encode()) == expected, latents


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_thoughts_anywhere_leave_the_syntax_tree(codecs, data):
    codec = codecs[data.draw(st.sampled_from(sorted(FAMILIES)))]
    source, text = data.draw(st.sampled_from([("places", PLACES), *stdlib_sources(0, 60)]))
    program = codec.program("", text, source)
    allowed = allowed_ids(codec)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rate = data.draw(st.sampled_from([0.1, 0.5, 1.0]))
    latents: list[Latent | None] = [
        Latent(tuple(rng.choice(allowed, rng.integers(0, 9)).tolist())) if rng.random() < rate else None
        for _ in program.lines
    ]
    latents[0] = Latent(tuple(data.draw(st.lists(st.sampled_from(allowed.tolist()), max_size=6))))
    annotated_source = codec.source(annotated(codec, program, latents))
    assert tree(annotated_source.encode()) == tree(text)


@pytest.mark.parametrize("banned", [b"\r", b"\n#", b"x\ny = 1", b"\n\r", b"\0", b"\r\n"])
def test_banned_ids_do_harm(codecs, banned):
    """The property above can fail: each of these, and text after it, is more than a comment."""
    codec = codecs["odd"]
    program = codec.program("", "x = 1\n", "p")
    i = id_of(codec, banned)
    assert codec.sets.banned_V[i]
    latent = Latent((i, *codec.encode(" y = 2")))
    source = codec.source(annotated(codec, program, [latent, None]))
    if banned == b"\n#":  # harmless to the tree, but a second comment
        assert source == "#\n# y = 2\nx = 1\n"
        return
    try:
        changed = tree(source.encode()) != tree("x = 1\n")
    except (SyntaxError, ValueError):
        changed = True
    assert changed


@pytest.mark.parametrize(
    "cookie",
    [
        "coding: utf-16",
        " -*- coding: latin-1 -*-",
        " vim: fileencoding=utf-7",
        "coding=nonsense",
    ],
)
def test_a_thought_cannot_redeclare_the_encoding(codecs, cookie):
    text = "x = '\u00e9+AOk-'\ny = 2\nz = 3\n"
    for codec in codecs.values():
        for prompt, code in (("", text), (text.split("\n")[0] + "\n", "y = 2\nz = 3\n")):
            program = codec.program(prompt, code, "p")
            latent = Latent(tuple(codec.encode(cookie)))
            for t in range(program.n_lines):
                latents = [latent if t == u else None for u in range(program.n_lines)]
                source = codec.source(annotated(codec, program, latents))
                assert tree(source.encode()) == tree(text)
                assert cookie in source
    # a comment in line 1 of the prompt lets a declaration in line 2 count
    for codec in codecs.values():
        program = codec.program("# header\n", text, "p")
        latents = [Latent(tuple(codec.encode(cookie))), *[None] * 3]
        assert tree(codec.source(annotated(codec, program, latents)).encode()) == tree(text)
    bare = f"#{cookie}\n{text}".encode()
    with pytest.raises((AssertionError, SyntaxError, ValueError)):  # without the guard it would
        assert tree(bare) == tree(text)


def test_no_blank_lines_where_there_is_no_declaration(codecs):
    codec = codecs["odd"]
    program = codec.program("", "x = 1  # coding: utf-16\ny = 2\nz = 3\n# coding: utf-16", "p", "keep")
    assert codec.source(plain(program)).startswith("x = 1")
    assert tree(codec.source(plain(program)).encode()) == tree("x = 1\ny = 2\nz = 3")


def test_odd_bytes_are_all_ids(codecs):
    texts = {codecs["odd"].tokenizer.token_bytes(i) for i in range(codecs["odd"].tokenizer.size)}
    assert set(ODD_BYTES) <= texts


# --- traces as JSON


def test_traces_survive_json(codecs):
    codec = codecs["llama3"]
    program = codec.program("x = 0\n", "x = 1\ny = 2\n", "p")
    for latents in ([None] * 3, [None, Latent(tuple(codec.encode(" hm"))), Latent((), cut=True)]):
        trace = annotated(codec, program, latents)
        again = trace_from_json(json.loads(json.dumps(trace_to_json(trace))), program)
        assert again.latents == trace.latents and again.program is program
        for field in ("tokens_T", "kinds_T", "lines_T"):
            np.testing.assert_array_equal(getattr(again, field), getattr(trace, field))
            assert getattr(again, field).dtype == getattr(trace, field).dtype


def test_traces_of_another_program_are_refused(codecs):
    program = codecs["llama3"].program("", "x = 1\n", "p")
    d = trace_to_json(plain(program))
    with pytest.raises(ValueError, match=r"q: trace of example \d+ \(p\)"):
        trace_from_json(d, codecs["llama3"].program("", "x = 2\n", "q"))
    with pytest.raises(ValueError, match="p: the trace was made with other ids"):
        trace_from_json(d, codecs["odd"].program("", "x = 1\n", "p"))
