# store.sh PIECES DATA_SHORT DATA TOKENS: token stores and generated rows from PIECES/{train,heldout}.rec.zst, the short stage's store
# being the first TOKENS of the text. DATA_SHORT/tasks.done and DATA/ready say what is there, as chains.sh waits for it.
# SIZES, for a dry run: short stage's length and task rows, long stage's, evaluation's lengths and answers, processes
set -eu
P=$1; D1=$2; D=$3; N=$4
cd "$(dirname "$0")/.."
mkdir -p "$D1" "$D"
set -- ${SIZES:-4096 20000 32768 1600 4096,8192,32768 2000 56}
export TOKENIZERS_PARALLELISM=false
PROCS=$7
prepare() { python3 prepare.py --tokenizer tokenizer.json --procs "$PROCS" "$@"; }
python3 jobs/unzstd.py whole "$D/train.rec" "$P/train.rec.zst"
python3 jobs/unzstd.py whole "$D/heldout.rec" "$P/heldout.rec.zst"
prepare --data "$D"
head -c $((2 * N)) "$D/train.bin" > "$D1/train.bin"
cp "$D/train.docs.npy" "$D1/"
prepare --tasks-only --data "$D1" --task $1:$2
touch "$D1/tasks.done"; echo "$SECONDS s: short store and tasks"
prepare --tasks-only --data "$D1" --task $3:$4
mv "$D1/task$3.bin" "$D/"
prepare --tasks-only --data "$D" --ask $6 --ask-lengths $5
touch "$D/ready"; echo "$SECONDS s: all"
ls -la "$D1" "$D"
