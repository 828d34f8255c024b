"""Check the pages of docs/: their Python runs, their commands parse, their tables are true, their links lead on.

Of the README and of the pages beside benchmarks and examples, which have tests of their own, the links and paths.
"""

import ast
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from support.common import EMOJI, REPOSITORY, read_tar, run_python, run_warm
from support.markdown import blocks, broken_links, check, commands, extras, languages, python_code

from diffclip_cli.main import main
from diffclip_openclip import model_names
from diffclip_openclip.data import catalog
from diffclip_openclip.evaluation import results
from diffclip_openclip.extras import require
from diffclip_openclip.models import MODELS
from diffclip_openclip.report.paper import find_row, load_paper
from diffclip_openclip.weights import spec

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BENCHMARKS = REPOSITORY / "benchmarks" / "README.md"
ROOT_PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
ALL_PAGES = [*ROOT_PAGES, BENCHMARKS, *PAGES, *sorted((REPOSITORY / "examples").glob("*/README.md"))]
PACKAGE = REPOSITORY / "src" / "diffclip_openclip"
MODEL = "DiffCLIP-nano"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Make what the pages' Python finds in its folder: a run, OUT, RESULTS, and a photo."""
    folder = tmp_path_factory.mktemp("workspace")
    torch.manual_seed(0)
    checkpoint = {"epoch": 1, "name": "run", "state_dict": open_clip.create_model(MODEL).state_dict()}
    (folder / "logs" / "run" / "checkpoints").mkdir(parents=True)
    (folder / "logs" / "run" / "params.txt").write_text(f"model: {MODEL}\npretrained: \n")
    torch.save(checkpoint, folder / "logs" / "run" / "checkpoints" / "epoch_1.pt")
    assert main(["convert", str(folder / "logs" / "run" / "checkpoints" / "epoch_1.pt"), str(folder / "OUT")]) == 0
    [(_, drawing)] = read_tar(EMOJI / "train" / "noto.tar", 1)
    Image.open(io.BytesIO(drawing)).save(folder / "photo.jpg")
    hashes = {"checkpoint_sha256": "0" * 64, "dataset_sha256": "1" * 64}
    model = {"label": MODEL, "model": MODEL, "pretrained": "epoch_1.pt"} | hashes
    identity = results.Identity(task=catalog.FEW_SHOT, dataset="dtd", **model, precision="fp32", seed=0)
    outcomes = {"accuracy": np.full(10, 0.5)}
    known = {"captions": {"test": 1}, "provenance": {"run": "run", "epoch": 1, "training_seed": 0}}
    results.write(
        identity, folder / "RESULTS", {"accuracy": 0.5}, outcomes=outcomes, device="cpu", seconds=1.0, **known
    )
    return folder


def _copy(workspace: Path, place: Path) -> Path:
    folder = shutil.copytree(workspace, place)
    assert main(["convert", str(folder / "OUT"), str(folder / "OUT")]) == 0  # it names its own place
    return folder


# every page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_checked_as_a_whole(page):
    """No block is in a language that nothing here looks at, and links lead somewhere."""
    assert set(languages(page)) <= {"", "bash", "python"}
    assert broken_links(page) == []


