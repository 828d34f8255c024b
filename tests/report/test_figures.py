"""Figures show the right entries, draw them to scale, and keep them apart without colour."""

import itertools
import math
import re
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from support.report_results import CLIP, DIFF, MATCH, put

from diffclip_openclip.report.bars import draw_bars
from diffclip_openclip.report.command import report
from diffclip_openclip.report.comparison import Entry, our_entries, paper_entries
from diffclip_openclip.report.curves import checkpoints_of, last_checkpoints
from diffclip_openclip.report.drawing import COLUMN, WIDE, draw, save_figures
from diffclip_openclip.report.evaluated_models import read_models
from diffclip_openclip.report.figures import make_figures
from diffclip_openclip.report.paper import Score, load_paper
from diffclip_openclip.report.radar import draw_radar
from diffclip_openclip.report.styles import STYLES, styles_of
from diffclip_openclip.report.table_layouts import Column
from diffclip_openclip.report.uncertainty import Interval

# what is in them


def panels(results: Path, match: list[str]) -> dict[str, list[tuple[str, list[str]]]]:
    rows = load_paper()
    figures = make_figures(paper_entries(rows), our_entries(read_models(results), rows, match=match))
    return {f.name: [(panel.title, [e.name for e in panel.entries]) for panel in f.panels] for f in figures}


def test_ours_stand_in_the_figures_of_their_pretraining(results):
    pair, four = ["CLIP", "DiffCLIP"], ["CLIP", "DiffCLIP", "DiffCLIP*", "DiffCLIP†"]
    ours = [CLIP, DIFF]
    six = ["Linear probing", "Few-shot", "Image retrieval", "Text retrieval", "Zero-shot ImageNet", "Zero-shot OOD"]
    radar = [("The paper, CC12M", pair), ("Ours", ours)]
    assert panels(results, []) == {
        "figure1": [(title, pair + ours) for title in six],
        "figure3": [("The paper, CC3M", pair), *radar],
        "figure4": radar,
        "figure5": [(title, four + ours) for title in six],
        "other_data": [("emoji: zero-shot top-1, 80 templates", [DIFF])],
    }
    # DiffCLIP goes with its baseline
    assert panels(results, MATCH[:1])["figure1"] == [(title, pair) for title in six]
    assert panels(results, MATCH[:1])["figure5"][0] == (six[0], four + ours)


def test_what_is_not_drawn_is_said(results):
    rows = load_paper()
    figures = make_figures(paper_entries(rows), our_entries(read_models(results), rows))
    assert figures[3].notes[-1] == f"Not drawn, as not known: Linear probing of {DIFF}."


def test_checkpoints_of_a_run_are_curves_and_the_last_one_stands_in_tables(tmp_path):
    for epoch in (2, 10, 9):
        fields = {"pretrained": f"logs/run/checkpoints/epoch_{epoch}.pt", "checkpoint_sha256": str(epoch)}
        put(tmp_path, f"DiffCLIP-nano run epoch_{epoch}", "zeroshot_classification", "imagenet1k",
            {"acc1": epoch / 100}, templates="paper-7", **fields)  # fmt: skip
    put(tmp_path, CLIP, "zeroshot_classification", "imagenet1k", {"acc1": 0.5}, templates="paper-7")
    models = read_models(tmp_path)
    last, named = "DiffCLIP-nano run epoch_10", "DiffCLIP-nano run epoch_2"
    assert [model.name for model in last_checkpoints(models, [])] == [CLIP, last]
    assert [model.name for model in last_checkpoints(models, [named])] == [CLIP, last, named]
    checkpoints = checkpoints_of(models)
    assert [(entry.epoch, round(entry.scores["zero_shot_7/imagenet1k"].value)) for entry in checkpoints] == [
        (2, 2),
        (9, 9),
        (10, 10),
    ]
    *_, figure = make_figures(paper_entries(load_paper()), [], checkpoints)
    assert (figure.name, [panel.title for panel in figure.panels]) == ("epochs", ["Zero-shot ImageNet"])
    canvas = draw(figure, WIDE)
    (line,) = (line for line in canvas.axes[0].lines if len(line.get_xdata()) == 3 and line.get_path_effects())
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([2, 9, 10], pytest.approx([2, 9, 10]))
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["DiffCLIP-nano run"]


# how it is drawn


def test_figures_show_something(output):
    for number in (1, 3, 4, 5):
        pixels = imread(output / "figures" / f"figure{number}.png")
        assert pixels.shape[1] >= 1000
        assert pixels.std() > 0.1


