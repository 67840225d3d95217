"""Work that several processes share: each writes rows to a file of its own, and the files are put together."""
import concurrent.futures
import os
import queue


def merge(into, shards):
    """Adds the shards' rows that are not there yet; whole lines only. Then the shards hold all rows."""
    lines = open(into).read().split("\n")[:-1] if os.path.exists(into) else []
    known = set(lines)
    for shard in shards:
        if os.path.exists(shard):
            lines += [line for line in open(shard).read().split("\n")[:-1] if line not in known and not known.add(line)]
    with open(into + ".part", "w") as out:
        out.write("".join(line + "\n" for line in lines))
    os.replace(into + ".part", into)
    for shard in shards:
        with open(shard, "w") as out:
            out.write("".join(line + "\n" for line in lines))


def share(into, shards, items, do):
    """do(item, file) for every item, len(shards) at a time, none twice; `into` holds all rows at the end, also when
    one fails. do() skips what its file holds already: a stopped run goes on where it was."""
    merge(into, shards)
    free = queue.Queue()
    for shard in shards:
        free.put(shard)

    def work(item):
        shard = free.get()
        try:
            return do(item, shard)
        finally:
            free.put(shard)

    with concurrent.futures.ThreadPoolExecutor(len(shards)) as pool:
        made = [pool.submit(work, item) for item in items]
    merge(into, shards)
    return [each.result() for each in made]
