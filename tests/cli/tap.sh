# tap.sh - helpers of the shell tests: they count, and print TAP lines for scripts/run-tests.
# shellcheck shell=bash
set -u
HEDDLE=${HEDDLE:-$(cd "$(dirname "$0")/../.." && pwd)/build/heddle}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n_tests=0
n_failed=0

# result NAME CODE: one TAP line; on failure what the program said.
result() {
    n_tests=$((n_tests + 1))
    if [ "$2" = 0 ]; then
        echo "ok $n_tests - $1"
        return
    fi
    n_failed=$((n_failed + 1))
    echo "not ok $n_tests - $1"
    sed 's/^/#   out: /' "$work/out" | head -n 5
    sed 's/^/#   err: /' "$work/err" | head -n 5
    echo "#   exit code: $code"
}
skip() {
    n_tests=$((n_tests + 1))
    echo "ok $n_tests - $1 # SKIP $2"
}
# heddle ARGS...: runs it; afterwards $code, $work/out, $work/err.
heddle() {
    timeout 300 "$HEDDLE" "$@" >"$work/out" 2>"$work/err" </dev/null
    code=$?
}
# refused NAME PATTERN ARGS...: bad input: exit code 2, nothing on stdout, and the last line of
# stderr a sentence that begins with "heddle: " and matches.
refused() {
    local name=$1 pattern=$2
    shift 2
    heddle "$@"
    [ "$code" = 2 ] && [ ! -s "$work/out" ] && tail -n 1 "$work/err" | grep -qE "^heddle: .*$pattern"
    result "$name" $?
}
# says NAME PATTERN ARGS...: exit code 0 and a line of stdout that matches.
says() {
    local name=$1 pattern=$2
    shift 2
    heddle "$@"
    [ "$code" = 0 ] && grep -qE -- "$pattern" "$work/out"
    result "$name" $?
}
finish() {
    echo "1..$n_tests"
    [ "$n_failed" = 0 ]
    exit
}
