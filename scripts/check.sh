#!/bin/bash
# Everything that checks the project, after scripts/setup.sh test. Each check
# runs whatever the others say; the last line counts them.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
export KVMGDB_REQUIRE=${KVMGDB_REQUIRE:-}

passed=0
failed=()
check() {
    local name=$1
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    if "$@" </dev/null; then
        passed=$((passed + 1))
    else
        failed+=("$name")
    fi
}

clang_format() {
    git ls-files -z '*.c' '*.h' | xargs -0 clang-format --dry-run -Werror
}

# Real guests share their host with all else that runs there. A few tests that
# fail are run again by themselves, and are named whatever comes of it; one that
# fails again has failed, and many are no accident.
most_again=3
tests() {
    local status=0 count
    "$bin/python" -m pytest "$@" || status=$?
    [ $status -eq 1 ] || return $status
    count=$("$bin/python" -c 'import json, sys; print(len(json.load(sys.stdin)))' \
        <.pytest_cache/v/cache/lastfailed) || return 1
    [ "$count" -le $most_again ] || return 1
    printf '\n== unsteady or wrong, once more by themselves: %s\n' "$count"
    "$bin/python" -m pytest --last-failed --last-failed-no-failures none "$@"
}

check "ruff" "$bin/ruff" check .
check "ruff format" "$bin/ruff" format --check .
check "mypy" "$bin/mypy" --strict
check "clang-format" clang_format
for part in native native/agent native/vmm; do
    if grep -q '^test:' "$part/Makefile" 2>/dev/null; then
        check "C tests of $part" make -s -C "$part" test
    fi
done
check "pytest" tests "$@"

echo
[ ${#failed[@]} -eq 0 ] || printf 'failed: %s\n' "${failed[@]}"
echo "$passed passed, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ]
