# Sourced by the scripts beside it: an isolated Python environment holding the tested versions.
#
#   source launch/environment.sh
#   use_environment cpu,demo            # extras of setup.py; FAISS's cpu is swapped for gpu by ROMA_DS_FAISS=gpu
#
# ROMA_DS_VENV         where the environment lies (default: .venv in the repository)
# TORCH_EXTENSIONS_DIR where compiled extensions lie (default: torch_extensions in the environment)
# ROMA_DS_PYTHON       the Python that makes it (default: the first of python3.11, 3.12, 3.13, python3 that is 3.11+)
# ROMA_DS_FAISS        cpu (default) or gpu: which FAISS wheel, never both
# ROMA_DS_TORCH_INDEX  an extra package index to take torch from, for instance one with CPU-only builds
# PIP_*                pip's own variables are passed on

ROMA_DS_ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
ROMA_DS_CALLED_FROM="$PWD"

say() { printf '%s\n' "$*" >&2; }

# fault MESSAGE FIX: the machine lacks something; exit code 3.
fault() {
  say "$1"
  say "  fix: $2"
  exit 3
}

find_python() {
  local candidate
  for candidate in ${ROMA_DS_PYTHON:+"$ROMA_DS_PYTHON"} python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v -- "$candidate"
      return
    fi
    [ "$candidate" != "${ROMA_DS_PYTHON:-}" ] ||
      fault "ROMA_DS_PYTHON=$ROMA_DS_PYTHON is no Python 3.11 or newer" "unset it, or name another interpreter"
  done
  fault "no Python 3.11 or newer was found" \
    "apt install python3.11 python3.11-venv python3.11-dev, or the like, or set ROMA_DS_PYTHON=/path/to/python"
}

check_python() {
  local python="$1" version
  version="$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')"
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fault "$python cannot make virtual environments" "install its venv module: apt install $version-venv, or the like"
  "$python" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
    fault "$python has no C headers (Python.h); DeepSpeed compiles a small extension against them" \
      "install them: apt install $version-dev, or the like"
}

# torch compiles with $CXX, or with `c++` where that is unset.
find_compiler() {
  local candidate
  for candidate in ${CXX:+"$CXX"} c++ g++ clang++; do
    if command -v -- "${candidate%% *}" >/dev/null 2>&1; then
      [ "$candidate" = c++ ] || export CXX="$candidate"
      return
    fi
  done
  fault "no C++ compiler was found; DeepSpeed compiles a small extension at first use" \
    "install one: apt install g++, or the like, or set CXX=/path/to/compiler"
}

# What the environment was made from: a change of any of it means installing again.
environment_key() {
  "$1" - "$ROMA_DS_ROOT" <<'PYTHON'
import hashlib, pathlib, os, sys
digest = hashlib.sha256(sys.argv[1].encode() + os.environ.get("ROMA_DS_TORCH_INDEX", "").encode())
for name in ("setup.py", "pyproject.toml", "constraints.txt"):
    digest.update(pathlib.Path(sys.argv[1], name).read_bytes())
print(digest.hexdigest()[:32])
PYTHON
}

# The union of two comma lists, sorted; [cpu] and [gpu] are decided by the second list.
join_extras() {
  local old=",$1," new=",$2,"
  case "$new" in *,gpu,*) old="${old//,cpu,/,}" ;; *,cpu,*) old="${old//,gpu,/,}" ;; esac
  printf '%s' "$old,$new" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -sd, -
}

# Marks in the environment's folder: .roma_ds-owned says that these scripts may empty it; .roma_ds-installed (location,
# key, extras) is written last, so an environment without it was never finished and is made anew.
read_stamp() {
  installed_at="" installed_key="" installed_extras=""
  if [ -f "$ROMA_DS_VENV/.roma_ds-installed" ]; then
    { read -r installed_at && read -r installed_key && read -r installed_extras; } \
      <"$ROMA_DS_VENV/.roma_ds-installed" || installed_at=""
  fi
  [ "$installed_at" = "$ROMA_DS_VENV" ] && "$ROMA_DS_VENV/bin/python" -c 'import pip' 2>/dev/null
}

environment_is_current() {
  read_stamp && [ "$installed_key" = "$(environment_key "$ROMA_DS_VENV/bin/python")" ] &&
    [ "$installed_extras" = "$(join_extras "$installed_extras" "$1")" ]
}

make_environment() {
  local python entries
  entries="$(ls -A -- "$ROMA_DS_VENV" | grep -v '^\.roma_ds-lock$')"
  if [ -n "$entries" ] && [ ! -f "$ROMA_DS_VENV/.roma_ds-owned" ]; then
    "$ROMA_DS_VENV/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
      fault "$ROMA_DS_VENV exists and is no Python 3.11 environment" \
        "set ROMA_DS_VENV to another folder, or delete this one"
    return
  fi
  python="$(find_python)" || exit $?
  check_python "$python"
  : >"$ROMA_DS_VENV/.roma_ds-owned"
  find "$ROMA_DS_VENV" -mindepth 1 -maxdepth 1 ! -name '.roma_ds-*' -exec rm -rf -- {} +
  say "making the environment $ROMA_DS_VENV with $("$python" --version)"
  "$python" -m venv "$ROMA_DS_VENV" || fault "$python could not make $ROMA_DS_VENV" "see the message above"
}

