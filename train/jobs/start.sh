# On a fresh machine: copy the tree, start the pipeline in a session of its own, check the kernels meanwhile.
set -u
rm -rf /tmp/run /tmp/w; cp -r "$(dirname "$0")/.." /tmp/run
setsid nohup bash /tmp/run/jobs/pipeline.sh /tmp/run/data/full /tmp/data2 /tmp/w "$@" < /dev/null > /tmp/pipeline.log 2>&1 &
sleep 6; cat /tmp/pipeline.log /tmp/w/*.txt
