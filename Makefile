# Everything from a bare clone with cargo, gcc, python3 (3.10 or later) and pip: `make test`, `make layertest`.
# Logs of the steps are in build/log. Repeated runs only do what changed.

PYTHON ?= python3
VENV := .venv
VENV_NEW := .venv-torch-new
PY := $(VENV)/bin/python
STEP := tests/tools/step
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

OP := vllm_plugin/nvfp4_moe/nvfp4_moe_torch.so
CPP_FILES := $(wildcard cpp/*.cpp cpp/*.h)
RUST_FILES := Cargo.toml Cargo.lock include/nvfp4_moe.h $(shell find rust -name '*.rs')

.PHONY: help setup build layertest test test-rust test-abi test-python test-torch-new wheel fmt lint fuzz \
        gpu-test gpu-bench gpu-serve clean

help:
	@echo "make build      the torch op, beside the Python package in vllm_plugin/"
	@echo "make layertest  reference against runner: NVIDIA ModelOpt's checkpoint, DeepSeek-V4's, generated layers"
	@echo "make test       everything: lint, Rust, C ABI, Python, the newest torch (test-rust, test-abi, ... for one)"
	@echo "make fmt lint   rustfmt, clippy, clang-format, ruff"
	@echo "make fuzz       the fuzz targets, FUZZ_SECONDS each (needs a nightly compiler and cargo-fuzz)"
	@echo "make gpu-test gpu-bench gpu-serve    on a machine with a GPU"

# ---- Tools -----------------------------------------------------------------------------------------------------------

setup: $(VENV)/.installed

$(VENV)/.installed: tests/requirements.txt
	@$(STEP) "[setup] pip: torch 2.11 and tools (2.4 GB)" sh -c '$(PYTHON) -m venv $(VENV) && $(PY) $(PIP_INSTALL) -r $<'
	@touch $@

$(VENV_NEW)/.installed: tests/requirements-torch-new.txt
	@$(STEP) "[setup] pip: newest torch (2.4 GB)" \
	  sh -c '$(PYTHON) -m venv $(VENV_NEW) && $(VENV_NEW)/bin/python $(PIP_INSTALL) -r $<'
	@touch $@

# ---- Build -----------------------------------------------------------------------------------------------------------

build: setup
	@$(STEP) "[build] cargo and the torch op" sh -c 'cmake -S . -B build/op -G Ninja \
	  -DPython_EXECUTABLE=$(CURDIR)/$(PY) && cmake --build build/op && cmake --install build/op --prefix vllm_plugin'

# The wheel as users build it: `pip wheel .` under build isolation.
wheel: build/wheel.stamp
build/wheel.stamp: $(RUST_FILES) $(CPP_FILES) $(wildcard vllm_plugin/nvfp4_moe/*.py) CMakeLists.txt pyproject.toml | setup
	@$(STEP) "[build] pip wheel ." sh -c 'rm -rf dist && $(PY) -m pip wheel --quiet --no-deps -w dist .'
	@touch $@

# ---- Tests -----------------------------------------------------------------------------------------------------------

test: lint test-rust test-abi test-python test-torch-new
	@echo "make test: PASS"

test-rust: setup
	@$(STEP) "[test 2/5] cargo test" cargo test --release --locked

test-abi: build
	@$(STEP) "[test 3/5] the C ABI: golden files, C and C++ programs, CuTe's layout" $(PY) tests/abi/run.py

test-python: build
	@$(STEP) "[test 4/5] pytest, torch 2.11" $(PY) -m pytest -q

# The wheel, installed: the tests must not see the development build.
test-torch-new: $(VENV_NEW)/.installed wheel
	@$(STEP) "[test 5/5] pytest of the op, newest torch, from the wheel" sh -c '\
	  $(VENV_NEW)/bin/python $(PIP_INSTALL) --no-deps --force-reinstall dist/*.whl && \
	  $(VENV_NEW)/bin/python -m pytest -q -o pythonpath=tests tests/test_op.py tests/test_op_compile.py'

# ---- Reference against runner, on real checkpoints -------------------------------------------------------------------

MODELOPT_CHECKPOINT := .cache/qwen3-modelopt
DEEPSEEK_CHECKPOINT := .cache/deepseek-v4-flash
LAYERTEST := $(PY) tests/layertest.py

layertest: build $(MODELOPT_CHECKPOINT)/.made $(DEEPSEEK_CHECKPOINT)/.made
	$(LAYERTEST) --checkpoint $(MODELOPT_CHECKPOINT) --layer 1
	$(LAYERTEST) --checkpoint $(DEEPSEEK_CHECKPOINT) --layer 0
	$(LAYERTEST) --checkpoint $(DEEPSEEK_CHECKPOINT) --layer 0 --ep-rank 1 --ep-size 4 --tokens 8,64
	$(LAYERTEST) --shape tiny
	$(LAYERTEST) --shape flash
	$(LAYERTEST) --shape pro
	@echo "make layertest: PASS"

$(VENV)/.installed-modelopt: tests/requirements-modelopt.txt $(VENV)/.installed
	@$(STEP) "[layertest] pip: NVIDIA ModelOpt" $(PY) $(PIP_INSTALL) -r tests/requirements.txt -r $<
	@touch $@

$(MODELOPT_CHECKPOINT)/.made: tests/checkpoints/make_modelopt.py | $(VENV)/.installed-modelopt
	@$(STEP) "[layertest] NVIDIA ModelOpt quantises a Qwen3-MoE" \
	  sh -c 'rm -rf $(@D) && $(PY) $< $(@D)'
	@touch $@

# DeepSeek-V4 Flash's naming and shapes, with 8 of its 256 experts.
$(DEEPSEEK_CHECKPOINT)/.made: tests/checkpoints/make_checkpoint.py | $(VENV)/.installed
	@$(STEP) "[layertest] a checkpoint as DeepSeek-V4 Flash's" sh -c 'rm -rf $(@D) && $(PY) $< $(@D) \
	  --naming deepseek --format deepseek-v4-mixed --hidden 4096 --intermediate 2048 --experts 8 --layers 1 --top-k 6 \
	  --keep-unquantized'
	@touch $@

# ---- Speed and fuzzing -----------------------------------------------------------------------------------------------

FUZZ_SECONDS ?= 300
fuzz:
	@for target in $(basename $(notdir $(wildcard tests/fuzz/targets/*.rs))); do \
	  cargo +nightly fuzz run --fuzz-dir tests/fuzz $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; done

gpu-test gpu-bench gpu-serve:
	@echo "make $@: there is no CUDA backend in this build yet; it needs a machine with an NVIDIA GPU."; exit 2

# ---- Form ------------------------------------------------------------------------------------------------------------

lint: setup
	@$(STEP) "[test 1/5] lint: rustfmt" cargo fmt --check
	@$(STEP) "[test 1/5] lint: clippy" cargo clippy --release --locked --all-targets -- -D warnings
	@$(STEP) "[test 1/5] lint: clang-format" clang-format --dry-run --Werror $(CPP_FILES)
	@$(STEP) "[test 1/5] lint: ruff" sh -c 'ruff check && ruff format --check'

fmt: setup
	cargo fmt
	clang-format -i $(CPP_FILES)
	ruff check --fix
	ruff format

clean:
	rm -rf target build dist $(OP)
