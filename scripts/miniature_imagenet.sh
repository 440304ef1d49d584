#!/usr/bin/env bash
# Make a miniature of ImageNet and of the published pool, run the three commands of docs/imagenet.md on it, and cook from
# the pool that the third made: miniature_imagenet.sh [DIR], by default runs/miniature. What is finished in DIR is not
# repeated. SCALE=1 to 4 says how many times as many images a new miniature has; by default 2.
DIR="${1:-}"
[[ -z "$DIR" || "$DIR" = /* ]] || DIR="$PWD/$DIR"
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
DIR="${DIR:-runs/miniature}"
MADE="$DIR/miniature"
DATA=(--config.arch=clip-vit-mini --config.data_dir="$MADE/data" --config.cache_dir="$DIR/decoded" --config.evaluate.batch_size=200)
SOUPS=(python scripts/run.py --config configs/imagenet/clip_vit_b32_soups.py "${DATA[@]}" --config.learned.batch_size=80)
# other learning rates than published, for so small a network, and no flips, which make no digits
FINETUNE=(python scripts/run.py --config configs/imagenet/clip_vit_b32_finetune.py "${DATA[@]}" --config.finetune.batch_size=64
  --config.finetune.num_workers=1 --config.sweep.members=4 --config.sweep.learning_rate="(2e-4, 2e-3)" --config.sweep.minimal=1.0)

[ -d "$MADE" ] || python scripts/make_miniature_imagenet.py "$MADE" --scale "${SCALE:-2}"
python scripts/pool.py import --arch clip-vit-mini --pool "$DIR/pool" --hparams "$MADE/models/hparam_info.json" "$MADE"/models/model_*.pt
"${SOUPS[@]}" --config.name=miniature_soups --workdir "$DIR/soups" --config.pool="$DIR/pool"
"${FINETUNE[@]}" --config.name=miniature_finetune --workdir "$DIR/finetune" --config.start="$MADE/clip/clip-vit-mini.pt"
"${SOUPS[@]}" --config.name=miniature_finetune_soups --workdir "$DIR/finetune_soups" --config.pool="$DIR/finetune/pool" \
  --config.wise_ft.base=member_00
printf '\nreports:\n  %s\n  %s\n' "$DIR/soups/report.html" "$DIR/finetune_soups/report.html"
