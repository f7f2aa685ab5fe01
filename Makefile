# `make demo` and `make test` are all that a newcomer needs; each creates .venv by itself.
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEEPSPARSE := .venv-deepsparse

# One BLAS thread per test worker: two workers with two threads each only fight over two cores.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
WORKERS ?= auto

.PHONY: demo test test-slow test-gpu test-lowest lint bench deepsparse clean

demo: $(STAMP)
	$(RUN) -m recipes demo

test: $(STAMP)
	$(TEST_ENV) $(RUN) -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(STAMP)
	$(TEST_ENV) $(RUN) -m pytest -m slow

test-gpu: $(STAMP)
	HF_HUB_OFFLINE=1 CUBLAS_WORKSPACE_CONFIG=:4096:8 $(RUN) -m pytest -m gpu -n $(WORKERS) --dist worksteal

# The oldest versions that pyproject.toml allows; needs uv. They warn of each other, which is not ours to mend, and the
# newest pyarrow, which others depend on, refuses the oldest numpy.
test-lowest:
	uv venv --quiet --allow-existing --python $(PYTHON) $(LOWEST)
	uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]' 'pyarrow<22'
	$(TEST_ENV) $(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal \
	    -W default::DeprecationWarning -W default::FutureWarning -W "default:TypedStorage is deprecated:UserWarning"

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

bench: $(STAMP)
	$(RUN) -m benchmarks.surgery

# The engine that the paper used, for `python -m benchmarks.inference` alone: proprietary, for evaluation only, end of life.
deepsparse:
	@if command -v uv >/dev/null 2>&1; then \
	    uv venv --quiet --allow-existing --python 3.11 $(DEEPSPARSE) && \
	    uv pip install --quiet --python $(DEEPSPARSE)/bin/python -r benchmarks/inference/deepsparse.txt; \
	else \
	    python=$$(command -v python3.11 || command -v python3.10) || \
	        { echo "DeepSparse needs Python 3.10 or 3.11; install one of them, or uv, which fetches it" >&2; exit 1; }; \
	    $$python -m venv $(DEEPSPARSE) && \
	    $(DEEPSPARSE)/bin/python -m pip install --quiet -r benchmarks/inference/deepsparse.txt; \
	fi
	@NM_DISABLE_ANALYTICS=True $(DEEPSPARSE)/bin/python -c "import deepsparse; print('DeepSparse', deepsparse.__version__)"

$(STAMP): pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	    uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	    uv pip install --python $(RUN) --editable '.[dev]'; \
	else \
	    $(PYTHON) -m venv $(VENV) && \
	    $(RUN) -m pip install --quiet --editable '.[dev]'; \
	fi
	@touch $(STAMP)

clean:
	rm -rf $(VENV) $(LOWEST) $(DEEPSPARSE) build dist *.egg-info runs
