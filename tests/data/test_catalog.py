"""The table of the paper's data sets agrees with docs/data.md and with the forms of ``diffclip data``."""

from support.common import REPOSITORY

from diffclip_openclip.data.catalog import (
    DATA_SETS,
    FEW_SHOT,
    LINEAR_PROBE,
    RETRIEVAL,
    SUGAR_CREPE,
    TASKS,
    TORCHVISION,
    WINOGROUND,
    deviations,
    find_data_set,
    names_from,
    size_warning,
)
from diffclip_openclip.data.sources.torchvision_sets import SETS


def test_docs_have_every_data_set_with_its_sizes():
    docs = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in docs.splitlines() if line.startswith("| `")}
    for data_set in DATA_SETS:
        for split, count in [*data_set.splits.items(), *data_set.captions.items()]:
            assert f"{count:,}" in rows[data_set.name], (data_set.name, split)


def test_torchvision_has_a_reader_for_each_of_its_data_sets():
    assert list(SETS) == names_from(TORCHVISION)
    assert set(SETS) == {data_set.name for data_set in DATA_SETS if LINEAR_PROBE in data_set.tasks}


def test_every_data_set_has_a_source_and_those_of_the_paper_a_place_in_it():
    assert {task for data_set in DATA_SETS for task in data_set.tasks} == set(TASKS)
    for data_set in DATA_SETS:
        assert data_set.source
        assert bool(data_set.paper) == (data_set.name not in (SUGAR_CREPE, WINOGROUND))
        assert (LINEAR_PROBE in data_set.tasks) == (FEW_SHOT in data_set.tasks)
        assert data_set.mean_per_class <= (LINEAR_PROBE in data_set.tasks)
    assert {data_set.name for data_set in DATA_SETS if RETRIEVAL in data_set.tasks} == set(names_from("karpathy"))


def test_sizes_that_are_not_the_published():
    assert deviations("pets", {"train": 3_680, "test": 10}) == ["test 10 images instead of 3,669"]
    assert deviations("mine", {"test": 10}) == []
    (warning,) = size_warning("pets", "test", 10)
    assert warning == "warning: the published pets/test has 3,669 images: results will not compare with others'"
    assert (
        size_warning("pets", "test", 3_669) == size_warning("pets", "val", 1) == size_warning("mine", "test", 1) == []
    )
    assert find_data_set("pets").splits["test"] == 3_669


def test_one_caption_an_image_is_not_the_published_size():
    """Flickr30k's 1,000 test images have five each."""
    assert deviations("flickr30k", {"test": 1_000}, {"test": 1_000}) == ["test 1,000 captions instead of 5,000"]
    (warning,) = size_warning("flickr30k", "test", 1_000, captions=1_000)
    assert "the published flickr30k/test has 1,000 images and 5,000 captions" in warning
    assert deviations("flickr30k", {"test": 1_000}, {"test": 5_000}) == []
    assert size_warning("flickr30k", "test", 1_000) == []  # of a result that counted none
