# The two commands of the README, and what they are made of.

.PHONY: demo test setup clean

# Boots a stock kernel in QEMU and shows GDB debugging it.
demo:
	@scripts/setup.sh demo
	@.venv/bin/kvmgdb demo --batch

# The set-up, then everything that checks the project.
test: setup
	@scripts/check.sh

setup:
	@scripts/setup.sh test

# The server against QEMU's own GDB stub; asserts nothing.
bench: setup
	@.venv/bin/python -m tests.bench.bench_rsp

# Removes what was built here. The cache of kernels (~/.cache/kvmgdb) stays.
clean:
	rm -rf .venv build dist *.egg-info kvmgdb/*.so kvmgdb/profiler/web/lib .mypy_cache .ruff_cache .pytest_cache
	find kvmgdb tests scripts -name __pycache__ -prune -exec rm -rf {} +
	@for part in native native/agent native/vmm; do \
	  if [ -f $$part/Makefile ]; then $(MAKE) -s -C $$part clean || exit 1; fi; \
	done
