#!/bin/sh
# Plants each bug of this folder in a copy of the checkout and requires that a quick test finds
# it: unit tests, the simulator's part of the packet layer, the golden cases. No privilege needed.
#
#   tests/planted/run.sh [PATCH…]
#
# The copy is below $TMPDIR; CARGO_TARGET_DIR, if set, is used as it is.
set -eu
checkout=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/planted.XXXXXX")
trap 'rm -rf "$work"' EXIT
export RUST_BACKTRACE=0
mkdir "$work/src"
(cd "$checkout" && git ls-files -z | xargs -0 tar cf - --no-recursion) | tar xf - -C "$work/src"
cd "$work/src"
: "${CARGO_TARGET_DIR:=$work/target}"
export CARGO_TARGET_DIR

# Without debug information for what is built again and again.
for package in lb-common lb-userspace tests; do
    lean="${lean:-} --config profile.dev.package.$package.debug=0"
done

# shellcheck disable=SC2086 # words on purpose
quick() {
    cargo test $lean --quiet --package lb-common --lib &&
        cargo test $lean --quiet --package tests --test packet --test golden -- --skip kernel_ --skip random
}

echo "without a bug:"
quick >"$work/log" 2>&1 || { tail -n 40 "$work/log"; echo "fails without a planted bug"; exit 1; }
echo "  every quick test passes"

[ $# -gt 0 ] || set -- "$checkout"/tests/planted/*.patch
missed=0
for bug in "$@"; do
    name=$(basename "$bug" .patch)
    patch --quiet --strip 1 <"$bug"
    if quick >"$work/log" 2>&1; then
        echo "MISSED $name"
        missed=$((missed + 1))
    elif finders=$(sed -n 's/^---- \(.*\) stdout ----$/\1/p' "$work/log" | sort -u | paste -sd ' ') && [ -n "$finders" ]; then
        echo "found $name: $finders"
    else
        tail -n 20 "$work/log"
        echo "DOES NOT BUILD $name"
        missed=$((missed + 1))
    fi
    patch --quiet --reverse --strip 1 <"$bug"
done
[ "$missed" -eq 0 ] || { echo "$missed planted bugs were not found"; exit 1; }
