#!/bin/sh
# Makes .venv with all that the project needs; `make setup` runs this and gives it three choices:
#   PYTHON       the interpreter (default: python3); its own torch and detectron2 are used if they work
#   TORCH_SPEC   what pip installs as torch and torchvision
#   TORCH_INDEX  one more package index for them, such as PyTorch's index of CPU-only builds
# A choice holds until another one is made. Nothing is done while .venv/ready is newer than pyproject.toml. An
# interrupted set-up has not written that file, so the next run starts anew; pip keeps what it downloaded.
set -eu
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
venv_python=.venv/bin/python

fail() {
    echo "setup: $1" >&2
    exit 1
}

last() { # the value that a choice had in the last run
    if [ -e .venv/choices ]; then sed -n "s/^$1=//p" .venv/choices; fi
}

step() { # TITLE COMMAND ...: shows what the command prints only if it fails
    echo "setup: $1"
    shift
    "$@" > .venv/log 2>&1 && return
    tail -n 30 .venv/log
    fail "this failed, see above and the common errors in INSTALL.md: $*"
}

if [ -d .venv ] && [ ! -e .venv/choices ]; then
    fail ".venv was not made by \`make setup\`: move it away and run again"
fi
PYTHON=${PYTHON:-$(last PYTHON)}
PYTHON=${PYTHON:-python3}
TORCH_SPEC=${TORCH_SPEC:-$(last TORCH_SPEC)}
TORCH_INDEX=${TORCH_INDEX:-$(last TORCH_INDEX)}
choices="PYTHON=$PYTHON
TORCH_SPEC=$TORCH_SPEC
TORCH_INDEX=$TORCH_INDEX"

if [ -e .venv/ready ] && [ -x $venv_python ] && [ "$(cat .venv/choices)" = "$choices" ]; then
    [ .venv/ready -nt pyproject.toml ] && exit 0
else # nothing there, other choices, or half made
    command -v "$PYTHON" > /dev/null || fail "there is no $PYTHON: install it, or \`make setup PYTHON=...\`"
    if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'; then
        for found in python3.12 python3.11 python3.10 ...; do # "..." if there is none of them
            if command -v $found > /dev/null; then break; fi
        done
        fail "Python 3.10 to 3.12 is needed, this is $("$PYTHON" -V 2>&1): run \`make setup PYTHON=$found\`"
    fi
    rm -rf .venv
    mkdir .venv
    echo "$choices" > .venv/choices
    if "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null; then
        step "virtual environment" "$PYTHON" -m venv .venv
    elif "$PYTHON" -m pip --version > /dev/null 2>&1; then # Debian without python3-venv
        step "virtualenv" "$PYTHON" -m pip install --target .venv/virtualenv virtualenv
        step "virtual environment" env PYTHONPATH=.venv/virtualenv "$PYTHON" -m virtualenv .venv
    else
        fail "$PYTHON has neither venv nor pip: \`sudo apt install python3-venv\`, then run again"
    fi
    step "pip" $venv_python -m pip install "pip>=23.1" "setuptools>=70.1,<81"
    # Python's own torch and torchvision, if they work and are as new as pyproject.toml demands.
    if [ -z "$TORCH_SPEC" ] && "$PYTHON" -c '
import torch, torchvision
assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)' 2> /dev/null; then
        "$PYTHON" -c '
import sys
for path in sys.path:
    if path.endswith("-packages"):
        print(f"import site; site.addsitedir({path!r})")' > .venv/shared.pth
        mv .venv/shared.pth .venv/lib/python*/site-packages/
    else
        # shellcheck disable=SC2086  # several words each
        step "torch and torchvision (minutes if they are new)" $venv_python -m pip install \
            ${TORCH_SPEC:-torch==2.12.1 torchvision==0.27.1} ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX}
    fi
fi
rm -f .venv/ready
$venv_python -c 'import detectron2' 2> /dev/null || step "detectron2" $venv_python tools/install_detectron2.py
# An OpenCV that works is kept: two of them in one environment overwrite each other's files.
extras=dev,weights
$venv_python -c 'import cv2' 2> /dev/null || extras=$extras,opencv
step "fss_d2 and the packages it uses" $venv_python -m pip install --no-build-isolation --editable ".[$extras]"
step "check" $venv_python -m fss_d2.check_env
touch .venv/ready