# DeepSpeed would compile it in the first run; here a failure has a clear place and the first run is not slow.
compile_extension() {
  say "compiling DeepSpeed's communication extension for CPU (about a minute)"
  local output="$ROMA_DS_VENV/.roma_ds-compile"
  PATH="$ROMA_DS_VENV/bin:$PATH" "$ROMA_DS_VENV/bin/python" -c '
from deepspeed.accelerator import get_accelerator
get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)' >"$output" 2>&1 && return
  cat -- "$output" >&2
  fault "DeepSpeed's communication extension does not compile" "see the message above; CXX names another compiler"
}

install_environment() {
  local extras="$1" other_faiss=faiss-gpu-cu12 quiet=--quiet
  trap 'exit 130' INT
  environment_is_current "$extras" && return
  if read_stamp; then
    extras="$(join_extras "$installed_extras" "$extras")"
  else
    make_environment
  fi
  case ",$extras," in *,gpu,*) other_faiss=faiss-cpu ;; esac
  [ ! -t 2 ] || quiet=""
  say "installing roma_ds[$extras] with the versions of constraints.txt (minutes the first time)"
  cd -- "$ROMA_DS_ROOT" || exit 3
  "$ROMA_DS_VENV/bin/python" -m pip uninstall --quiet --yes "$other_faiss" 2>/dev/null
  "$ROMA_DS_VENV/bin/python" -m pip install $quiet --disable-pip-version-check --no-input \
    ${ROMA_DS_TORCH_INDEX:+--extra-index-url "$ROMA_DS_TORCH_INDEX"} -c constraints.txt -e ".[$extras]" >&2 ||
    fault "pip could not install roma_ds[$extras]" \
      "see pip's message above (behind a proxy or mirror: PIP_PROXY, PIP_INDEX_URL), then run the same command again"
  [ "${DS_ACCELERATOR:-}" != cpu ] || compile_extension
  printf '%s\n' "$ROMA_DS_VENV" "$(environment_key "$ROMA_DS_VENV/bin/python")" "$extras" \
    >"$ROMA_DS_VENV/.roma_ds-partial" && mv -- "$ROMA_DS_VENV/.roma_ds-partial" "$ROMA_DS_VENV/.roma_ds-installed"
}

# torch links extensions against its own folder without quoting it, so the environment cannot lie below a folder with a
# space in its name: there it becomes a link to one in the cache folder.
choose_folder() {
  local wanted="${ROMA_DS_VENV:-$ROMA_DS_ROOT/.venv}"
  case "$wanted" in /*) ;; *) wanted="$ROMA_DS_CALLED_FROM/$wanted" ;; esac
  ROMA_DS_VENV="$wanted"
  case "$wanted" in
    *[[:space:]]*)
      ROMA_DS_VENV="${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/roma_ds/venv-$(printf '%s' "$wanted" | cksum | tr ' ' '-')"
      case "$ROMA_DS_VENV" in
        *[[:space:]]*) fault "torch cannot link extensions below a folder with a space in its name: $wanted" \
          "set ROMA_DS_VENV to a folder without spaces" ;;
      esac
      if [ -L "$wanted" ] || [ ! -e "$wanted" ]; then
        mkdir -p -- "$ROMA_DS_VENV" "$(dirname -- "$wanted")" && ln -sfn -- "$ROMA_DS_VENV" "$wanted" ||
          fault "cannot make $wanted" "set ROMA_DS_VENV to a folder that can be written, without spaces"
      else
        fault "torch cannot link extensions below a folder with a space in its name: $wanted" \
          "set ROMA_DS_VENV to a folder without spaces"
      fi ;;
  esac
}

use_environment() {
  local extras="$1"
  unset PYTHONHOME PYTHONPATH
  export PYTHONNOUSERSITE=1
  choose_folder
  case "${ROMA_DS_FAISS:-cpu}" in
    cpu) ;;
    gpu) extras=",$extras," extras="${extras//,cpu,/,gpu,}" extras="${extras#,}" extras="${extras%,}" ;;
    *) say "ROMA_DS_FAISS=$ROMA_DS_FAISS is unknown" && say "  fix: ROMA_DS_FAISS=cpu or ROMA_DS_FAISS=gpu" && exit 2 ;;
  esac
  find_compiler
  if [ -z "${DS_ACCELERATOR:-}" ] && ! nvidia-smi -L >/dev/null 2>&1 && [ ! -e /dev/kfd ]; then
    export DS_ACCELERATOR=cpu
  fi
  export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$ROMA_DS_VENV/torch_extensions}"
  if ! environment_is_current "$extras"; then
    { mkdir -p -- "$ROMA_DS_VENV" && : >>"$ROMA_DS_VENV/.roma_ds-lock"; } 2>/dev/null ||
      fault "cannot write to $ROMA_DS_VENV" "set ROMA_DS_VENV to a folder that can be written"
    (
      ! command -v flock >/dev/null 2>&1 || flock 9
      install_environment "$extras"
    ) 9>"$ROMA_DS_VENV/.roma_ds-lock" || exit $?
  fi
  # ninja and the deepspeed launcher are found by name in subprocesses.
  export VIRTUAL_ENV="$ROMA_DS_VENV" PATH="$ROMA_DS_VENV/bin:$PATH"
}
