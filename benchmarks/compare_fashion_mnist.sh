#!/usr/bin/env bash
# Searched against random and hand-made networks on Fashion-MNIST at 1 M and 3 M multiply-adds, in
# the share and the full space. About eleven core-hours; stop it with Ctrl-C, go on by the same command,
# also from a fresh clone: the jobs that are done lie in benchmarks/results/.
#
#   benchmarks/compare_fashion_mnist.sh [DIR [OPTIONS]]     (DIR: default runs/compare-fashion-mnist)
#
# OPTIONS such as "--budgets 1M --spaces share" do a part of it: its jobs are kept, and count when the
# whole is done; table and picture in benchmarks/results/ and docs/ are only those of the whole.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/compare-fashion-mnist}
results=benchmarks/results
archive=$results/compare-fashion-mnist-jobs.json

part=("${@:2}")

keep() {
  [ -e "$out/compare.json" ] || return 0 # a dry run leaves none
  .venv/bin/python benchmarks/study_archive.py pack "$out" "$archive"
  [ ${#part[@]} = 0 ] || return 0
  for kind in json md; do
    cp "$out/compare.$kind" "$results/compare-fashion-mnist.$kind"
  done
  cp "$out/compare.svg" docs/images/compare-fashion-mnist.svg
}

[ ! -e "$archive" ] || .venv/bin/python benchmarks/study_archive.py unpack "$archive" "$out"
trap keep EXIT
.venv/bin/dsonas compare --config benchmarks/compare_fashion_mnist.yaml --out "$out" \
  --budgets 1M,3M --spaces share,full --seeds 5 --train_seeds 2 \
  --random 16 --random_factors 16 --random_searches 2 --trial_epochs 1 "${part[@]}"
