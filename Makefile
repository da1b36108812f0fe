# Two commands do everything on a fresh machine with Python 3.11 or 3.12: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo

.PHONY: demo reports test lint clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "compress needs Python 3.11 or 3.12; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,metrics]'
	touch $(STAMP)

# The main job, twice: the bundled model with 8-bit and with 4-bit weights, measured and compared.
demo: $(STAMP)
	$(BIN)/compress run recipes/digits-dit-w8a8.yaml --fresh --output $(DEMO)/digits-dit-w8a8 --cache $(DEMO)/cache
	$(BIN)/compress run recipes/digits-dit-w4a8.yaml --fresh --output $(DEMO)/digits-dit-w4a8 --cache $(DEMO)/cache
	$(BIN)/compress compare $(DEMO)/digits-dit-w8a8 $(DEMO)/digits-dit-w4a8 --output $(DEMO)/comparison

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

test: lint
	$(BIN)/pytest

clean:
	rm -rf $(VENV) runs build *.egg-info
