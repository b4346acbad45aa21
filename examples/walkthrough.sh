#!/usr/bin/env bash
# What docs/walkthrough.md says, command by command: from a clean clone to a deployed network.
set -euo pipefail
cd "$(dirname "$0")/.."

make setup
source .venv/bin/activate

python examples/walkthrough_images.py my_images

dsonas run --config digits --data.name folder:my_images --data.image_size 16 --data.flip false \
  --budget.macs 300k --out runs/mine

dsonas export runs/mine --format onnx

python examples/walkthrough_classify.py runs/mine/export/network.onnx \
  my_images/zero/000.png my_images/one/000.png my_images/two/000.png

dsonas report runs/mine
