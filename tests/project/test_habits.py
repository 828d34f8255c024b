"""What contributors and the index meet is in order: workflows, issue forms, citation, and the documentation site."""

import itertools
import re
import tomllib

import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from mkdocs.commands.build import build
from mkdocs.config import load_config
from support.common import REPOSITORY
from support.markdown import check

import mkdocs_hooks

GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", [GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "request")]),
        ("github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
        ("citation-file-format", [REPOSITORY / "CITATION.cff"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_follow_their_schema(schema, files):
    assert files
    check_jsonschema(["--quiet", "--builtin-schema", f"vendor.{schema}", *map(str, files)], standalone_mode=False)


def _jobs():
    return itertools.chain.from_iterable(yaml.safe_load(file.read_text())["jobs"].values() for file in WORKFLOWS)


def test_workflows_run_targets_that_exist():
    lines = [line.split() for job in _jobs() for step in job["steps"] for line in step.get("run", "").splitlines()]
    targets = [words for words in lines if words and words[0] == "make"]
    assert {"lint", "test", "test-lowest", "test-host", "site", "dist"} <= {word for words in targets for word in words}
    for words in targets:
        check([word.replace("${{", "").replace("}}", "") for word in words])


def test_every_python_that_is_named_is_tested():
    prefix = "Programming Language :: Python :: "
    named = re.findall(rf"^{prefix}(3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.M)
    [tested] = [job["strategy"]["matrix"]["python-version"] for job in _jobs() if "strategy" in job]
    assert tested == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_one_place_is_named_everywhere():
    """Of the repository, so that naming its owner is one replacement."""
    base = PROJECT["urls"]["Repository"]
    for file in ("pyproject.toml", "mkdocs.yml", ".github/ISSUE_TEMPLATE/config.yml"):
        links = re.findall(r"https://github\.com/[\w-]+/diffclip\w*", (REPOSITORY / file).read_text(encoding="utf-8"))
        assert links, file
        assert set(links) == {base}, file


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_every_page(tmp_path):
    config = load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    build(config)
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")} - {"index"}
    assert pages <= {path.name for path in (tmp_path / "site").iterdir()}
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "Return the attention maps that a model makes of images" in api
    assert not re.search(":(class|func|meth|data|mod):<code>", api)
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert f'href="{PROJECT["urls"]["Repository"]}/blob/main/README.md"' in index


def test_links_out_of_the_pages_lead_into_the_repository():
    config = {"repo_url": "https://example.org/repository"}
    page = "[a](../src/a.py), [b](models.md#x), [c](https://example.org/c)"
    expected = "[a](https://example.org/repository/blob/main/src/a.py), [b](models.md#x), [c](https://example.org/c)"
    assert mkdocs_hooks.on_page_markdown(page, config=config) == expected
