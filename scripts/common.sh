# Sourced by the shell scripts beside it. Leaves the shell in the repository's root, where .venv holds vsvsr.

cd -- "$(dirname -- "$0")/.."

fail() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.13 python3.12 python3.14 python3 python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3
    fi
    for candidate in "$@"; do
        if usable "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no Python >= 3.12 with venv was found${PYTHON:+ as $PYTHON}; install one (on Debian and Ubuntu: python3.12 and python3.12-venv)"
}

# What an installation depends on. It is editable: other changes of Python code need no reinstallation.
fingerprint() {
    find pyproject.toml plugins vsvsr/filters -type f ! -name '*.pyc' -exec cksum {} + | sort | cksum
}

# prepare EXTRA: .venv with vsvsr[EXTRA] in it. A prepared one is left alone until its fingerprint changes.
prepare() {
    if ! { usable .venv/bin/python && .venv/bin/pip --version >/dev/null 2>&1; }; then
        python=$(find_python)
        "$python" -m venv --clear .venv
    fi
    wanted=$(fingerprint)
    for stamp in .venv/installed-"$1" .venv/installed-dev; do # dev has everything
        if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    done
    command -v "${CXX:-c++}" >/dev/null || fail "the plugin needs a C++20 compiler (on Debian and Ubuntu: g++)"
    printf 'installing vsvsr[%s] into .venv; the first time this fetches PyTorch and takes minutes\n' "$1"
    rm -f .venv/installed-*
    .venv/bin/pip install --quiet --disable-pip-version-check --editable ".[$1]"
    .venv/bin/vapoursynth config
    printf '%s\n' "$wanted" >.venv/installed-"$1"
}
