#!/bin/sh
# Installs the missing packages for building (`setup.sh build`), testing (`setup.sh test`) or
# benchmarking (`setup.sh bench`) Bridle. On a machine with all of them it changes nothing and needs
# neither root nor a network.
set -eu

want=${1:-build}
missing=""
need() { missing="$missing $1"; }
has() { command -v "$1" >/dev/null 2>&1; }

any() {
    for file in "$@"; do
        [ -e "$file" ] && return 0
    done
    return 1
}

# The library alone (libclang1, a dependency of doxygen) is not enough: bindgen needs the compiler's
# own headers. libclang-cpp is another library.
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    any /opt/homebrew/opt/llvm/lib/libclang.dylib /Library/Developer/CommandLineTools/usr/lib/libclang.dylib && return 0
    any /usr/lib/llvm-*/lib/libclang.so* /usr/lib/*/libclang.so* /usr/lib/*/libclang-[0-9]*.so* /usr/lib*/libclang.so* /usr/local/lib/libclang.so* &&
        any /usr/lib/llvm-*/lib/clang/*/include/stddef.h /usr/lib*/clang/*/include/stddef.h /usr/local/lib/clang/*/include/stddef.h
}

if ! has cargo; then
    echo "Bridle is built with cargo, which is not on the PATH. Install Rust from https://rustup.rs (or run: . \"\$HOME/.cargo/env\")." >&2
    exit 1
fi

# RocksDB is C++; its bindings are generated with libclang.
has c++ || need g++
has_libclang || need libclang-dev

if [ "$want" = test ]; then
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || {
        if has rustup; then
            rustup component add rustfmt clippy
        else
            echo "make check needs rustfmt and clippy; install them with your Rust toolchain." >&2
            exit 1
        fi
    }
    # The real clients and servers that the tests drive.
    has redis-server || need redis-server
    has redis-cli && has redis-benchmark || need redis-tools
    has prometheus || need prometheus
    has strace || need strace
    # Test networks.
    has ip || need iproute2
    has node || need nodejs
    has npm || need npm
    python3 -c 'import ensurepip, venv' 2>/dev/null || need "python3 python3-venv"
fi

if [ "$want" = bench ]; then
    # The systems that a cluster is compared with.
    has etcd || need etcd-server
    has redis-server || need redis-server
    has redis-benchmark || need redis-tools
    has ip || need iproute2
fi

[ -z "$missing" ] && exit 0

if ! has apt-get; then
    echo "These packages (by Debian's names) are missing on this machine:$missing" >&2
    echo "Only Debian and Ubuntu are set up automatically: install them with this system's package manager and try again." >&2
    exit 1
fi

if [ "$(id -u)" = 0 ]; then
    root=""
elif has sudo; then
    root="sudo"
else
    echo "These packages are missing:$missing" >&2
    echo "Run this as root:  apt-get install$missing" >&2
    exit 1
fi

# The tests start their own servers on free ports. The packages' services stay disabled, so that port
# 6379 stays free for Bridle.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$root rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM
    printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
    $root chmod 755 "$policy"
fi

echo "installing:$missing"
$root apt-get update -q </dev/null
# shellcheck disable=SC2086  # the list is split into words
$root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing </dev/null

if has systemctl; then
    for service in redis-server prometheus etcd; do
        case "$missing " in *" $service "* | *" $service-server "*) $root systemctl disable --quiet "$service" 2>/dev/null || true ;; esac
    done
fi
