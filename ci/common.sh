# What every check starts with; sourced, not run. A check that cannot run here calls `skip`: it says so
# loudly, and exits with 77, which `ci/all` lists at the end and does not take for success or failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TERM_PROGRESS_WHEN=never
check="$(basename "$0")"

skip() {
    echo "SKIPPED $check: $*" >&2
    exit 77
}

# The toolchain $1, installed if it can be, with the components that follow.
toolchain() {
    local name=$1 component
    shift
    command -v rustup >/dev/null || skip "rustup is not here, and the toolchain $name is needed"
    if ! cargo "+$name" --version >/dev/null 2>&1; then
        rustup toolchain install "$name" --profile minimal --no-self-update >/dev/null 2>&1 ||
            skip "the toolchain $name cannot be had"
    fi
    for component in "$@"; do
        rustup component add "$component" --toolchain "$name" >/dev/null 2>&1 ||
            skip "$component for $name cannot be had"
    done
}
