# Two GPUs, two independent chains: the Transformer control on GPU 0; on GPU 1 CLSA with another seed, its sparse
# stages and the dense control of the last one. Each stage has a fixed number of steps; its process is started
# early, compiles, and waits for the weights of the one before.
# Usage: two_gpus.sh DATA_SHORT DATA WORK END      END: seconds from now by which all is over
# DATA_SHORT/tasks.done says that the short stage's store and task rows are there, DATA/ready the same of the rest.
# For a dry run on a CPU: EXTRA (options of train.py), STEPS="short long index joint", EVAL (options of evaluate.py), CORES.
set -u
D1=$1; D=$2; W=$3; S=$(date +%s); Z=$((S+$4))
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=4
set -- ${STEPS:-2131 680 602 350}
N_SHORT=$1 N_LONG=$2 N_INDEX=$3 N_JOINT=$4
EXTRA=${EXTRA:-} EVAL=${EVAL:-} CORES=${CORES:-0-3 4-7}
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
# stage RUN GPU OPTIONS...
stage() {
  local run=$1 gpu=$2 cores=${CORES% *}; shift 2
  [ $gpu = 1 ] && cores=${CORES#* }
  note "start $run"
  CUDA_VISIBLE_DEVICES=$gpu TORCHINDUCTOR_CACHE_DIR=/tmp/inductor$gpu taskset -c "$cores" nice -n -5 python3 train.py --out "$W/$run" --until $Z "$@" $EXTRA > "$W/$run.txt" 2>&1
  note "$run ended, $?"
}
# measure NAME GPU CHECKPOINT OPTIONS...: waits for the checkpoint
measure() {
  local name=$1 gpu=$2 ckpt=$3; shift 3
  while [ ! -e "$ckpt" ]; do sleep 1; [ "$(date +%s)" -gt $Z ] && return; done
  [ -f "$W/end" ] && Z=$(cat "$W/end")               # a later end, given meanwhile
  note "measure $name"
  CUDA_VISIBLE_DEVICES=$gpu TORCHINDUCTOR_CACHE_DIR=/tmp/inductor$gpu python3 evaluate.py --ckpt "$ckpt" --data "$D" --tokenizer tokenizer.json \
    --out "$W/eval_$name.json" --deadline $((Z-$(date +%s)-5)) "$@" $EVAL > "$W/eval_$name.txt" 2>&1
  note "measured $name, $?"
}
(
  stage t_short 0 --stage dense_short --arch transformer --set intermediate_size=992,rope_base=500000,doc_reset=false --data "$D1" --wait-file "$D1/tasks.done" --steps $N_SHORT &
  reached t_short $((N_SHORT * 86 / 100)) && stage t_long 0 --stage dense_long --data "$D" --init "$W/t_short/state.pt" --init-optimiser --wait-init --wait-file "$D/ready" --steps $N_LONG
  measure transformer 0 "$W/t_long/state.pt" --sections bpb,asks,tail
) &
(
  stage short 1 --stage dense_short --seed 2 --data "$D1" --wait-file "$D1/tasks.done" --steps $N_SHORT &
  ( reached short $((N_SHORT * 86 / 100)) && stage long 1 --stage dense_long --seed 2 --data "$D" --init "$W/short/state.pt" --init-optimiser --wait-init --wait-file "$D/ready" --steps $N_LONG ) &
  ( reached long $((N_LONG * 84 / 100)) && stage index 1 --stage sparse_index --seed 2 --data "$D" --init "$W/long/state.pt" --wait-init --log-every 5 --steps $N_INDEX ) &
  ( reached index $((N_INDEX * 52 / 100)) && stage joint 1 --stage sparse_joint --seed 2 --kl-chunks 8 --data "$D" --init "$W/index/state.pt" --wait-init --log-every 5 --steps $N_JOINT ) &
  ( reached joint $((N_JOINT * 55 / 100)) && stage more 1 --stage dense_more --seed 2 --data "$D" --init "$W/long/state.pt" --wait-file "$W/joint/state.pt" --log-every 5 --steps $N_JOINT ) &
  while [ ! -e "$W/joint/state.pt" ]; do sleep 1; [ "$(date +%s)" -gt $Z ] && break; done
  for s in joint index; do python3 export.py --ckpt "$W/$s/state.pt" --out "$W/export_$s" --format bf16 --pieces 15 >> "$W/export.txt" 2>&1; done
  wait
  measure more 1 "$W/more/state.pt" --dense-only --sections bpb,tail,asks --ask-lengths 32768
  measure parent 1 "$W/long/state.pt" --dense-only --sections bpb,tail,asks --ask-lengths 32768
  measure joint 1 "$W/joint/state.pt" --sections bpb,tail,asks,recovery_long --limit 4
  measure index 1 "$W/index/state.pt" --sections recovery_long --limit 4
) &
wait
note end
