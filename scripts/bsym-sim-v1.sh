#!/bin/sh
# Makes the weights of bsym-sim-v1 again: scripts/bsym-sim-v1.sh OUT
#
# About an hour on one core. What killed it does not matter: run it again and it goes on. On a like
# machine with the versions in constraints.txt the files are the same, bit for bit.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
out=$1
"$here/scripts/setup.sh"
PATH="$here/.venv/bin:$PATH"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

[ -d "$out/people" ] || {
    bsym-model simulate "$out/part" --participants 400 --seed 1
    mv "$out/part" "$out/people"
}
bsym-model pretrain "$out/people" "$out/trained" --name simulated --half --gate-label age \
    --steps 3600 --learning-rate 4e-5 --structural-steps 500 --structural-learning-rate 3e-4 \
    --precision bfloat16 --seed 1 --notice "bsym-sim-v1 was trained on simulated people alone: what \
it reconstructs is a prior about average people, not evidence about a person."

# The network before training, which the card compares with: a step too small to change anything.
bsym-model pretrain "$out/people" "$out/before" --name before --half --steps 1 \
    --learning-rate 1e-12 --side-learning-rate 1e-12 --structural-steps 1 \
    --structural-learning-rate 1e-12 --seed 1

for file in "$out"/trained/release/*.pth; do
    cmp "$file" "$here/bsym_bids/data/weights/bsym-sim-v1/$(basename "$file")" && echo "$file: same"
done
