# make demo   a map of a sample scene in demo_output/, from a bare checkout
# make test   every test, in an environment of its own
# make lint   ruff and mypy
# make fast   the tests that take seconds
# make bench  the benchmarks, one after another, but bench_peers.py, which takes hours
# make faults kills, full disks, damage: what runs do about them, in half an hour
# make clean  removes what the others made

# The first Python that is new enough; `make PYTHON=...` picks another.
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$name" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin

DEMO_SCENE ?= sample_tiles/town_river.tif
DEMO_CLASSES ?= sample_tiles/classes.txt
DEMO_OUT ?= demo_output

# Each needs up to 2 GB; tests of a file share what they prepare.
TWO_AT_A_TIME := -n 2 --dist loadfile

.PHONY: demo test lint fast bench faults clean

demo: $(VENV)/.installed
	$(BIN)/geoseg segment $(DEMO_SCENE) --classes $(DEMO_CLASSES) --model geoseg-tiny \
		--out $(DEMO_OUT) --overwrite
	@echo
	@echo "The map of $(DEMO_SCENE):"
	@find "$(DEMO_OUT)" -type f | sort | sed 's/^/  /'

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(TWO_AT_A_TIME)

fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) -m "not slow"

# cli/ is imported as geoseg_cli, which mypy only believes when it sees a folder of that name.
lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	@mkdir -p build/names && ln -sfn "$(CURDIR)/cli" build/names/geoseg_cli
	MYPYPATH=build/names $(BIN)/python -m mypy -p geoseg -p geoseg_cli

bench: $(VENV)/.installed-test
	@set -e; for script in $(filter-out %/bench_peers.py,$(wildcard benchmarks/bench_*.py)); do \
		echo "== $$script"; PYTHONPATH=. $(BIN)/python "$$script"; done

faults: $(VENV)/.installed-test
	$(BIN)/python -m tools.faults

clean:
	rm -rf .venv demo_output build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps keep the second run from installing again.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e ".[test]"
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "geoseg needs Python 3.11 or newer; none was found on PATH" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
