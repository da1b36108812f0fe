# Two commands do everything on a fresh machine with Python 3.11 or 3.12: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo

# The C++ kernels. `make test` fails without them; COMPRESS_REQUIRE_KERNELS=0 lets it run in pure Python.
CPU := compress/kernels/cpu
LIBRARY := $(CPU)/libcompress_kernels.so
KERNELS := $(VENV)/.kernels
KERNEL_SOURCES := $(CPU)/CMakeLists.txt $(shell find $(CPU) -name '*.cpp' -o -name '*.h' -o -name '*.inc')
CMAKE = $(BIN)/cmake -S $(CPU) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
# What a failed build means: $(call unless_required,what is missing). The words are those of kernels/cpu_library.py.
unless_required = case "$$(printf %s "$$COMPRESS_REQUIRE_KERNELS" | tr A-Z a-z)" in \
  ''|0|n|no|off|f|false) echo "*** $(1)";; *) exit 1;; esac

.PHONY: demo reports test lint kernels kernels-test kernels-arm clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "compress needs Python 3.11 or 3.12; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch setuptools \
	  scikit-build-core cmake ninja
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation \
	  --config-settings=wheel.cmake=false --editable '.[dev,metrics]'
	touch $(STAMP)

# The library, beside its sources, where this editable installation looks for it.
kernels: $(KERNELS)

$(KERNELS): $(STAMP) $(KERNEL_SOURCES)
	rm -f $(LIBRARY) $(KERNELS)
	if $(CMAKE) -B build/kernels -DCOMPRESS_IN_SOURCE=ON && $(BIN)/cmake --build build/kernels; then touch $(KERNELS); \
	else rm -f $(LIBRARY); $(call unless_required,no C++ kernels on this machine: low-bit layers run in PyTorch and are slower); fi

# The kernels' own tests, optimized and then under the address and undefined-behaviour sanitizers.
kernels-test: $(KERNELS)
	test -e $(LIBRARY) || { $(call unless_required,no C++ tests without a C++ compiler); exit 0; }; \
	for build in optimized:OFF sanitized:ON; do \
	  folder=build/kernels-$${build%:*}; \
	  $(CMAKE) -B $$folder -DCOMPRESS_TESTS=ON -DCOMPRESS_SANITIZE=$${build#*:} && $(BIN)/cmake --build $$folder && \
	    $(BIN)/ctest --test-dir $$folder --output-on-failure || exit 1; \
	done

# The tiles' test compiled for 64-bit ARM and run under emulation, where the tools for that are installed. ARM_TESTS=. runs
# those of the operators too, which takes many minutes.
ARM_TESTS ?= ^test_tile$$
kernels-arm: $(STAMP)
	if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then \
	  $(CMAKE) -B build/kernels-arm -DCOMPRESS_TESTS=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	    '-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu' && \
	  $(BIN)/cmake --build build/kernels-arm && $(BIN)/ctest --test-dir build/kernels-arm --output-on-failure -R '$(ARM_TESTS)'; \
	else echo "*** kernels-arm skipped: it needs aarch64-linux-gnu-g++ and qemu-aarch64"; fi

# The main job, twice: the bundled model with 8-bit and with 4-bit weights, measured and compared.
demo: $(KERNELS)
	$(BIN)/compress run recipes/digits-dit-w8a8.yaml --fresh --output $(DEMO)/digits-dit-w8a8 --cache $(DEMO)/cache
	$(BIN)/compress run recipes/digits-dit-w4a8.yaml --fresh --output $(DEMO)/digits-dit-w4a8 --cache $(DEMO)/cache
	$(BIN)/compress compare $(DEMO)/digits-dit-w8a8 $(DEMO)/digits-dit-w4a8 --output $(DEMO)/comparison
	$(BIN)/compress bench $(DEMO)/digits-dit-w4a8 --no-memory --rounds 10

# Run the U-Net's recipes too, and copy all reports to where they are committed.
reports: demo
	for name in digits-unet-w8a8 digits-unet-w4a8; do \
	  $(BIN)/compress run recipes/$$name.yaml --fresh --output $(DEMO)/$$name --cache $(DEMO)/cache || exit 1; \
	done
	for name in digits-dit-w8a8 digits-dit-w4a8 digits-unet-w8a8 digits-unet-w4a8; do \
	  mkdir -p reports/$$name && cp $(DEMO)/$$name/report/report.json $(DEMO)/$$name/report/report.md reports/$$name/; \
	done
	cp $(DEMO)/comparison/comparison.md $(DEMO)/comparison/comparison.json reports/

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: export COMPRESS_REQUIRE_KERNELS ?= 1
test: lint kernels-test
	$(BIN)/pytest

clean:
	rm -rf $(VENV) runs build *.egg-info $(LIBRARY)
