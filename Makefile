# Two commands do everything: make run, make test. The plain lines are in README.md.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-pooled check bench screenshots clean

run: .venv/installed
	$(BIN)/streamlit run app.py

test: .venv/installed
	$(BIN)/python -m pytest

# What asks the database, once more through PgBouncer in transaction mode; a long file is shared by the workers.
test-pooled: .venv/installed
	MIVRA_TEST_POOLED=1 $(BIN)/python -m pytest --dist worksteal tests/integration/test_bot_process.py tests/integration/test_control.py \
		tests/integration/test_control_model.py tests/integration/test_control_rules.py tests/integration/test_figures.py \
		tests/integration/test_roles.py tests/integration/test_sample.py tests/integration/test_schema.py \
		tests/integration/test_trade_events.py

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m tests.bench

screenshots: .venv/installed
	$(BIN)/python -m tests.browser.screenshots

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
