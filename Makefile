# make quickstart   train DiffCLIP-nano on the embedded emoji, evaluate it, draw its predictions (COMPARE=1: and the baseline)
# make test         the tests (minutes); make test-all: the slow ones too, and the numerical ones as on another CPU
# make test-lowest  the tests with the lowest versions that pyproject.toml admits, in an environment of their own
# make test-host HOST=PATH  the tests with a checkout of open_clip, in an environment of their own
# make fuzz         random and hostile inputs, other ones each time, for FUZZ_TIME (10 minutes) at most
# make gpu          tests and figures of a CUDA machine, in runs/gpu; stopped, the same command goes on
# make lint         ruff and mypy
# make site         the documentation as a site, into site/
# make dist         sdist and wheel, checked as an index does, into dist/
# Each makes the environment in $(VENV) first.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed
# the instructions of another CPU, so other roundings
OTHER_CPU = ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
# a process for each core, of one thread
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile

FUZZ_TIME ?= 10m
FUZZED = tests/weights/test_fuzz_weights.py tests/weights/test_fuzz_configs.py tests/cli/test_fuzz_commands.py \
	tests/weights/test_hostile_checkpoints.py tests/weights/test_foreign.py tests/test_files.py

.PHONY: quickstart test test-all test-lowest test-host fuzz gpu lint site dist clean

# an editable install holds a copy of the start-up file
$(INSTALLED): pyproject.toml hatch_build.py src/diffclip_openclip_autoload.pth
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -e '.[all,dev]'
	touch $@

quickstart: $(INSTALLED)
	$(RUN) examples/emoji/quickstart.py $(if $(COMPARE),--compare)

test: $(INSTALLED)
	$(PYTEST)

test-all: $(INSTALLED)
	$(PYTEST) -m 'slow or not slow'
	$(OTHER_CPU) $(PYTEST) tests/attention tests/towers tests/hosts tests/explain

test-lowest:
	test -x $(VENV)-lowest/bin/python || $(PYTHON) -m venv $(VENV)-lowest
	$(PYTHON) tests/lowest.py pyproject.toml > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet -c $(VENV)-lowest/constraints.txt -e '.[all,dev]'
	$(MAKE) test VENV=$(VENV)-lowest INSTALLED=

test-host:
	test -f "$(HOST)/pyproject.toml" || { echo "make test-host HOST=PATH, where PATH is a checkout of open_clip"; exit 2; }
	test -x $(VENV)-host/bin/python || $(PYTHON) -m venv $(VENV)-host
	$(VENV)-host/bin/python -m pip install --quiet -e '.[all,dev]'
	$(VENV)-host/bin/python -m pip install --quiet $(HOST)
	$(MAKE) test VENV=$(VENV)-host INSTALLED=

# ends at the first failure, so that running out of time is none; interrupted, pytest says what it has tried
fuzz: $(INSTALLED)
	DIFFCLIP_FUZZ=20 OMP_NUM_THREADS=1 timeout -s INT -k 30s $(FUZZ_TIME) $(RUN) -m pytest -x -n auto -m 'slow or not slow' $(FUZZED) \
		2>&1 | tee $(VENV)/fuzz.log
	! grep -E '^(FAILED|ERROR) ' $(VENV)/fuzz.log  # the time may be over before pytest ends by itself

# status 3: the time of one call is over, and cells are left
gpu: $(INSTALLED)
	while $(RUN) benchmarks/gpu.py; s=$$?; test $$s -eq 3; do :; done; exit $$s

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

site: $(INSTALLED)
	$(RUN) -m mkdocs build --strict

dist: $(INSTALLED)
	rm -rf dist
	$(RUN) -m build
	$(RUN) -m twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist runs site
