# Common start of all checks; sourced, not run. A check that cannot run here calls `skip`, which prints the reason and
# exits with 77. `ci/all` lists such checks as skipped, neither passed nor failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TERM_PROGRESS_WHEN=never
check="$(basename "$0")"

skip() {
    echo "SKIPPED $check: $*" >&2
    exit 77
}

# Installs the toolchain $1 with the components in the other arguments, or skips the check.
toolchain() {
    local name=$1 component
    shift
    command -v rustup >/dev/null || skip "rustup is needed for the toolchain $name"
    if ! cargo "+$name" --version >/dev/null 2>&1; then
        rustup toolchain install "$name" --profile minimal --no-self-update >/dev/null 2>&1 ||
            skip "the toolchain $name cannot be installed"
    fi
    for component in "$@"; do
        rustup component add "$component" --toolchain "$name" >/dev/null 2>&1 ||
            skip "$component for $name cannot be installed"
    done
}
