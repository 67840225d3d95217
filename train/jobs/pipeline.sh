# The whole recipe on one GPU by the clock: dense short, dense long, index, joint, evaluation.
# Usage: pipeline.sh DATA DATA2 WORK END_SHORT END_LONG END_INDEX END_JOINT END_ALL   (seconds from now)
# DATA: train.bin.xz* (may be cut short) and train.docs.npy, used by the short stage. DATA2: the whole store and the
# held-out one, used from the long stage on; it may arrive later: the file DATA2/ready says that it is there.
# Each stage's process is started early, compiles, and waits for the weights of the one before.
set -u
D1=$1; D=$2; W=$3; S=$(date +%s)
A=$((S+$4)); B=$((S+$5)); C=$((S+$6)); E=$((S+$7)); Z=$((S+$8))
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=/tmp/inductor TOKENIZERS_PARALLELISM=false
mkdir -p "$W"; cd "$(dirname "$0")/.."
note() { echo "$(( $(date +%s) - S )) s: $*" >> "$W/pipeline.txt"; }
until_t() { local d=$(( $1 - $(date +%s) )); [ $d -gt 0 ] && sleep $d; }
python3 train.py --stage dense_short --data "$D1" --out "$W/short" --wait-file "$W/tasks.done" --until $A > "$W/short.txt" 2>&1 &
if ls "$D1"/train.bin.xz* > /dev/null 2>&1; then
  cat "$D1"/train.bin.xz* | xz -dc > "$D1/train.bin" 2>> "$W/pipeline.txt"
  n=$(stat -c %s "$D1/train.bin"); truncate -s $((n / 2 * 2)) "$D1/train.bin"
fi
if [ -f "$D1/heldout.bin.xz" ]; then xz -dkf "$D1/heldout.bin.xz" && touch "$D1/ready"; fi
note unpacked
python3 prepare.py --tasks-only --data "$D1" --tokenizer tokenizer.json --task 32768:1600 --task 4096:20000 --procs 16 > "$W/prepare.txt" 2>&1
touch "$W/tasks.done"
note tasks made
( while [ ! -f "$D/ready" ]; do sleep 1; [ $(date +%s) -gt $A ] && exit; done; note second data there; [ "$D1" = "$D" ] || ln -sf "$D1/task32768.bin" "$D/task32768.bin"; nice -n 5 python3 ngram.py --data "$D" --out "$W/ngram.json" > "$W/ngram.txt" 2>&1 ) &
( until_t $((A-75)); note start long; python3 train.py --stage dense_long --data "$D" --out "$W/long" --init "$W/short/state.pt" --init-optimiser --wait-init --wait-file "$D/ready" --until $B > "$W/long.txt" 2>&1; note long ended ) &
( until_t $((B-75)); note start index; python3 train.py --stage sparse_index --data "$D" --out "$W/index" --init "$W/long/state.pt" --wait-init --log-every 5 --until $C > "$W/index.txt" 2>&1; note index ended
  python3 export.py --ckpt "$W/index/state.pt" --out "$W/export_index" --format bf16 --pieces 15 >> "$W/index.txt" 2>&1 ) &
( until_t $((C-75)); note start joint; python3 train.py --stage sparse_joint --kl-chunks 8 --data "$D" --out "$W/joint" --init "$W/index/state.pt" --wait-init --log-every 5 --until $E > "$W/joint.txt" 2>&1; note joint ended
  python3 export.py --ckpt "$W/joint/state.pt" --out "$W/export_joint" --format bf16 --pieces 15 >> "$W/joint.txt" 2>&1 ) &
( until_t $((E+2)); while [ ! -f "$W/index/state.pt" ]; do sleep 1; [ $(date +%s) -gt $Z ] && exit; done; note start evaluation of stage 1
  python3 evaluate.py --ckpt "$W/index/state.pt" --data "$D" --tokenizer tokenizer.json --out "$W/eval_index.json" --limit 4 --needle-rows 8 --sections recovery_long,needles,bpb,recovery_mid,stability --deadline $((Z-$(date +%s)-5)) > "$W/eval_index.txt" 2>&1; note evaluation of stage 1 ended ) &
( until_t $((E+2)); while [ ! -f "$W/joint/state.pt" ]; do sleep 1; [ $(date +%s) -gt $Z ] && exit; done; note start evaluation of stage 2
  python3 evaluate.py --ckpt "$W/joint/state.pt" --data "$D" --tokenizer tokenizer.json --out "$W/eval_joint.json" --limit 4 --needle-rows 8 --deadline $((Z-$(date +%s)-5)) > "$W/eval_joint.txt" 2>&1; note evaluation of stage 2 ended ) &
wait
note end
