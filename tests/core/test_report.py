"""Report pages: safe against what models write, whole in one file, and honest arithmetic."""

import ast
import json
import math
import pathlib
import re
import struct
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from ra3_jax.core import figures, report
from ra3_jax.core.report import Cell, Column, Curve, Headline, Section
from ra3_jax.core.rundir import RunDir
from ra3_jax.core.stats import Estimate

HOSTILE = "</script></pre><img src=x onerror=alert(1)>\"'&<!--"
VOID = {"meta", "br"}
FORBIDDEN = {"script", "img", "link", "iframe", "object", "embed", "base", "form", "a:href", "foreignobject", "image"}


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"event handler {name} in <{tag}>"
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.references.append(value or "")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def check_html(html: str) -> str:
    """Asserts balanced tags, unique ids, nothing executable or loaded; returns the page's text."""
    page = _Page()
    page.feed(html)
    page.close()
    assert not page.open
    assert not page.tags & FORBIDDEN
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert "@import" not in html and "url(http" not in html
    html.encode()  # no lone surrogates
    return "".join(page.text)


def whole_page(*body) -> str:
    return report.render_page("title", "subtitle", Headline("verdict"), [Section("one", "One", body)])


def test_everything_is_escaped():
    curve = Curve(HOSTILE, [0, 1], [1.0, 2.0])
    body = [
        report.prose(HOSTILE), report.note(HOSTILE, "bad"), report.heading(HOSTILE), report.points([HOSTILE]),
        report.facts([(HOSTILE, HOSTILE)]), report.glossary([(HOSTILE, HOSTILE)]),
        report.fold(HOSTILE, report.prose(HOSTILE)),
        report.program([(HOSTILE, True), (HOSTILE, False)], HOSTILE, HOSTILE),
        report.table([Column(HOSTILE, "higher", HOSTILE)], [[HOSTILE], [Cell(HOSTILE, 1.0)]], HOSTILE),
        report.plot([curve, curve], title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE, caption=HOSTILE),
        report.bars({HOSTILE: [1.0], "b": [2.0]}, title=HOSTILE, x_label=HOSTILE, caption=HOSTILE),
    ]  # fmt: skip
    html = report.render_page(HOSTILE, HOSTILE, Headline(HOSTILE), [Section("one", HOSTILE, body)], HOSTILE)
    assert "<img" not in html and "</script" not in html
    assert check_html(html).count("onerror=alert(1)") > 20  # it is all there, as text


def test_what_does_not_show_is_written_out():
    text = "a\u202eb\u200bc\x00d\re\x85f\ud800g\tok\n"
    shown = report.visible(text)
    assert shown == "a\\u202eb\\u200bc\\x00d\\x0de\\x85f\ufffdg\tok\n"
    html = whole_page(report.program([(text, True)]), report.prose(text))
    assert "\u202e" not in check_html(html) and "\\u202e" in html


def test_trusted_html_is_left_alone():
    from markupsafe import Markup

    assert "<i>q</i>" in report.glossary([("term", Markup("<i>q</i>"))])


def test_program_marks_thoughts_line_by_line():
    html = report.program([("def f():\n", False), ("# why\n", True), ("    return 1", False)])
    assert html.count("<mark>") == 1 and "<mark># why</mark>" in html
    assert html.count("<span>") == 3


def test_long_programs_are_cut_and_say_so():
    html = report.program([("x" * 50, False), ("y" * 50, True), ("z" * 50, False)], limit=60)
    assert "y" * 10 in html and "y" * 11 not in html and "z" not in html
    assert "[90 more characters]" in html


def test_comment_pieces_rebuild_the_source():
    source = "def f():\n    # a\n    s = '#'\n# b"
    pieces = report.comment_pieces(source)
    assert "".join(text for text, _ in pieces) == source
    assert [thought for _, thought in pieces] == [False, True, False, True]


def test_best_values_are_emphasised():
    columns = ["name", Column("up", "higher"), Column("down", "lower"), Column("none")]
    rows = [
        ["a", Cell("0.5 ± 0.1", 0.5), Cell("3", 3.0), Cell("9", 9.0)],
        ["b", Cell("0.7 ± 0.1", 0.7), Cell("1", 1.0), Cell("1", 1.0)],
        ["c", Cell("-"), Cell("nan", math.nan), Cell("5", 5.0)],
    ]
    html = report.table(columns, rows)
    best = [line for line in html.replace("<td", "\n<td").splitlines() if 'class="best"' in line]
    assert len(best) == 2 and "0.7<small>± 0.1</small>" in best[0] and ">1<" in best[1]


def test_without_a_difference_nothing_is_best_and_ragged_rows_fail():
    assert 'class="best"' not in report.table(["a", Column("b", "lower")], [["x", Cell("1", 1.0)]])
    assert 'class="best"' not in report.table([Column("b", "lower")], [[Cell("1", 1.0)], [Cell("1", 1.0)]])
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        report.table(["a", "b"], [["x"]])


def test_figures_are_svg_in_the_colours_of_the_page():
    curves = [
        Curve("a", [0, 1, 2], [0.1, None, 0.3], [0.1, 0.1, math.nan], marker="o"),
        Curve("b", [0, 2], [0.2, 0.2], colour=2, line="--", marker="s", hollow=True),
    ]
    svg = figures.curves_svg(curves, x_label="x", y_label="y", breaks=[1.0], size=(3, 2), label="two curves")
    ElementTree.fromstring(svg)  # well-formed
    assert "#010b" not in svg and "var(--c1)" in svg and "var(--c2)" in svg and "var(--rule)" in svg
    assert svg == figures.curves_svg(curves, x_label="x", y_label="y", breaks=[1.0], size=(3, 2), label="two curves")
    other = figures.curves_svg(curves, x_label="x", y_label="y", breaks=[], size=(3, 2), label="another")
    check_html(whole_page(svg, other))  # no id twice


