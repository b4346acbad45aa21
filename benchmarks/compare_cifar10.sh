#!/usr/bin/env bash
# Searched against random, hand-made and well-known networks on CIFAR-10 at 2 M multiply-adds, by the
# recipe cifar10-small. Some 20 core-hours; stop it with Ctrl-C, go on by the same command, also from a
# fresh clone: the jobs that are done lie in benchmarks/results/.
#
#   benchmarks/compare_cifar10.sh DATA [DIR [OPTIONS]]     (DIR: default runs/compare-cifar10)
#
# DATA holds train/CLASS/*.jpg and test/CLASS/*.jpg, or is that of cifar10: (cifar-10-batches-py/ in it).
# OPTIONS such as "--spaces share --seeds 2" do a part of it: its jobs are kept, and count when the whole
# is done; table and picture in benchmarks/results/ and docs/ are only those of the whole.
# IMAGE_SIZE=16 before the command: the same with images of 16x16 pixels and 0.5 M, a quarter of the work.
set -euo pipefail
data=$(realpath "${1:?the folder of CIFAR-10, as images or as its own files}")
cd "$(dirname "$0")/.."
case ${IMAGE_SIZE:=32} in
  32) name=compare-cifar10 budget=2M ;;
  16) name=compare-cifar10-16 budget=0.5M ;;
  *) echo "IMAGE_SIZE must be 32 or 16, got $IMAGE_SIZE" >&2 && exit 2 ;;
esac
out=${2:-runs/$name}
results=benchmarks/results
archive=$results/$name-jobs.json
kind=folder
[ ! -e "$data/cifar-10-batches-py" ] || kind=cifar10

part=("${@:3}")

keep() {
  [ -e "$out/compare.json" ] || return 0 # a dry run leaves none
  .venv/bin/python benchmarks/study_archive.py pack "$out" "$archive"
  sed -i "s|$kind:$data|$kind:DATA|g" "$archive" # the images may lie elsewhere next time
  [ ${#part[@]} = 0 ] || return 0
  for suffix in json md; do
    cp "$out/compare.$suffix" "$results/$name.$suffix"
  done
  cp "$out/compare.svg" docs/images/$name.svg
}

if [ -e "$archive" ]; then
  .venv/bin/python benchmarks/study_archive.py unpack "$archive" "$out"
  sed -i "s|$kind:DATA|$kind:$data|g" "$out/config.yaml"
fi
trap keep EXIT
.venv/bin/dsonas compare --config cifar10-small --data.name "$kind:$data" --out "$out" --engine.threads 1 \
  --data.image_size "$IMAGE_SIZE" --budgets "$budget" --spaces share,full --seeds 5 --train_seeds 2 \
  --random 12 --random_factors 12 --random_searches 2 --hand_made 4 "${part[@]}"
case " ${part[*]-} " in *" --dry_run "*) exit 0 ;; esac
.venv/bin/python benchmarks/known_networks.py --config cifar10-small --data "$kind:$data" --image_size "$IMAGE_SIZE" --macs "$budget" --seeds 4 \
  --out $results/known-networks-cifar10.json
