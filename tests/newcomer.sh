#!/usr/bin/env bash
# A newcomer's first hour as a script: a fresh clone, the first command of the README, every command line of the
# documents, every link between them. `make test`, the other command, is run by whoever runs this (.ci/run).
#
#   tests/newcomer.sh            # as written
#   tests/newcomer.sh --short    # the demo cut to 6 steps; for CI
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PIP_NO_INPUT=1
options=
if [ "${1:-}" = --short ]; then
  options="--set training.max_steps=6 --set evaluation.eval_steps=0 --set data.max_test=20 --set data.max_validation=20"
  options="$options --set signal.num_rollouts=40"
fi

if git clone --quiet "$repository" "$work/stepalign" 2> /dev/null; then
  cd "$work/stepalign"
else  # an export without .git
  mkdir "$work/stepalign"
  cd "$work/stepalign"
  tar -C "$repository" --exclude=./.venv --exclude=./build --exclude=./runs -cf - . | tar -xf -
fi
start=$SECONDS
make demo DEMO_OPTIONS="$options"
test -s runs/demo/report.html && test -s runs/demo/results.json
echo "newcomer: $((SECONDS - start)) s from the clone to the page of the demo"

start=$SECONDS
.venv/bin/stepalign signal clock --model embedded:arithmetic --out runs/look
.venv/bin/stepalign show runs/look
echo "newcomer: $((SECONDS - start)) s from an installed package to coloured tokens"

.venv/bin/python tests/newcomer_commands.py
make docs
test -s build/site/index.html && test -s build/site/docs/notebooks/one_rollout.html
echo "newcomer: the commands run, the links hold"
