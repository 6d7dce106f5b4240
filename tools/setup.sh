#!/usr/bin/env bash
# Make the virtual environment: uv, the pinned packages, this package (editable), the CPU kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}

find_uv() {
  if command -v uv >/dev/null 2>&1; then command -v uv; return; fi
  if [ -x .uv/bin/uv ]; then echo .uv/bin/uv; return; fi
  # A Debian python may lack pip, or venv, or refuse to install outside an environment.
  if "$python" -m venv .uv >/dev/null 2>&1 && .uv/bin/python -m pip install -q uv >&2; then
    echo .uv/bin/uv
  elif "$python" -m pip install -q --target .uv/lib uv >&2; then
    mkdir -p .uv/bin && ln -sf ../lib/bin/uv .uv/bin/uv && echo .uv/bin/uv
  else
    echo "setup: $python has neither venv nor pip; on Debian: apt-get install python3-venv" >&2
    exit 2
  fi
}

uv=$(find_uv)
export UV_LINK_MODE=copy
[ -x "$venv/bin/python" ] || "$uv" venv -q --python "$python" "$venv"
echo "setup: installing the pinned packages (several GB the first time)"
"$uv" pip install -q --python "$venv/bin/python" -c constraints.txt -e ".[dev]"
echo "setup: building the CPU kernels"
"$venv/bin/python" -m sgl_sparsekv.kernels.cpu.build
