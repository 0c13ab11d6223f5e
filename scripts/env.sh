# Sourced by the other scripts: makes the project's own virtual environment, and installs Debian packages.

cd "${BASH_SOURCE[0]%/*}/.." || exit 1

# venv [SET]: .venv with dmcopy (editable) and what this dependency group or extra of pyproject.toml asks for, made or
# refreshed only when that file changed. Every start of ./scripts/dmcopy comes this way, so what is already there is
# seen without a new process.
venv() {
  local set=$1 stamp python wanted=()
  stamp=.venv/dmcopy-${set:-base}
  [ "$stamp" -nt pyproject.toml ] && return
  if ! [ -x .venv/bin/python ]; then
    python=$(find_python) || return 5
    echo "dmcopy: making .venv with $("$python" --version)" >&2
    "$python" -m venv .venv || {
      rm -rf .venv
      echo "dmcopy: $python cannot make a virtual environment: install python3-venv (apt-get install python3-venv)" >&2
      return 5
    }
  fi
  echo "dmcopy: installing dmcopy${set:+ and what $set asks for} into .venv" >&2
  if [ -n "$set" ]; then
    mapfile -t wanted < <(requirements "$set")
    [ ${#wanted[@]} -gt 0 ] || return 5
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e . "${wanted[@]}" >&2 || return 5
  touch "$stamp"
}

# requirements SET: what a dependency group or an extra asks for, one a line; pip before 25.1 installs no groups.
requirements() {
  .venv/bin/python -c 'import sys, tomllib
data = tomllib.load(open("pyproject.toml", "rb"))
print(*{**data["project"]["optional-dependencies"], **data["dependency-groups"]}[sys.argv[1]], sep="\n")' "$1"
}

# $PYTHON, or the first Python that is new enough and can make a virtual environment, else the first that is new
# enough. The distribution's own comes first: its interpreter has its library linked in and was built with a
# profile; one built with --enable-shared, as pyenv's may be, takes half as long again for the same work.
find_python() {
  local can python
  for can in 'sys.version_info >= (3, 11) and importlib.util.find_spec("ensurepip")' 'sys.version_info >= (3, 11)'; do
    for python in ${PYTHON:-/usr/bin/python3 python3 python3.13 python3.12 python3.11}; do
      if "$python" -c "import importlib.util, sys; sys.exit(not ($can))" 2>/dev/null; then
        command -v "$python"
        return
      fi
    done
  done
  echo "dmcopy: no Python 3.11 or newer on PATH: install one (apt-get install python3 python3-venv)" >&2
  return 5
}

# packages NAME…: installs the Debian packages that are missing; not as root, prints the line to run and fails.
packages() {
  local missing=() name
  for name; do
    dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
  done
  [ ${#missing[@]} = 0 ] && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "dmcopy: not installed: ${missing[*]}; run: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    return 5
  fi
  echo "dmcopy: installing ${missing[*]}" >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    apt-get update -qq >&2 &&
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
  } || return 5
}
