# look.sh SECONDS [bring]: wait, then show where every stage stands; `bring` copies results to $OUT.
T=$1; sleep "$T"
cat /tmp/w/pipeline.txt | tail -n 20
for s in short long index joint; do [ -f /tmp/w/$s.txt ] && { echo "-- $s"; grep -v Warning /tmp/w/$s.txt | tail -n 7 | cut -c1-400; }; done
for s in eval_index eval_joint ngram; do [ -f /tmp/w/$s.txt ] && { echo "-- $s"; tail -n 8 /tmp/w/$s.txt | cut -c1-300; }; done
if [ "${2:-}" != "" ]; then
  ( cd /tmp/w && tar czf $OUT/logs.tgz --ignore-failed-read *.txt *.json */log.csv */end.json export_*/config.json 2>/dev/null )
  [ -d /tmp/w/export_$2 ] && for f in /tmp/w/export_$2/model.safetensors.*; do cp $f $OUT/$2.$(basename $f); done
  ls -la $OUT
fi
true
