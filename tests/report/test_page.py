"""The page loads nothing, shows the tables with their sources, and escapes what users wrote."""

import base64
import json
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from support.report_results import DIFF, put

from diffclip_openclip.report.command import report
from diffclip_openclip.report.comparison import our_entries
from diffclip_openclip.report.drawing import COLUMN, draw
from diffclip_openclip.report.evaluated_models import read_models
from diffclip_openclip.report.figures import make_figures
from diffclip_openclip.report.latex import latex
from diffclip_openclip.report.paper import Score, load_paper
from diffclip_openclip.report.table_formats import csv_text, html, markdown
from diffclip_openclip.report.tables import make_tables


class Page(HTMLParser):
    """Collect open elements, identifiers, addresses, and cells by the class of their row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.addresses, self.cells, self.tags = [], [], [], {}, set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append((tag, attrs.get("class")))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.addresses += [attrs[name] for name in ("src", "href", "srcset", "data", "action") if name in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if data.strip() and ("td", None) in self.open:
            row = next(kind for tag, kind in reversed(self.open) if tag == "tr")
            self.cells.setdefault(row, []).append(data.strip())


def test_the_page_loads_nothing(output):
    text = (output / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)) == 9 + 5 + 1
    images = [address for address in page.addresses if address.startswith("data:image/svg+xml;base64,")]
    assert len(images) == 5
    assert {address for address in page.addresses if address not in images} == {f"#{name}" for name in page.ids}
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert "url(" not in text
    assert "@import" not in text
    for image in images:
        svg = ElementTree.fromstring(base64.b64decode(image.partition(",")[2]))
        links = [value for node in svg.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert links
        assert all(link.startswith("#") for link in links)


def test_the_page_has_the_tables_and_their_provenance(output):
    text = (output / "index.html").read_text()
    page = Page(text)
    ours = page.cells["ours"]
    starts = [at for at, text in enumerate(ours) if text == "51.2"]
    assert len(starts) == 3  # the six tasks, Table 1's SUN397 and its mean
    assert ours[starts[1] : starts[1] + 5] == ["51.2", "±1.0", "(+1.2", "ns", ")"]
    assert "+1.2" in page.cells["minus"]
    assert f'title="{DIFF.replace(" ", "_")}/few_shot/dtd_.json"' in text
    assert 'title="Table 1, Few-Shot, CC12M DiffCLIP"' in text
    for fact in ("NVIDIA &lt;H200&gt;", "D1" * 32, "torch 2.15.0, timm –", "2026-11-22T10:00:00+00:00", "paper-7"):
        assert fact in text
    assert "emoji_openai-80.json" in text


def test_labels_are_escaped(tmp_path, undrawn):
    put(tmp_path / "in", "a|b <i> $x$ *", "few_shot", "dtd", {"accuracy": 0.5}, folder="a")
    report(tmp_path / "in", tmp_path / "out")
    assert "a|b &lt;i&gt; $x$ *" in (tmp_path / "out" / "index.html").read_text()
    assert r"| a\|b \<i> $x$ \* |" in (tmp_path / "out" / "tables" / "table1.md").read_text()


def test_the_weights_of_all_training_runs_are_named(tmp_path, undrawn):
    for seed in (0, 1):
        weights = {"pretrained": f"logs/seed{seed}/epoch_1.pt", "checkpoint_sha256": str(seed)}
        put(tmp_path / "in", f"{DIFF} seed{seed}", "few_shot", "dtd", {"accuracy": 0.5}, **weights)
    report(tmp_path / "in", tmp_path / "out", group=["DiffCLIP=Diff*"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "weights: <code>logs/seed0/epoch_1.pt, logs/seed1/epoch_1.pt</code>" in page


@pytest.mark.parametrize("label", ["a\x00b", "red\x1b[31m", "a\ufffeb", "a\nb \x0b & <c>", "=1+1"])
def test_a_page_with_any_label_is_well_formed(tmp_path, label):
    """Expect SVGs that are XML, which knows no control characters."""
    put(tmp_path / "in", label, "few_shot", "dtd", {"accuracy": 0.5}, folder="a")
    path = put(tmp_path / "in", label, "zeroshot_classification", "own", {"acc1": 0.5}, templates="own", folder="a")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": label}))
    (model,) = read_models(tmp_path / "in")
    entries = our_entries([model], load_paper())
    figure = make_figures({}, [replace(entries[0], scores={"linear_probe/mean": Score(50, "")})])[0]
    draw(figure, COLUMN).savefig(tmp_path / "figure.svg")
    ElementTree.parse(tmp_path / "figure.svg")
    for table in make_tables({}, entries, [model]):
        for text in (html(table), markdown(table), csv_text(table), latex(table)):
            assert not [letter for letter in text.encode().decode() if letter != "\n" and not letter.isprintable()]
        ElementTree.fromstring(html(table))
