# Sourced by the other scripts: makes the project's own virtual environment, and installs Debian packages.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# venv EXTRAS: .venv with dmcopy (editable) and these extras, made or refreshed only when pyproject.toml changed.
venv() {
  local extras=$1 want stamp python
  want=$(sha256sum pyproject.toml)
  stamp=.venv/dmcopy-${extras:-base}
  [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
  if ! [ -x .venv/bin/python ]; then
    python=$(find_python) || return 5
    echo "dmcopy: making .venv with $("$python" --version)" >&2
    "$python" -m venv .venv || {
      rm -rf .venv
      echo "dmcopy: $python cannot make a virtual environment: install python3-venv (apt-get install python3-venv)" >&2
      return 5
    }
  fi
  echo "dmcopy: installing dmcopy${extras:+[$extras]} into .venv" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}" >&2 || return 5
  echo "$want" > "$stamp"
}

# The first Python that is new enough: $PYTHON, python3, python3.13 ….
find_python() {
  local python
  for python in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$python"
      return
    fi
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
