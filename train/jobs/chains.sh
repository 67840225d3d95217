# Independent chains, one a GPU: `transformer:SEED:GPU[:GPU2]` trains the control row and gives it the last stage's tokens too,
# `hybrid` and `yoco` (without document resets) likewise, `clsa:SEED:GPU` trains CLSA with its sparse stages and the dense control of the last one; `wide` (windows of 1,024) and
# `deep` (8 window and 4 cross layers) are CLSA without that control, `plain` YOCO without document resets and without the last stage. Each stage has a fixed number of steps; its process is started
# early, compiles, and waits for the weights of the one before. Checkpoints are measured as they come.
# Usage: chains.sh DATA_SHORT DATA WORK END CHAIN...      END: seconds from now by which all is over
# DATA_SHORT/tasks.done says that the short stage's store and task rows are there, DATA/ready the same of the rest.
# WORK/cores, written meanwhile, are the cores of what starts from then on; WORK/end another END, a time of day in seconds since 1970.
# For a dry run on a CPU: EXTRA (options of train.py), STEPS="short long index joint", EVAL (options of evaluate.py), CORES.
set -u
D1=$1; D=$2; W=$3; S=$(date +%s); Z=$((S+$4)); shift 4
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=4
read -r N_SHORT N_LONG N_INDEX N_JOINT <<< "${STEPS:-2131 680 602 350}"
EXTRA=${EXTRA:-} EVAL=${EVAL:-} CORES=${CORES:-0-7}
mkdir -p "$W"; cd "$(dirname "$0")/.."
note() { echo "$(( $(date +%s) - S )) s: $*" >> "$W/pipeline.txt"; }
# reached RUN STEP: waits until RUN's log has this step, or the end
reached() {
  local n
  while [ "$(date +%s)" -lt $Z ]; do
    n=$(tail -qn 1 "$W/$1/log.csv" 2>/dev/null | cut -d, -f2)
    case "$n" in ''|*[!0-9]*) ;; *) [ "$n" -ge "$2" ] && return 0 ;; esac
    sleep 1
  done
  return 1
}
cores() { cat "$W/cores" 2>/dev/null || echo "$CORES"; }
# stage RUN GPU OPTIONS...
stage() {
  local run=$1 gpu=$2; shift 2
  note "start $run"
  CUDA_VISIBLE_DEVICES=$gpu TORCHINDUCTOR_CACHE_DIR=/tmp/inductor$gpu taskset -c "$(cores)" nice -n -5 python3 train.py --out "$W/$run" --until $Z "$@" $EXTRA > "$W/$run.txt" 2>&1
  note "$run ended, $?"
}
# measure NAME GPU CHECKPOINT OPTIONS...: waits for the checkpoint
measure() {
  local name=$1 gpu=$2 ckpt=$3; shift 3
  while [ ! -e "$ckpt" ]; do sleep 1; [ "$(date +%s)" -gt $Z ] && return; done
  [ -f "$W/end" ] && Z=$(cat "$W/end")               # a later end, given meanwhile
  note "measure $name"
  CUDA_VISIBLE_DEVICES=$gpu TORCHINDUCTOR_CACHE_DIR=/tmp/inductor$gpu taskset -c "$(cores)" python3 evaluate.py --ckpt "$ckpt" --data "$D" --tokenizer tokenizer.json \
    --out "$W/eval_$name.json" --deadline $((Z-$(date +%s)-5)) "$@" $EVAL > "$W/eval_$name.txt" 2>&1
  note "measured $name, $?"
}
short="--stage dense_short --data $D1 --wait-file $D1/tasks.done --steps $N_SHORT"
long="--stage dense_long --data $D --init-optimiser --wait-init --wait-file $D/ready --steps $N_LONG"
# dense_row NAME SEED GPU GPU2 OPTIONS...: a row without lists; GPU2 measures the parent while GPU measures the end
dense_row() {
  local t=$1$2 seed=$2 gpu=$3 gpu2=$4; shift 4
  stage ${t}_short $gpu $short --seed $seed "$@" &
  ( reached ${t}_short $((N_SHORT * 86 / 100)) && stage ${t}_long $gpu $long --seed $seed "$@" --init "$W/${t}_short/state.pt" ) &
  ( reached ${t}_long $((N_LONG * 88 / 100)) && stage ${t}_more $gpu --stage dense_more --seed $seed "$@" --data "$D" --init "$W/${t}_long/state.pt" --wait-init --log-every 5 --steps $N_JOINT ) &
  measure ${t}_more $gpu "$W/${t}_more/state.pt" --sections bpb,tail,asks &
  while [ ! -e "$W/${t}_more/state.pt" ]; do sleep 1; [ "$(date +%s)" -gt $Z ] && return; done
  measure ${t}_long $gpu2 "$W/${t}_long/state.pt" --sections bpb,tail,asks
  wait
}
transformer() { dense_row transformer $1 $2 $3 --arch transformer --set intermediate_size=992,rope_base=500000,doc_reset=false; }
hybrid() { dense_row hybrid $1 $2 $3 --arch window_hybrid --set intermediate_size=992,rope_base=500000,doc_reset=false; }
yoco() { dense_row yoco $1 $2 $3 --arch yoco --set doc_reset=false; }
# parent NAME SEED GPU OPTIONS...: the two dense stages
parent() {
  local t=$1$2 seed=$2 gpu=$3; shift 3
  stage ${t}_short $gpu $short --seed $seed "$@" &
  ( reached ${t}_short $((N_SHORT * 86 / 100)) && stage ${t}_long $gpu $long --seed $seed "$@" --init "$W/${t}_short/state.pt" ) &
  wait
}
plain() {
  parent plain $1 $2 --arch yoco --set doc_reset=false &
  measure plain$1_long $2 "$W/plain$1_long/state.pt" --sections bpb,tail,asks
  wait
}
# sparse NAME SEED GPU OPTIONS...: the dense stages, then those of the lists
sparse() {
  local t=$1$2 seed=$2 gpu=$3
  parent "$@" &
  shift 3
  ( reached ${t}_long $((N_LONG * 84 / 100)) && stage ${t}_index $gpu --stage sparse_index --seed $seed "$@" --data "$D" --init "$W/${t}_long/state.pt" --wait-init --log-every 5 --steps $N_INDEX ) &
  ( reached ${t}_index $((N_INDEX * 52 / 100)) && stage ${t}_joint $gpu --stage sparse_joint --seed $seed "$@" --kl-chunks 8 --data "$D" --init "$W/${t}_index/state.pt" --wait-init --log-every 5 --steps $N_JOINT ) &
  wait
}
clsa() {
  local c=clsa$1 seed=$1 gpu=$2 s
  sparse clsa $1 $2 &
  ( reached ${c}_joint $((N_JOINT * 55 / 100)) && stage ${c}_more $gpu --stage dense_more --seed $seed --data "$D" --init "$W/${c}_long/state.pt" --wait-file "$W/${c}_joint/state.pt" --log-every 5 --steps $N_JOINT ) &
  while [ ! -e "$W/${c}_joint/state.pt" ]; do sleep 1; [ "$(date +%s)" -gt $Z ] && break; done
  for s in joint index; do python3 export.py --ckpt "$W/${c}_$s/state.pt" --out "$W/export_${c}_$s" --format bf16 --pieces 15 >> "$W/export.txt" 2>&1; done
  wait
  measure ${c}_joint $gpu "$W/${c}_joint/state.pt" --sections bpb,tail,asks,recovery_long --limit 4 &
  measure ${c}_more $gpu "$W/${c}_more/state.pt" --dense-only --sections bpb,tail,asks --ask-lengths 32768
  measure ${c}_long $gpu "$W/${c}_long/state.pt" --dense-only --sections bpb,tail,asks --ask-lengths 32768
  measure ${c}_index $gpu "$W/${c}_index/state.pt" --sections recovery_long --limit 4
  wait
}
# variant NAME SEED GPU OPTIONS...: CLSA with a changed configuration; the parent is measured as soon as it is there
variant() {
  local t=$1$2 gpu=$3
  sparse "$@" &
  measure ${t}_long $gpu "$W/${t}_long/state.pt" --dense-only --sections bpb,tail,asks --ask-lengths 32768
  wait
  measure ${t}_joint $gpu "$W/${t}_joint/state.pt" --sections bpb,tail,asks --ask-lengths 32768 --ask-plans dense,learned:1024
}
wide() { variant wide $1 $2 --set window=1024; }
deep() { variant deep $1 $2 --set n_self=8,n_cross=4,intermediate_size=1008; }
for chain in "$@"; do
  IFS=: read -r row seed gpu gpu2 <<< "$chain"
  $row $seed $gpu ${gpu2:-$gpu} &
done
wait
note end
