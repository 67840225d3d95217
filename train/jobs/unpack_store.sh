# unpack_store.sh PIECES DATA_SHORT DATA TOKENS: the short stage's store is the first TOKENS of the text that has come
# by now (PIECES/train.rec.zst.*), with its task rows; the whole store, the held-out one and the evaluation's rows
# follow once PIECES/all is there.
set -u
P=$1; D1=$2; D=$3; N=$4
cd "$(dirname "$0")/.."
mkdir -p "$D1" "$D"
# SIZES, for a dry run: short stage's length and task rows, long stage's, evaluation's lengths and answers, processes
set -- ${SIZES:-4096 20000 32768 1600 4096,8192,32768 2000 28}
export TOKENIZERS_PARALLELISM=false
prepare() { python3 prepare.py --tokenizer tokenizer.json --procs "$PROCS" "$@"; }
PROCS=$7
python3 jobs/unzstd.py part "$D1/train.rec" "$P"/train.rec.zst.*
prepare --data "$D1" --splits train
truncate -s "<$((2 * N))" "$D1/train.bin"
prepare --tasks-only --data "$D1" --task $1:$2
touch "$D1/tasks.done"; echo "$SECONDS s: short store and tasks"
prepare --tasks-only --data "$D1" --task $3:$4
while [ ! -e "$P/all" ]; do sleep 1; done
python3 jobs/unzstd.py whole "$D/train.rec" "$P"/train.rec.zst.*
python3 jobs/unzstd.py whole "$D/heldout.rec" "$P/heldout.rec.zst"
prepare --data "$D"
mv "$D1/task$3.bin" "$D/"
prepare --tasks-only --data "$D" --ask $6 --ask-lengths $5
touch "$D/ready"; echo "$SECONDS s: all"
ls -la "$D1" "$D"
