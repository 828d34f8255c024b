"""The start-up hook. Where its mechanics are meant, a stand-in open_clip keeps the tests fast."""

import subprocess
import sys

import pytest
from support.common import REPOSITORY, run_python

SOURCE = REPOSITORY / "src"


@pytest.fixture
def stand_ins(tmp_path):
    """A folder with an open_clip and a diffclip_openclip that say when they are imported."""
    folder = tmp_path / "stand_ins"
    (folder / "open_clip").mkdir(parents=True)
    (folder / "open_clip" / "__init__.py").write_text("print('host')\nfrom open_clip import factory\n")
    (folder / "open_clip" / "factory.py").write_text("value = 1\n")
    (folder / "diffclip_openclip.py").write_text("import open_clip\nassert open_clip.factory.value\nprint('plugin')\n")
    return folder


def _run(code, stand_ins, tmp_path, **extra):
    return run_python(code, tmp_path, PYTHONPATH=str(stand_ins), **extra)


@pytest.mark.parametrize(
    "code",
    [
        "import open_clip",
        "import open_clip.factory",
        "from open_clip.factory import value",
        "import importlib.util; importlib.util.find_spec('open_clip'); import open_clip",
        "import open_clip, open_clip.factory; import diffclip_openclip",
        "import diffclip_openclip",
        "import threading\n"
        "threads = [threading.Thread(target=__import__, args=('open_clip',)) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]",
    ],
)
def test_any_way_of_importing_the_host_registers_once(code, stand_ins, tmp_path):
    assert _run(code, stand_ins, tmp_path) == "host\nplugin\n"


def test_nothing_happens_without_the_host(stand_ins, tmp_path):
    assert _run("import json, sys; print('torch' in sys.modules)", stand_ins, tmp_path) == "False\n"


def test_switch_off(stand_ins, tmp_path):
    code = "import open_clip, diffclip_openclip"
    assert _run(code, stand_ins, tmp_path, DIFFCLIP_OPENCLIP_AUTOLOAD="0") == "host\nplugin\n"
    code = (
        "import importlib, os, sys\nimport diffclip_openclip_autoload as hook\n"
        "for value in ('0', 'false', 'No', ' OFF ', '1', 'true', ''):\n"
        "    os.environ[hook.SWITCH] = value\n"
        "    print(hook.find_spec('open_clip') is None, end=' ')"
    )
    assert _run(code, stand_ins, tmp_path) == "True True True True False False False "


def test_the_loader_can_be_copied(stand_ins, tmp_path):
    code = (
        "import copy, pickle, diffclip_openclip_autoload as hook\nloader = hook.find_spec('open_clip').loader\n"
        "for each in copy.copy(loader), copy.deepcopy(loader), pickle.loads(pickle.dumps(loader)):\n"
        "    print(type(each).__name__, each.path == loader.path)\n"
        "try:\n    loader.missing\nexcept AttributeError as error:\n    print(error)"
    )
    *copies, error = _run(code, stand_ins, tmp_path).splitlines()
    assert copies == ["_HostLoader True"] * 3
    assert error == "'SourceFileLoader' object has no attribute 'missing'"


def test_the_host_keeps_its_own_loader(stand_ins, tmp_path):
    code = (
        "import sys, open_clip, importlib, importlib.resources as resources\n"
        "print(type(open_clip.__loader__).__name__, type(open_clip.__spec__.loader).__name__)\n"
        "print(any(hasattr(finder, 'armed_by') for finder in sys.meta_path))\n"
        "print(resources.files('open_clip').joinpath('factory.py').is_file())\n"
        "importlib.reload(open_clip)"
    )
    lines = _run(code, stand_ins, tmp_path).splitlines()
    assert lines == ["host", "plugin", "SourceFileLoader SourceFileLoader", "False", "True", "host"]


@pytest.mark.parametrize("failure", ["raise RuntimeError('half installed')", "import a_missing_dependency", "1 +"])
def test_a_broken_plugin_never_breaks_the_host(failure, stand_ins, tmp_path):
    (stand_ins / "diffclip_openclip.py").write_text(failure)
    output = _run("import open_clip; print(open_clip.factory.value)", stand_ins, tmp_path)
    assert output.endswith("host\n1\n")
    assert "RuntimeWarning: diffclip_openclip could not register its models" in output
    assert "DIFFCLIP_OPENCLIP_AUTOLOAD=0" in output


@pytest.mark.parametrize("failure", ["raise RuntimeError('half installed')", "raise SystemExit(3)"])
def test_a_broken_plugin_ends_no_program_that_makes_warnings_errors(failure, stand_ins, tmp_path):
    (stand_ins / "diffclip_openclip.py").write_text(failure)
    output = _run("import open_clip; print(open_clip.factory.value)", stand_ins, tmp_path, PYTHONWARNINGS="error")
    assert "could not register its models with open_clip" in output
    assert output.endswith("1\n")


def test_a_fork_within_the_plugin_may_exit(stand_ins, tmp_path):
    """It must not go on as a second copy of the program."""
    (stand_ins / "diffclip_openclip.py").write_text(
        "import os, sys\nchild = os.fork()\nif not child:\n    sys.exit(7)\nprint(os.waitpid(child, 0)[1] >> 8)\n"
    )
    output = _run("import open_clip; print('done')", stand_ins, tmp_path)
    assert output.endswith("7\ndone\n")
    assert output.count("done") == 1


def test_an_error_of_the_host_stays_its_own(stand_ins, tmp_path):
    (stand_ins / "open_clip" / "__init__.py").write_text("raise ImportError('torch is too old')")
    code = "try:\n import open_clip\nexcept ImportError as error:\n print(error)"
    assert _run(code, stand_ins, tmp_path) == "torch is too old\n"


PTH_LINE = (SOURCE / "diffclip_openclip_autoload.pth").read_text().strip()
ARMED = f"{PTH_LINE}\n{PTH_LINE}"  # as site does it, twice in a venv of 3.11


def _bare(code, *path):
    """Run without site-packages, so without start-up files and without open_clip."""
    code = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n{code}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.splitlines()


def test_the_start_up_file_arms_once(stand_ins):
    code = f"{ARMED}\nours = lambda: sum(hasattr(f, 'armed_by') for f in sys.meta_path)\nprint(ours())\n"
    assert _bare(f"{code}import open_clip; print(ours())", stand_ins, SOURCE) == ["1", "host", "plugin", "0"]


def test_missing_host_is_the_usual_error():
    code = f"{ARMED}\ntry:\n import open_clip\nexcept ModuleNotFoundError as error:\n print(error.name)"
    assert _bare(code, SOURCE) == ["open_clip"]


def test_half_uninstalled_hook_never_breaks_the_host(stand_ins):
    assert _bare(f"{PTH_LINE}\nimport open_clip", stand_ins) == ["host"]


def test_start_up_imports_nothing():
    code = f"{PTH_LINE}\nimport json\nprint('diffclip_openclip_autoload' in sys.modules)"
    assert _bare(code, SOURCE) == ["False"]


def test_the_start_up_file_has_the_form_that_site_reads():
    assert PTH_LINE.startswith("import ")
    assert "\n" not in PTH_LINE


def test_real_host_and_trainer_modules(tmp_path):
    """Submodule first, then the trainer's main: the two imports that skip ``import open_clip``."""
    code = (
        "import open_clip.factory\nassert 'DiffCLIP-B-16' in open_clip.list_models()\n"
        "from open_clip_train.main import main\nprint('ok')"
    )
    assert run_python(code, tmp_path).endswith("ok\n")
