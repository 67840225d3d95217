# The whole recipe on one GPU by the clock: dense short, dense long, index, joint, evaluation.
# Usage: pipeline.sh DATA WORK END_SHORT END_LONG END_INDEX END_JOINT END_ALL   (seconds from now)
# Each stage's process is started early, compiles, and waits for the weights of the one before.
set -u
D=$1; W=$2; S=$(date +%s)
A=$((S+$3)); B=$((S+$4)); C=$((S+$5)); E=$((S+$6)); Z=$((S+$7))
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=/tmp/inductor TOKENIZERS_PARALLELISM=false
mkdir -p "$W"; cd "$(dirname "$0")/.."
note() { echo "$(( $(date +%s) - S )) s: $*" >> "$W/pipeline.txt"; }
until_t() { local d=$(( $1 - $(date +%s) )); [ $d -gt 0 ] && sleep $d; }
for f in "$D"/*.xz; do [ -f "$f" ] && xz -T0 -dkf "$f"; done
note unpacked
python3 prepare.py --tasks-only --data "$D" --tokenizer tokenizer.json --task 32768:1600 --task 4096:20000 --procs 16 > "$W/prepare.txt" 2>&1
note tasks made
python3 train.py --stage dense_short --data "$D" --out "$W/short" --until $A > "$W/short.txt" 2>&1 &
( until_t $((A-75)); note start long; python3 train.py --stage dense_long --data "$D" --out "$W/long" --init "$W/short/state.pt" --init-optimiser --wait-init --until $B > "$W/long.txt" 2>&1; note long ended ) &
( until_t $((B-75)); note start index; python3 train.py --stage sparse_index --data "$D" --out "$W/index" --init "$W/long/state.pt" --wait-init --log-every 5 --until $C > "$W/index.txt" 2>&1; note index ended
  python3 export.py --ckpt "$W/index/state.pt" --out "$W/export_index" --format bf16 --pieces 15 >> "$W/index.txt" 2>&1 ) &
( until_t $((C-75)); note start joint; python3 train.py --stage sparse_joint --data "$D" --out "$W/joint" --init "$W/index/state.pt" --wait-init --log-every 5 --until $E > "$W/joint.txt" 2>&1; note joint ended
  python3 export.py --ckpt "$W/joint/state.pt" --out "$W/export_joint" --format bf16 --pieces 15 >> "$W/joint.txt" 2>&1 ) &
( until_t $((C+2)); while [ ! -f "$W/index/state.pt" ]; do sleep 1; [ $(date +%s) -gt $Z ] && exit; done; note start evaluation of stage 1
  python3 evaluate.py --ckpt "$W/index/state.pt" --data "$D" --tokenizer tokenizer.json --out "$W/eval_index.json" --sections recovery_long,needles,recovery_mid,bpb,stability --deadline $((Z-$(date +%s)-5)) > "$W/eval_index.txt" 2>&1; note evaluation of stage 1 ended ) &
( until_t $((E+2)); while [ ! -f "$W/joint/state.pt" ]; do sleep 1; [ $(date +%s) -gt $Z ] && exit; done; note start evaluation of stage 2
  python3 evaluate.py --ckpt "$W/joint/state.pt" --data "$D" --tokenizer tokenizer.json --out "$W/eval_joint.json" --deadline $((Z-$(date +%s)-5)) > "$W/eval_joint.txt" 2>&1; note evaluation of stage 2 ended ) &
wait
note end