@pytest.mark.parametrize("page", [page for page in PAGES if python_code(page)], ids=lambda page: page.name)
def test_python_runs(page, workspace, tmp_path):
    run_warm(python_code(page), _copy(workspace, tmp_path / "workspace"))


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_and_paths_lead_somewhere(page):
    assert broken_links(page) == []
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text(encoding="utf-8"))  # links have been looked at
    named = set(re.findall(r"(?<![\w./:{-])(?:src|tests|docs|benchmarks|examples)/[\w/.-]*\w", text))
    assert [path for path in sorted(named) if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize(
    "page", [page for page in (*PAGES, BENCHMARKS) if blocks(page, "bash")], ids=lambda page: page.name
)
def test_commands_parse(page, tmp_path):
    found = commands(page, tmp_path)
    assert found
    for words in found:
        check(words)


@pytest.mark.slow
def test_the_exported_files_are_used_as_the_page_says(workspace, tmp_path):
    require("this test", "export", "onnx", "onnxruntime", "onnxscript")
    folder = _copy(workspace, tmp_path / "workspace")
    assert main(["export", str(folder / "OUT"), "--format", "onnx"]) == 0
    (block,) = (block for block in blocks(DOCS / "weights.md", "python") if block.needs == "OUT/onnx")
    rows = re.findall(r"-?\d+\.\d+", run_python(block.code, folder))
    assert len(rows) == 2


def test_index_names_every_page_and_notebook():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for path in (*(page.name for page in PAGES if page.name != "index.md"), "../examples/quickstart.ipynb"):
        assert f"({path})" in index


# tables that say what the package is


def _rows(page: str) -> list[list[str]]:
    """Return the cells of all of a page's tables, line by line, without code marks and thousands' commas."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [
        [
            cell.strip().strip("`").replace(",", "") if re.fullmatch(r"[\d, ]+", cell) else cell.strip().strip("`")
            for cell in line.strip("|").split("|")
        ]
        for line in lines
        if line.startswith("|")
    ]


def _on_meta(name: str):
    with torch.device("meta"):
        return open_clip.create_model(name, device="meta")


def _count(module) -> int:
    return sum(weights.numel() for weights in module.parameters())


def test_parameters_of_every_model():
    rows = {row[0]: row[1:] for row in _rows("models.md") if row[0] in model_names()}
    assert sorted(rows) == model_names()
    counts = {}
    for name, (tower, in_image_tower, in_all, more) in rows.items():
        model = _on_meta(name)
        counts[name] = _count(model)
        assert tower == open_clip.get_model_config(name)["vision_cfg"]["timm_model_name"]
        assert (int(in_image_tower), int(in_all)) == (_count(model.visual), counts[name]), name
        if not more:
            assert name.endswith("-baseline")
            continue
        plain = MODELS[name].baseline or re.sub(r"DiffCLIP-V2-(ViT-\w-\d+).*", r"\1", name)
        assert int(more) == counts[name] - (counts[plain] if plain in counts else _count(_on_meta(plain))), name


def test_sizes():
    rows = {row[0]: row[1:] for row in _rows("models.md") if len(row) == 7 and row[0] != "size"}
    rows.pop("---")
    assert len(rows) == 6
    for size, row in rows.items():
        model = _on_meta(f"DiffCLIP-{size}")
        trunk, text = model.visual.trunk, model.text.transformer.config
        pixels, patch, tokens, *towers, context, embedding = map(int, re.findall(r"\d+", " ".join(row)))
        assert (pixels, patch) == (model.visual.image_size[0], trunk.patch_embed.patch_size[0])
        assert (tokens, context) == (trunk.patch_embed.num_patches + 1, model.context_length)
        assert towers[:3] == [trunk.embed_dim, len(trunk.blocks), trunk.blocks[0].attn.num_heads]
        assert towers[3:] == [text.hidden_size, text.num_hidden_layers, text.num_attention_heads]
        assert embedding == model.visual.head.proj.out_features


def test_forms_of_the_grammar():
    """The page has the forms of the parser's own table, in its order."""
    table = spec.__doc__.split("=\n")[1:-1][-1]
    forms = [", ".join(re.findall(r"``(.+?)``", line[:42])) for line in table.splitlines() if line.startswith("``")]
    rows = [row[0].replace("`", "") for row in _rows("weights.md") if len(row) == 2]
    first = rows.index("form") + 2
    assert rows[first : first + len(forms)] == forms
    assert rows[first + len(forms)] == "command"


def _imports(module: Path) -> set[str]:
    """Return what a module imports of this package, also in functions: names of modules and folders."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [str(node.module)] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found |= {name.split(".")[1] for name in names if name.startswith(f"{PACKAGE.name}.")}
    return found


def test_folders_import_what_the_design_says():
    rows = [row for row in _rows("design.md") if len(row) == 3]
    heads = [row[0] for row in rows].index("src/diffclip_openclip/")
    described, above = set(), set()
    for cell, _, imports in rows[heads + 2 : heads + 14]:
        names = [name.strip("` ") for name in cell.split(",")]
        allowed = set(re.findall(r"\w+", imports))
        assert allowed <= above, f"{cell} imports what stands below it"
        used = set()
        for name in names:
            place = PACKAGE / name
            for module in place.rglob("*.py") if place.is_dir() else [place]:
                used |= _imports(module)
        own = {name.strip("/").removesuffix(".py") for name in names}
        assert used - own - {"__version__"} == allowed, cell
        above |= own
        described |= {name.strip("/") for name in names}
    there = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - described == {"__init__.py", "__main__.py", "train.py"}


def test_lambda_init_by_layer():
    (row,) = (row for row in _rows("models.md") if row[0] == "λ_init")
    layers = open_clip.create_model("DiffCLIP-B-16-dynamic", device="meta").visual.trunk.blocks
    assert row[1:] == [f"{layer.attn.lambda_init:.3f}" for layer in layers]


def test_extras():
    rows = [row[0] for row in _rows("install.md") if len(row) == 3]
    assert set(rows) - {"extra", "---", "none"} == extras()


def test_tasks_and_data_sets():
    rows = {row[0]: row[1:] for row in _rows("evaluation.md")}
    for task in (catalog.ZERO_SHOT, catalog.RETRIEVAL, catalog.LINEAR_PROBE):
        own = [data_set for data_set in catalog.DATA_SETS if task in data_set.tasks]
        assert rows[task][0].split(", ") == [data_set.name for data_set in own]
    for task in catalog.TASKS:
        places = {place for data_set in catalog.DATA_SETS if task in data_set.tasks for place in data_set.paper}
        assert set(filter(None, rows[task][2].split(", "))) == places
    assert catalog.POPE in rows


def test_fields_of_a_result(workspace):
    (path,) = (workspace / "RESULTS").glob("*/*/*.json")
    written = json.loads(path.read_text()).keys() | {field.name for field in dataclasses.fields(results.Identity)}
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    table = text[text.index("| field |") :].partition("\n\n")[0]
    named = {field for line in table.splitlines()[2:] for field in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == written


def test_rows_of_the_paper():
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(CC\d+M/[\w-]+)`", text))
    assert {find_row(load_paper(), name).name for name in named} == set(load_paper())


# the drawing


def test_drawing_has_its_own_ground_in_light_and_dark():
    """A transparent drawing would be unreadable where the page's colours and the system's differ."""
    svg = (DOCS / "design.svg").read_text(encoding="utf-8")
    assert '<rect class="page" width="1000" height="600"' in svg
    light, dark = svg.split("@media (prefers-color-scheme: dark)")
    for styled in re.findall(r"^    \.?(page|band|host|ours|text|small|way|tip) ", light, re.M):
        assert re.search(rf"^      \.?{styled} ", dark, re.M), styled