def test_reports_are_the_same_each_time(results, output, tmp_path, monkeypatch):
    """Draw a figure of each kind again, and write the rest of the report again around the figures that are there."""
    rows = load_paper()
    figures = make_figures(paper_entries(rows), our_entries(read_models(results), rows, match=MATCH))
    again = [figure for figure in figures if figure.name in ("figure1", "figure3", "figure4")]
    assert {figure.kind for figure in again} == {figure.kind for figure in figures}
    save_figures(again, tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (output / "figures" / path.name).read_bytes(), path.name
    assert len(list(tmp_path.iterdir())) == 3 * 4

    def copy(figures, folder):
        shutil.copytree(output / "figures", folder, dirs_exist_ok=True)

    monkeypatch.setattr("diffclip_openclip.report.command.save_figures", copy)
    report(results, tmp_path / "again", match=MATCH)
    for path in (*output.glob("tables/*"), output / "index.html"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(output)).read_bytes(), path.name


@pytest.mark.parametrize("name", ["figure1.pdf", "figure4.pdf", "figure4_column.pdf"])
def test_pdfs_have_the_width_of_a_text_or_a_column_and_text_that_is_text(output, name):
    content = (output / "figures" / name).read_bytes()
    (box,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ", content)
    assert float(box) == pytest.approx(72 * (COLUMN if "column" in name else WIDE))
    assert b"/FontType 42" in content or b"/CIDFontType2" in content
    assert b"/Subtype /Type3" not in content


def entry(name: str, family: str, *values: float | None, baseline: Entry | None = None, **fields) -> Entry:
    scores = {str(place): Score(value, "", **fields) for place, value in enumerate(values) if value is not None}
    return Entry(name, family, scores, baseline=baseline)


def bars(entries: list[Entry], *titles: str, inches=(6.0, 1.0)):
    axis = Figure().add_subplot()
    draw_bars(axis, [Column(title, str(place)) for place, title in enumerate(titles)], entries, inches=inches)
    return axis


def test_bars_are_as_high_as_their_values():
    base = entry("base", "CLIP", 10, 20)
    other = entry("other", "DiffCLIP*", None, 15.25, baseline=base, derived=True)
    axis = bars([base, other], "a", "b")
    fills = [(round(bar.get_x() + 0.43, 6), bar.get_height()) for bar in axis.patches[::2]]
    assert fills == [(0, 10), (3, 20), (4, 15.25)]
    assert [text.get_text() for text in axis.texts] == ["10.0", "20.0", "-4.8\n≈15.2"]
    assert axis.get_ylim()[0] == 0
    assert axis.get_ylim()[1] > 20


def test_whiskers_are_the_intervals_or_the_standard_deviation():
    known = entry("known", "CLIP", 50, interval=Interval(44, 57))
    runs = entry("runs", "DiffCLIP", 12, runs=(10, 12, 14))
    segments = [
        segment[:, 1].tolist()
        for bar in bars([known, runs], "a").containers
        if hasattr(bar, "has_yerr")
        for segment in bar.lines[2][0].get_segments()
    ]
    assert segments == [[44, 57], [10, 14]]


@pytest.mark.parametrize(("inches", "expected"), [(2.0, "+5.0\n15.0"), (0.5, "15.0"), (0.2, "")])
def test_labels_are_what_the_bars_have_room_for(inches, expected):
    base = entry("base", "CLIP", 10)
    axis = bars([base, entry("other", "DiffCLIP", 15, baseline=base)], "a", inches=(inches, 1.0))
    assert axis.texts[1].get_text() == expected


def test_a_rule_stands_before_the_average():
    axis = bars([entry("a", "CLIP", 1, 2, 3)], "a", "b", "Average")
    assert [line.get_xdata()[0] for line in axis.lines if len(set(line.get_xdata())) == 1] == [3]
    assert len(bars([entry("a", "CLIP", 1, 2)], "a", "b").lines) == 0


def test_a_radar_goes_counter_clockwise_from_the_east_through_its_values():
    axis = Figure().add_subplot(projection="polar")
    draw_radar(axis, [Column(str(place), str(place)) for place in range(3)], [entry("a", "CLIP", 10, 20, 60)], 80)
    ring, line = axis.lines
    assert list(line.get_ydata()) == [10, 20, 60, 10]
    assert list(line.get_xdata())[:3] == pytest.approx([0, 2 * math.pi / 3, 4 * math.pi / 3])
    assert (axis.get_theta_offset(), axis.get_theta_direction()) == (0, 1)
    assert set(ring.get_ydata()) == {25}
    assert len([patch for patch in axis.patches if patch.get_alpha() == 0.25]) == 1


@pytest.mark.parametrize("width", [WIDE, COLUMN])
def test_a_radars_size_does_not_depend_on_the_number_of_models(width):
    sizes = set()
    for count in (1, 7):
        entries = [
            Entry(f"a model of that name {at}", "CLIP", dict(paper_scores()), is_ours=True) for at in range(count)
        ]
        figure = make_figures(paper_entries(load_paper()), entries)[2]
        canvas = draw(figure, width)
        sizes |= {(round(axis.get_position().width * width, 6), axis.get_position().height * canvas.get_figheight())
                  for axis in canvas.axes}  # fmt: skip
        averages = [text.get_text() for text in canvas.legends[0].get_texts()]
        means = (("CLIP", 21.9), ("DiffCLIP", 27.6))
        assert averages[:3] == ["chance (25 %)", *(f"{name} (paper): average {mean}\xa0%" for name, mean in means)]
        assert len(averages) == 3 + count
        title, *_ = canvas.texts
        assert title.get_window_extent().y1 <= canvas.bbox.y1  # not cut at the top
    assert {(round(a, 4), round(b, 4)) for a, b in sizes} == {(1.75, 1.75)}


def paper_scores() -> dict[str, Score]:
    return load_paper()["CC12M/CLIP"].scores


def test_six_panels_have_scales_of_their_own():
    figure = make_figures(paper_entries(load_paper()), [])[0]
    canvas = draw(figure, WIDE)
    assert [axis.get_title() for axis in canvas.axes] == [panel.title for panel in figure.panels]
    assert canvas.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 3)
    assert draw(figure, COLUMN).axes[0].get_subplotspec().get_gridspec().get_geometry() == (3, 2)
    tops = [axis.get_ylim()[1] for axis in canvas.axes]
    assert tops[0] > 64.8 > tops[3] > 40.1 > tops[5] > 10
    assert canvas.get_suptitle() == ""  # titles are left to captions


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
