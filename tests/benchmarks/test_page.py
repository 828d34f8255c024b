"""The benchmarks' page has what follows from the results, and its differences are paired by seed."""

import page
import pytest
from comparison_records import read_records
from group_outputs import cell, make_row
from measured_tables import fragility_part, inside_part
from model_groups import Estimate, over_seeds


def test_the_page_has_what_follows_from_the_results():
    for record in read_records():
        for own in record["comparisons"]:
            values = [runs for by_title in own["scores"].values() for runs in by_title.values()]
            assert {len(runs) for runs in values} == {len(record["seeds"])}
    content = page.PAGE.read_text(encoding="utf-8")
    assert page.written(content) == content


def test_parts_are_written_between_their_marks(monkeypatch):
    monkeypatch.setattr(page, "parts", lambda: {"a": "new"})
    begin, end = page.BEGIN.format("a"), page.END.format("a")
    assert page.written(f"before\n{begin}\nold\n{end}\nbehind") == f"before\n{begin}\n\nnew\n\n{end}\nbehind"
    with pytest.raises(ValueError, match="the page lacks <!-- benchmarks/page"):
        page.written(f"{end}{begin}")


def test_cells_have_the_interval_over_seeds_or_over_images():
    seeds = over_seeds([1.0, 2.0, 3.0])  # 2.484 to each side
    assert cell(seeds) == "2.0 ±2.5"
    assert cell(seeds, 0, 100, signed=True) == "+200 ±248 ns"
    assert cell(over_seeds([5.0, 6.0, 7.0]), signed=True) == "+6.0 ±2.5"
    assert cell(Estimate(0.5, 0.2, 0.7, [0.5]), 1, 100) == "50.0 [20.0, 70.0]"
    assert cell(Estimate(0.5, None, None, [0.5])) == "0.5"
    assert cell(None) == "–"


def test_what_is_inside_is_compared_layer_mean_by_layer_mean():
    groups = {
        "CLIP": {"sink": [[1, 2], [3, 2]], "CKA of heads": [[0.5, 0.6]]},
        "CLIP, half heads": {"CKA of heads": [[0.3, 0.1]]},
        "DiffCLIP": {"sink": [[3, 4], [5, 6]], "sink of A1": [[1, 1], [1, 2]], "CKA of heads": [[0.4, 0.2]]},
        "V2": {"sink": [[1, 1]], "sink of A1": [[1, 1]], "CKA of heads": [[0.4, 0.5]]},
    }
    rows = [
        make_row(over_seeds(seeds), group=group, tower="image", layer=layer, measure=measure)
        for group, measures in groups.items()
        for measure, layers in measures.items()
        for layer, seeds in enumerate(layers)
    ]
    said = inside_part(rows)
    assert "| image: sink | 2.00 ±0.00 | – | 4.50 ±6.35 | 1.00 ±0.00 |" in said
    assert "| mean over layers | CLIP, half heads | DiffCLIP | V2 |" in said
    assert "| image: sink, to that of CLIP | – | +2.50 ±6.35 ns | -1.00 ±0.00 |" in said
    assert "| image: sink, to that of its A₁ | – | +3.25 ±3.18 | +0.00 ±0.00 ns |" in said
    # of half the heads for version 1, of CLIP for version 2; the one with half the heads has nothing to compare it with
    assert "| image: CKA of heads, to as many heads | – | +0.10 ±0.00 | -0.10 ±0.00 |" in said


def test_fragility_is_compared_with_the_clip_that_is_trained_as_long():
    shares = {"CLIP": [0.5, 0.6], "CLIP, continued": [0.7, 0.9], "V2": [0.6, 0.7], "V2, warm-started": [0.6, 0.8]}
    what = {"quantity": "flipped", "disturbed": "attack", "size": 2}
    rows = [make_row(over_seeds(own), group=group, **what) for group, own in shares.items()]
    said = fragility_part(rows)
    assert "| flipped by the attack, 2/255 | 55.0 ±63.5 | 80.0 ±127.1 | 65.0 ±63.5 | 70.0 ±127.1 |" in said
    assert "| points | V2 | V2, warm-started |" in said
    assert "| flipped by the attack, 2/255 | +10.0 ±0.0 | -10.0 ±0.0 |" in said
