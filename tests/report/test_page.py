"""The page loads nothing, shows the tables with their sources, and escapes what users wrote."""

import base64
from html.parser import HTMLParser
from xml.etree import ElementTree

from support.report_results import DIFF, put

from diffclip_openclip.report.command import report


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
        if len(self.open) > 1 and self.open[-1][0] in ("td", "th"):
            self.cells.setdefault(self.open[-2][1], []).append(data)


def test_the_page_loads_nothing(output):
    text = (output / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)) == 8 + 4 + 1
    images = [address for address in page.addresses if address.startswith("data:image/svg+xml;base64,")]
    assert len(images) == 4
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
    assert page.cells["ours"].count("51.2 (+1.2)") == 3  # Table 1's CIFAR10 and its mean, and the six tasks
    assert "+1.2" in page.cells["minus"]
    assert f'title="{DIFF.replace(" ", "_")}/few_shot/dtd_.json"' in text
    assert 'title="Table 1, Few-Shot, CC12M DiffCLIP"' in text
    for fact in ("NVIDIA &lt;H200&gt;", "D1" * 32, "torch 2.15.0, timm –", "2026-11-22T10:00:00+00:00", "paper-7"):
        assert fact in text
    assert "emoji_openai-80.json (in no table: not among the paper&#x27;s data sets)" in text


def test_labels_are_escaped(tmp_path):
    put(tmp_path / "in", "a|b <i> $x$ *", "few_shot", "dtd", {"accuracy": 0.5}, folder="a")
    report(tmp_path / "in", tmp_path / "out")
    assert "a|b &lt;i&gt; $x$ *" in (tmp_path / "out" / "index.html").read_text()
    assert r"| a\|b \<i> $x$ \* |" in (tmp_path / "out" / "tables" / "table1.md").read_text()
