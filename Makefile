# Every target sets up .venv first (tools/setup_env.py), except clean and help.
# PYTHON=/path/to/python uses that environment unchanged and installs nothing.
# ARGS="..." gives more arguments to train_net.py or pytest.

NEW_ENOUGH := 'import sys; sys.exit(sys.version_info < (3, 10))'
CANDIDATES := python3 python3.13 python3.12 python3.11 python3.10 python

ifdef PYTHON
RUN := PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" "$(PYTHON)"
else
RUN := .venv/bin/python
endif

.PHONY: help setup train test matrix docs lint format clean torture

help:
	@echo 'make train            train and evaluate the quickstart (ARGS="--resume", ARGS="OUTPUT_DIR other", ...)'
	@echo 'make test             run linter, type checker and tests (ARGS="-k memory", ...)'
	@echo 'make torture          run the whole torture test: bad input, full disks, kills, 10 000 random batches'
	@echo 'make matrix           train every architecture for 50 iterations on drawn and on real data (slow)'
	@echo 'make docs             build the documentation in build/docs'
	@echo 'make lint             run ruff and mypy only'
	@echo 'make format           let ruff fix and format the code'
	@echo 'make setup            make the environment only'
	@echo 'make clean            remove .venv, builds and caches; output/ stays'
	@echo 'PYTHON=/path/to/python with any target: use this environment, install nothing'

test torture matrix: TESTS := --tests # applies to their prerequisite setup too

setup:
ifdef PYTHON
	@"$(PYTHON)" -c $(NEW_ENOUGH) 2>/dev/null || \
		{ echo 'error: PYTHON=$(PYTHON) is not a Python of version 3.10 or newer' >&2; exit 2; }
	@$(RUN) tools/setup_env.py --existing $(TESTS)
else
	@for python in $(CANDIDATES); do \
		if "$$python" -c $(NEW_ENOUGH) 2>/dev/null; then exec "$$python" tools/setup_env.py; fi; \
	done; \
	echo 'error: no Python 3.10 or newer found (tried $(CANDIDATES)): install one or name it with PYTHON=' >&2; \
	exit 2
endif

train: setup
	$(RUN) tools/train_net.py $(if $(filter --resume --eval-only,$(ARGS)),,--fresh) --config configs/quickstart/faster_rcnn_rambo.yaml $(ARGS)

test: lint
	$(RUN) -m pytest -q -ra $(ARGS)

torture: setup
	RAMBO_DET_TORTURE=whole RAMBO_DET_KILLS=10 \
		$(RUN) -m pytest -q -ra tests/torture tests/test_resume.py \
		tests/test_against_oracle.py tests/test_data_fuzz.py $(ARGS)

matrix: setup
	RAMBO_DET_MATRIX=50 $(RUN) -m pytest -q -ra tests/test_matrix.py $(ARGS)

docs: setup
	$(RUN) -m mkdocs build --strict --clean

lint: setup
	@for tool in 'ruff check' 'ruff format --check' mypy; do \
		if $(RUN) -c "import $${tool%% *}" 2>/dev/null; then \
			echo "$$tool"; $(RUN) -m $$tool || exit 1; \
		else \
			echo "SKIPPED $$tool: $${tool%% *} is not installed in $(PYTHON)"; \
		fi; \
	done

format: setup
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

clean:
	@if [ -f .venv/rambo_det.json ]; then rm -rf .venv; fi
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find rambo_det tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
