# second_data.sh PART1_DIR PART2_DIR DATA2: joins the store's pieces and unpacks the held-out store.
set -eu
mkdir -p "$3"
cat "$1"/train.bin.xz* "$2"/train.bin.xz* | xz -T0 -dc > "$3/train.bin"
xz -dc "$2/heldout.bin.xz" > "$3/heldout.bin"
cp "$1/train.docs.npy" "$2"/heldout.docs.npy "$2"/heldout.meta.json "$3/"
touch "$3/ready"
ls -la "$3"