def test_panels_are_one_png():
    curves = [Curve("a", [0, 1, 2], [0.1, None, 0.3], [0.1, 0.1, math.nan], marker="o"), Curve("b", [0, 2], [1, 2])]
    panels = [figures.Panel("two curves", curves, "x", breaks=[1.0]), *[figures.Panel("one", curves[:1], "x")] * 2]
    png = figures.panels_png(panels, size=(2, 1))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (400, 200)  # two columns, two rows
    assert png != figures.panels_png(panels[1:], size=(2, 1))
    with pytest.raises(ValueError, match="nothing to plot"):
        figures.panels_png([])


def test_a_fragment_keeps_its_style_to_itself():
    html = report.fragment(report.prose(HOSTILE), report.table(["a"], [["x"]]))
    assert type(html) is str and HOSTILE not in html
    start, css, body = re.split("<style>|</style>", html)
    assert start == '<div class="ra3">' and ElementTree.fromstring(start + body) is not None
    assert css.startswith(".ra3 {") and css.endswith("}") and css.count("{") == css.count("}")
    assert ":root" not in css and "\nbody" not in css and css.count("\n& {") == 2


def test_empty_figures_do_not_fail():
    check_html(whole_page(report.plot([], title="none", x_label="x"), report.bars({}, title="no bars", x_label="x")))


def test_the_page_loads_nothing_and_says_so_to_the_browser():
    html = whole_page(report.plot([Curve("a", [0], [1.0])], title="t", x_label="x"))
    assert "default-src 'none'" in html
    text = check_html(html)
    assert "verdict" in text and html.startswith("<!DOCTYPE html>")


def test_phases_count_their_own_steps_and_later_lines_win():
    # An annotation is noted at the first update that learns from it.
    lines = [(1, "estep", 0), (2, "estep", 0), (3, "annotate", 0), (7, "mstep", 0), (12, "mstep", 0)]
    lines += [(13, "estep", 1), (14, "estep", 1), (15, "annotate", 1), (19, "mstep", 1)]
    records = [{"step": s, "phase": p, "round": r, "v": i} for i, (s, p, r) in enumerate(lines)]
    assert [r["step"] for r in report.of_phase(records, "estep")] == [1, 2, 3, 4]
    assert [r["step"] for r in report.of_phase(records, "mstep")] == [5, 10, 15]
    again = [*records[:3], {**records[2], "v": 99}, *records[3:]]
    assert [r["v"] for r in report.of_phase(again, "annotate")] == [99, 7]
    assert report.of_phase(records, "nothing") == []


def test_long_curves_are_averaged_within_rounds():
    records = [{"step": i, "round": i // 500, "loss": float(i % 500)} for i in range(1000)]
    curve = report.metric_curve(records, "loss", limit=100)
    assert curve is not None
    y = [math.nan if v is None else v for v in curve.y]
    assert len(y) == 101 and math.isnan(y[50])  # 50 a round, and the gap between
    assert y[0] == pytest.approx(4.5) and y[51] == pytest.approx(4.5) and curve.x[0] == pytest.approx(4.5)


def test_curves_skip_what_is_not_a_number():
    records = [{"step": 1, "a": None}, {"step": 2, "a": "x"}, {"step": 3, "a": 1.5}, {"step": 4, "a": math.nan}]
    curve = report.metric_curve(records, "a")
    assert curve is not None and list(curve.x) == [3] and list(curve.y) == [1.5]
    assert report.metric_curve(records, "b") is None
    assert report.panels(records, ["b"]) == []


def test_broken_metrics_are_reported_not_raised(tmp_path):
    run = RunDir.at(tmp_path)
    assert report.load_metrics(run.metrics) == ([], "There is no metrics.jsonl: no curves.")
    run.metrics.write_text("")
    assert report.load_metrics(run.metrics) == ([], "metrics.jsonl is empty: no curves.")
    run.metrics.write_text("{oops\n")
    records, problem = report.load_metrics(run.metrics)
    assert records == [] and "not a JSON line" in problem
    run.metrics.write_text(json.dumps({"step": 1, "phase": "x"}) + "\n")
    assert report.load_metrics(run.metrics) == ([{"step": 1, "phase": "x"}], "")


def test_difference_adds_the_variances():
    d = report.difference(Estimate(0.7, 0.03, 100), Estimate(0.6, 0.04, 80))
    assert d.mean == pytest.approx(0.1) and d.se == pytest.approx(0.05) and d.n == 80
    assert math.isnan(report.difference(Estimate(1.0, math.nan, 1), Estimate(0.0, 0.1, 9)).se)


def test_settings_show_what_was_changed():
    html = "".join(report.settings({"a": {"b": 1, "c": [1, 2]}, "d": None}, {"a": {"b": 2, "c": [1, 2]}, "d": None}))
    first, folded = html.split("<details>")
    assert "a.b" in first and "a.c" not in first
    assert "a.c" in folded and "1, 2" in folded and "All 3 settings" in folded


def test_heavy_libraries_are_imported_by_functions_only():
    for module in (report, figures):
        assert module.__file__
        tree = ast.parse(pathlib.Path(module.__file__).read_text())
        names = [a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names]
        names += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert not {name.split(".")[0] for name in names} & {"matplotlib", "jinja2", "markupsafe"}
