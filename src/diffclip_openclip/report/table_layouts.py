"""Define the report's tables: the paper's Tables 1 to 3, its figures as tables, and numbers that it does not print."""

from collections.abc import Iterable
from dataclasses import dataclass

from diffclip_openclip.data.catalog import (
    LINEAR_PROBE,
    MMVP_PATTERNS,
    POPE_CATEGORIES,
    RETRIEVAL,
    SUGAR_CREPE_KINDS,
    ZERO_SHOT,
    find_data_set,
)
from diffclip_openclip.report.paper import members


@dataclass(frozen=True)
class Column:
    """Describe a column of a table, or a group of bars in a figure."""

    title: str
    key: str  # of the score in it
    group: str = ""  # title above it and its neighbours, or ""

    @property
    def full_title(self) -> str:
        """Return the title with the group's."""
        return f"{self.group}: {self.title}" if self.group else self.title


@dataclass(frozen=True)
class Block:
    """Describe a part of a table: rows under a title of their own."""

    title: str  # or ""
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class TableLayout:
    """Describe a table."""

    name: str  # of its files
    title: str
    caption: str
    blocks: tuple[Block, ...]  # whose columns have the same titles
    digits: int = 1  # behind the decimal point
    derived: bool = False  # whether it has rows of the paper of which every score is derived
    stub: str = ""  # if given, blocks are the rows, under this title, and the models stand beside each other

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the keys of all scores in it."""
        return tuple(column.key for block in self.blocks for column in block.columns)


def data_set_columns(measure: str, task: str, group: str = "") -> tuple[Column, ...]:
    """Return a column for each data set of a task."""
    return tuple(Column(find_data_set(key.rpartition("/")[2]).title, key, group) for key in members(measure, task))


def _with_mean(measure: str, task: str, group: str = "") -> tuple[Column, ...]:
    return (*data_set_columns(measure, task, group), Column("Avg.", f"{measure}/mean", group))


def _retrieval(k: int) -> tuple[Column, ...]:
    images = _with_mean(f"image_retrieval@{k}", RETRIEVAL, "Image retrieval")
    return (*images, *_with_mean(f"text_retrieval@{k}", RETRIEVAL, "Text retrieval"))


def _zero_shot(title: str, measure: str) -> Block:
    means = (
        Column("mean of the five", f"{measure}/mean"),
        Column("mean without ImageNet", f"{measure}/mean_without_imagenet"),
    )
    return Block(title, (*data_set_columns(measure, ZERO_SHOT), *means))


SIX_TASKS = (
    Column("Linear probing", "linear_probe/mean"),
    Column("Few-shot", "few_shot/mean"),
    Column("Image retrieval", "image_retrieval@5/mean"),
    Column("Text retrieval", "text_retrieval@5/mean"),
    Column("Zero-shot ImageNet", "zero_shot_7/imagenet1k"),
    Column("Zero-shot OOD", "zero_shot_7/mean"),
)
OOD = _zero_shot("7 templates", "zero_shot_7")

TABLE_1 = TableLayout(
    "table1",
    "Table 1. Classification: linear probing and few-shot",
    "Accuracy in percent; of linear probing, the mean of the classes' for Caltech-101, Pets, Flowers and Aircraft.",
    (
        Block("Linear probing", _with_mean("linear_probe", LINEAR_PROBE)),
        Block("Few-shot", _with_mean("few_shot", LINEAR_PROBE)),
    ),
)
TABLE_2 = TableLayout(
    "table2",
    "Table 2. Zero-shot retrieval and zero-shot ImageNet",
    "Recall@5 and top-1 accuracy in percent; ImageNet with 7 templates.",
    (Block("", (*_retrieval(5), Column("ImageNet", "zero_shot_7/imagenet1k", "Zero-shot"))),),
)
TABLE_3 = TableLayout(
    "table3",
    "Table 3. POPE",
    "Percent; yes is the positive answer. The paper's language models use its CC12M image towers.",
    tuple(
        Block(
            category.capitalize(),
            tuple(
                Column(metric.capitalize(), f"pope_{category}/{metric}")
                for metric in ("accuracy", "precision", "recall")
            ),
        )
        for category in POPE_CATEGORIES
    ),
    digits=2,
    stub="Questions",
)
TASKS_TABLE = TableLayout(
    "tasks",
    "The six tasks of Figures 1 and 5",
    "Percent: means of Tables 1 and 2 (retrieval: Recall@5), zero-shot ImageNet, and the mean that Figure 3 shows.",
    (Block("", SIX_TASKS),),
    derived=True,
)
ZERO_SHOT_TABLE = TableLayout(
    "zero_shot",
    "Figure 3 as a table: zero-shot ImageNet and its variants",
    "Top-1 accuracy in percent, with 7 templates and with OpenAI's 80, which open_clip's trainer and clip_benchmark "
    "use. All other tables and all figures here use the 7. The paper names no templates: that its numbers are of the 7 "
    "is inferred from its authors' training code, so results with the 80 are compared with them too.",
    (OOD, _zero_shot("OpenAI's 80 templates", "zero_shot_80")),
)
MMVP_TABLE = TableLayout(
    "mmvp",
    "Figure 4 as a table: MMVP-VLM",
    "Pairs of which both texts pick their own image, percent of each pattern's (15 in the benchmark). Chance is 25. "
    "The paper shows seven of the nine patterns, and their mean.",
    (
        Block(
            "",
            (
                *(Column(pattern, f"mmvp/{pattern}") for pattern in MMVP_PATTERNS),
                Column("mean of the paper's 7", "mmvp/mean_7"),
                Column("mean of 9", "mmvp/mean_9"),
            ),
        ),
    ),
)
RECALL_TABLE = TableLayout(
    "recall",
    "Recall@1 and Recall@10",
    "Percent. The paper prints Recall@5 only (Table 2).",
    (Block("Recall@1", _retrieval(1)), Block("Recall@10", _retrieval(10))),
)
POPE_TABLE = TableLayout(
    "pope",
    "POPE: F1 and share of the answer yes",
    "Percent. The paper does not print these.",
    tuple(
        Block(
            category.capitalize(),
            (Column("F1", f"pope_{category}/f1"), Column("Yes", f"pope_{category}/yes_ratio")),
        )
        for category in POPE_CATEGORIES
    ),
    digits=2,
    stub="Questions",
)
PROBED_ZERO_SHOT_TABLE = TableLayout(
    "zero_shot_probed",
    "Zero-shot classification of the nine data sets of Table 1",
    "Top-1 accuracy in percent, with each data set's own templates. The paper does not print these.",
    (Block("", _with_mean("zero_shot_own", LINEAR_PROBE)),),
)
SUGAR_CREPE_TABLE = TableLayout(
    "sugar_crepe",
    "SugarCrepe",
    "Percent of questions of which the image is nearer to its caption than to the wrong one. Chance is 50. The mean is "
    "of the seven kinds. The paper does not print these.",
    (
        Block(
            "",
            (
                *(Column(kind.replace("_", " "), f"sugar_crepe/{kind}") for kind in SUGAR_CREPE_KINDS),
                Column("mean", "sugar_crepe/mean"),
            ),
        ),
    ),
)
WINOGROUND_TABLE = TableLayout(
    "winoground",
    "Winoground",
    "Percent of pairs of which each image prefers its caption (text), each caption its image (image), both (group). "
    "Chance is 25, 25 and 16.7. The paper does not print these.",
    (Block("", tuple(Column(kind, f"winoground/{kind}_score") for kind in ("text", "image", "group"))),),
)
LAYOUTS = (
    *(TASKS_TABLE, TABLE_1, TABLE_2, RECALL_TABLE, ZERO_SHOT_TABLE, PROBED_ZERO_SHOT_TABLE, MMVP_TABLE),
    *(SUGAR_CREPE_TABLE, WINOGROUND_TABLE, TABLE_3, POPE_TABLE),
)

# what is shown of scores that the paper does not print: measure -> words
_OTHER_MEASURES = {
    "zero_shot_own": "zero-shot top-1",
    "zero_shot_own_top5": "zero-shot top-5",
    "zero_shot_7": "zero-shot top-1, 7 templates",
    "zero_shot_7_top5": "zero-shot top-5, 7 templates",
    "zero_shot_80": "zero-shot top-1, 80 templates",
    "zero_shot_80_top5": "zero-shot top-5, 80 templates",
    "image_retrieval@5": "image R@5",
    "text_retrieval@5": "text R@5",
    "linear_probe": "linear probing",
    "few_shot": "few-shot",
}
OTHER_NAME = "other"


def other_layout(keys: Iterable[str]) -> TableLayout:
    """Return the table of all scores that no other table has.

    They are of the user's own data sets, and of those of Table 1 that were classified zero-shot without templates of
    their own.
    """
    shown = {key for layout in LAYOUTS for key in layout.keys}
    places = sorted({tuple(reversed(key.split("/", 1))) for key in keys if key not in shown})
    measures = list(_OTHER_MEASURES)
    chosen = [(name, measure) for name, measure in places if measure in measures]
    chosen.sort(key=lambda place: (place[0], measures.index(place[1])))
    return TableLayout(
        OTHER_NAME,
        "Other data sets",
        "Percent. The paper does not print these.",
        tuple(
            Block(f"{name}: {_OTHER_MEASURES[measure]}", (Column("", f"{measure}/{name}"),)) for name, measure in chosen
        ),
        stub="Data set",
    )
