# Python 3.11+, pip and make are all a machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test fast soak walk gpu lint format clean

demo: $(VENV)/.demo  ## install, then train, score and report a folded recogniser
	$(BIN)/foldray run quickstart

# Tests run in two processes. Those with Ray come first, a file in one process (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test: $(VENV)/.test  ## a user's main paths: real Ray, real S3, a browser; twelve minutes on two cores
	$(PYTEST) -m "$(if $(SOAK),,not soak and )not walk and not gpu"

fast: $(VENV)/.test  ## without Ray, under two minutes on two cores
	$(PYTEST) -m "not main and not soak and not walk and not gpu"

soak: $(VENV)/.test  ## kills, faults, several hosts, searches, every family; `python -m tests.support.chaos` kills more often
	$(PYTEST) -m "soak and not walk and not gpu"

walk: $(VENV)/.test  ## from `ray up` to `ray down` on namespace hosts; needs root, iproute2, sshd and rsync
	$(BIN)/python -m pytest -m walk

gpu: $(VENV)/.test  ## what needs a GPU, ten minutes at most; one line where there is none
	@if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; \
	then timeout --signal=INT --kill-after=60 600 $(BIN)/python -m pytest -m gpu -v -rP; \
	else echo "make gpu: skipped, torch finds no GPU on this machine"; fi

lint: $(VENV)/.dev  ## style, types, and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff check --quiet --preview --select PLW1514 foldray pipelines  # text files are UTF-8 in every locale
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# dev brings test along. pip would compile on one core, two minutes long; and where PYTHONDONTWRITEBYTECODE is set, what
# is not compiled here is compiled by every process again. Some packages ship files for other Pythons: hence "-".
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$*]"
	-$(BIN)/python -m compileall -qq -j 0 -x 'site-packages/.*/(tests?/|py312)' $(VENV)/lib
	touch $@ $(if $(filter dev,$*),$(VENV)/.test)

clean:
	rm -rf $(VENV) foldray-store
