# Python 3.11+, pip and make are all a machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test fast chaos walk gpu lint format clean

demo: $(VENV)/.demo  ## install, then train, score and report a folded recogniser
	$(BIN)/foldray run quickstart

test: $(VENV)/.test  ## every test but the walk and the GPU's; those with Ray by files, two at once
	$(BIN)/python -m pytest -n 2 -m "not ray and not gpu"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "ray and not gpu and not walk"

fast: $(VENV)/.test  ## the tests without Ray and without the contract suite
	$(BIN)/python -m pytest -n 2 -m "not ray and not contract and not gpu"

chaos: $(VENV)/.test  ## kills and faults in a run, compared with a quiet one; `python -m tests.support.chaos` kills twenty times
	$(BIN)/python -m pytest -m chaos

walk: $(VENV)/.test  ## from `ray up` to `ray down` on namespace hosts; needs root, iproute2, sshd and rsync
	$(BIN)/python -m pytest -m walk

gpu: $(VENV)/.test  ## what needs a GPU, ten minutes at most; one line where there is none
	@if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; \
	then timeout --signal=INT --kill-after=60 600 $(BIN)/python -m pytest -m gpu -rP; \
	else echo "make gpu: skipped, torch finds no GPU on this machine"; fi

lint: $(VENV)/.dev  ## style, types, and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
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
