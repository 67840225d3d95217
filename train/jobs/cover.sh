# Index-only stage on an exported folder, with and without the loss through the hard list, measured before and after.
# Usage: cover.sh DATA WORK END GPU FOLDER      END: seconds from now by which all is over; DATA/ready says that the data are there.
# For a dry run on a CPU: EXTRA, STEPS, EVAL, CORES as in chains.sh.
set -u
D=$1; W=$2; S=$(date +%s); Z=$((S+$3)); gpu=$4; model=$5
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=4 CUDA_VISIBLE_DEVICES=$gpu TORCHINDUCTOR_CACHE_DIR=/tmp/inductor$gpu
EXTRA=${EXTRA:-} EVAL=${EVAL:-} CORES=${CORES:-0-7} STEPS=${STEPS:-900}
mkdir -p "$W"; cd "$(dirname "$0")/.."
note() { echo "$(( $(date +%s) - S )) s: $*" >> "$W/cover.txt"; }
measure() {      # NAME CHECKPOINT OPTIONS...
  local name=$1 ckpt=$2; shift 2
  taskset -c "$CORES" python3 evaluate.py --ckpt "$ckpt" --data "$D" --tokenizer tokenizer.json --out "$W/cover_$name.json" \
    --deadline $((Z-$(date +%s)-5)) "$@" $EVAL > "$W/cover_$name.txt" 2>&1
  note "measured $name, $?"
}
all() {          # NAME CHECKPOINT
  measure $1_windows "$2" --sections recovery_long --limit 4
  measure $1_wide "$2" --sections recovery_long --limit 12 --no-controls
  measure $1_loss "$2" --sections bpb,tail,asks
}
stage() {        # NAME OPTIONS...
  local name=$1; shift
  taskset -c "$CORES" nice -n -5 python3 train.py --stage sparse_index --data "$D" --init "$model" --out "$W/$name" --until $Z --lr 1e-3 --log-every 5 \
    --mix long=1,package=1,prose=1,task=1 --steps $STEPS "$@" $EXTRA > "$W/$name.txt" 2>&1
  note "$name ended, $?"
}
while [ ! -e "$D/ready" ]; do sleep 1; [ "$(date +%s)" -gt $Z ] && exit; done
note data there
all shipped "$model" &
stage index_cover --cover 10 --k-min 512 --k-max 4096 --kl-chunks 16
all cover "$W/index_cover/state.pt" &
stage index_kl --kl-chunks 16
all kl "$W/index_kl/state.pt" &
wait
note end
