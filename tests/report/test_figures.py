"""Figures show the right entries, draw them to scale, and keep them apart without colour."""

import itertools
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from support.report_results import CLIP, DIFF, MATCH

from diffclip_openclip.report.command import report
from diffclip_openclip.report.comparison import Entry, our_entries, paper_entries
from diffclip_openclip.report.drawing import STYLES, draw_bars, draw_radar, styles_of
from diffclip_openclip.report.evaluated_models import read_models
from diffclip_openclip.report.figures import make_figures
from diffclip_openclip.report.paper import Score, load_paper
from diffclip_openclip.report.table_layouts import Column

# what is in them


def panels(results: Path, match: list[str]) -> dict[str, list[tuple[str, list[str]]]]:
    rows = load_paper()
    figures = make_figures(paper_entries(rows), our_entries(read_models(results), rows, match=match))
    return {f.name: [(panel.title, [e.name for e in panel.entries]) for panel in f.panels] for f in figures}


def test_ours_stand_in_the_figures_of_their_pretraining(results):
    pair, four = ["CLIP", "DiffCLIP"], ["CLIP", "DiffCLIP", "DiffCLIP*", "DiffCLIP†"]
    ours = ("Ours", [CLIP, DIFF])
    ood = [("The paper, CC3M (own scale)", pair), ("The paper, CC12M", pair), ours]
    cc3m, radar = ("The paper, CC3M", pair), [("The paper, CC12M", pair), ("Ours (own scale)", ours[1])]
    assert panels(results, []) == {
        "figure1": [cc3m, ours],
        "figure3": ood,
        "figure4": radar,
        "figure5": [("The paper, CC12M", four), ours],
    }
    # DiffCLIP goes with its baseline
    assert panels(results, MATCH[:1])["figure1"] == [cc3m]
    assert panels(results, MATCH[:1])["figure5"][1] == ours


def test_what_is_not_drawn_is_said(results):
    rows = load_paper()
    figures = make_figures(paper_entries(rows), our_entries(read_models(results), rows))
    assert figures[3].notes[1] == (
        "Not drawn, as not known: Linear probing, Few-shot, Image retrieval of CC12M DiffCLIP*; "
        f"Linear probing of {DIFF}."
    )


# how it is drawn


def test_figures_show_something_and_are_the_same_each_time(results, output, tmp_path):
    report(results, tmp_path / "again", match=MATCH)
    for number in (1, 3, 4, 5):
        pixels = imread(output / "figures" / f"figure{number}.png")
        assert pixels.shape[1] >= 1000
        assert pixels.std() > 0.1
        for suffix in ("png", "svg"):
            name = f"figures/figure{number}.{suffix}"
            assert (output / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (output / "index.html").read_bytes() == (tmp_path / "again" / "index.html").read_bytes()


def entry(name: str, family: str, *values: float | None, baseline: Entry | None = None, derived: bool = False) -> Entry:
    scores = {str(place): Score(value, "", derived) for place, value in enumerate(values) if value is not None}
    return Entry(name, family, scores, baseline=baseline)


def test_bars_are_as_high_as_their_values():
    base = entry("base", "CLIP", 10, 20)
    other = entry("other", "DiffCLIP*", None, 15.25, baseline=base, derived=True)
    axis = Figure().add_subplot()
    draw_bars(axis, "title", [Column("a", "0"), Column("b", "1")], [base, other], 20)
    fills = [(round(bar.get_x() + 0.45, 6), bar.get_height()) for bar in axis.patches[::2]]
    assert fills == [(0, 10), (3, 20), (4, 15.25)]
    assert [text.get_text() for text in axis.texts] == ["10.0", "20.0", "-4.8\n≈15.2"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["base", "other"]
    assert axis.get_ylim()[0] == 0
    assert axis.get_ylim()[1] > 20


def test_radar_goes_through_its_values():
    axis = Figure().add_subplot(projection="polar")
    draw_radar(axis, [Column(str(place), str(place)) for place in range(3)], [entry("a", "CLIP", 10, 20, 60)], 70)
    (line,) = axis.lines
    assert list(line.get_ydata()) == [10, 20, 60, 10]
    assert axis.get_legend().get_texts()[0].get_text() == "a (average 30.0 %)"


# how series look

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB: what protanopes, deuteranopes and tritanopes see
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_series_differ_in_lightness(kind):
    """Ask for CIE L* at least 10 apart, so also in grey print, and for other hatches and markers."""

    def lightness(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        seen = [min(1.0, max(0.0, sum(a * b for a, b in zip(row, linear, strict=True)))) for row in BLINDNESS[kind]]
        return 116 * (0.2126 * seen[0] + 0.7152 * seen[1] + 0.0722 * seen[2]) ** (1 / 3) - 16

    levels = sorted(lightness(style.color) for style in STYLES.values())
    assert min(high - low for low, high in itertools.pairwise(levels)) > 10
    for part in ("hatch", "marker"):
        assert len({getattr(style, part) for style in STYLES.values()}) == len(STYLES)


def test_series_of_one_family_differ_in_hatch_and_marker():
    styles = styles_of([entry(str(place), "DiffCLIP", 1) for place in range(6)])
    assert len({style.color for style in styles}) == 1
    assert len({(style.hatch, style.marker) for style in styles}) == 6
