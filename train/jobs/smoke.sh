# First look at a GPU: correctness of the kernels, tokens a second of every stage. About two minutes.
set -u
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
cd "$(dirname "$0")/.."
D=data/mini
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
t() { echo "== $1 at $SECONDS s"; }
t dense_short
python3 train.py --stage dense_short --data $D --out /tmp/s1 --deadline 45 --log-every 4 2>&1 | tail -25
t dense_long
python3 train.py --stage dense_long --data $D --out /tmp/s2 --deadline 40 --log-every 2 2>&1 | tail -25
I=""; [ -f /tmp/s2/state.pt ] && I="--init /tmp/s2/state.pt"
t "sparse stages, bench and evaluation side by side"
python3 train.py --stage sparse_index --data $D --out /tmp/s3 --deadline 45 --log-every 1 $I > $OUT/sparse_index.txt 2>&1 &
python3 train.py --stage sparse_joint --data $D --out /tmp/s4 --deadline 50 --log-every 1 $I > $OUT/sparse_joint.txt 2>&1 &
timeout 55 python3 bench.py $OUT/bench.json > $OUT/bench.txt 2>&1 &
[ -f /tmp/s2/state.pt ] && timeout 55 python3 evaluate.py --ckpt /tmp/s2/state.pt --data $D --tokenizer tokenizer.json --out $OUT/eval.json --limit 1 --needle-rows 1 --deadline 45 > $OUT/eval.txt 2>&1 &
wait
t end
tail -4 $OUT/sparse_index.txt; tail -4 $OUT/sparse_joint.txt; tail -60 $OUT/bench.txt; tail -12 $OUT/eval.txt
cp /tmp/s1/log.csv $OUT/dense_short.csv; cp /tmp/s2/log.csv $OUT/dense_long.csv
