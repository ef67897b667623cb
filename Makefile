# `make repro` runs the pipeline, `make test` runs every check, `make bench` measures. All set up what
# they need in .venv. `make bench BENCH='--scale 0.01 --pairs 1'` tries the benchmarks in seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SANITIZED := $(CURDIR)/build/sanitize

.PHONY: install repro test lint types layers tests sanitize bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt dvc_integrity/_lanes.c dvc_integrity/lanes_kernel.h
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

repro: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro

test: lint types layers tests sanitize

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

tests: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest --numprocesses auto --dist worksteal
	DVC_INTEGRITY_KERNEL=hashlib $(BIN)/pytest --numprocesses auto --dist worksteal --quiet \
	  tests/test_blocks.py tests/test_hashing.py tests/test_reader.py tests/test_stores.py tests/test_verify.py

# The C code under AddressSanitizer (with its leak check) and UndefinedBehaviorSanitizer: a copy of the
# package with an instrumented kernel, on every kernel that the processor runs. tests/sanitizers.py
# holds that no other module is tested.
sanitize: LIBASAN = $(shell $(CC) -print-file-name=libasan.so)
sanitize: install
	@test -e "$(LIBASAN)" || { echo "$(CC) has no libasan: install it, or name a compiler with CC=" >&2; exit 1; }
	rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)
	cp -R dvc_integrity $(SANITIZED)
	rm -f $(SANITIZED)/dvc_integrity/*.so
	$(CC) -shared -fPIC -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
	  -fno-sanitize-recover=all -Wall -Wextra -Werror dvc_integrity/_lanes.c \
	  -I"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
	  -o $(SANITIZED)/dvc_integrity/_lanes.abi3.so
	cd $(SANITIZED) && DVC_INTEGRITY_SANITIZED=$(SANITIZED) PYTHONPATH=$(SANITIZED):$(CURDIR)/tests \
	  LD_PRELOAD=$(LIBASAN) PYTHONMALLOC=malloc UBSAN_OPTIONS=print_stacktrace=1 \
	  ASAN_OPTIONS=detect_leaks=1:leak_check_at_exit=0 \
	  $(CURDIR)/$(BIN)/pytest --rootdir $(CURDIR) --config-file $(CURDIR)/pyproject.toml \
	  --capture sys -p sanitizers \
	  $(CURDIR)/tests/test_lanes.py $(CURDIR)/tests/test_hashing.py

# Compiled first, as pip compiles what it installs: start-up is measured as users have it.
bench: install
	$(BIN)/python -m compileall -q dvc_integrity
	$(BIN)/python benchmarks $(BENCH)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
