"""Compare a merge from an object store to an object store with a plain copy of the same bytes by the store's client.

    python scripts/benchmarks/merge_store.py

The store is moto's server of S3 in a process of its own on this machine. The merge reads two members and writes their
mean; the copy, by boto3's transfers, downloads two objects of their sizes and uploads one, through memory. Each run is
a process of its own, which times itself without its imports; the two take turns. Beside it: the peak memory of the
merge, for members of this size and for those of a quarter of it.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request

import _common
import numpy as np

from soups.formats import write_safetensors
from soups.stores import PART, store_path

GOAL = 0.7
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
MERGE = """
import json, re, sys, time
from soups import merging
from soups.stores import store_path
first, second, out = sys.argv[1:]
weights = "parameters: {weight: 1.0}"
text = f"merge_method: linear\\nmodels: [{{model: {first}, {weights}}}, {{model: {second}, {weights}}}]"
begin = time.perf_counter()
plan = merging.plan(merging.parse_recipe(text), merging.open_model)
merging.merge_to_folder(plan, out, threads=merging.threads_for(plan, out))
seconds = time.perf_counter() - begin
store_path(out).delete_below()
print(json.dumps([seconds, 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])]))
"""
COPY = """
import io, json, os, re, sys, time
import boto3
bucket, *names, out = sys.argv[1:]
client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
begin = time.perf_counter()
for name in names:
    content = io.BytesIO()
    client.download_fileobj(bucket, name, content)
content.seek(0)
client.upload_fileobj(content, bucket, out)
seconds = time.perf_counter() - begin
client.delete_object(Bucket=bucket, Key=out)
print(json.dumps([seconds, 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])]))
"""


def main():
    """Run the benchmark."""
    options = _options()
    with _server(), tempfile.TemporaryDirectory(dir=options.scratch, prefix="merge_store_") as folder:
        for size in (options.megabytes, options.megabytes // 4):
            _put_members(folder, size)
        taken = {"merge": [], "copy": []}
        peaks = []
        for _ in range(options.repeats):
            seconds, peak = _merge(options.megabytes)
            taken["merge"].append(seconds)
            peaks.append(peak)
            names = [f"{name}{options.megabytes}/model.safetensors" for name in "ab"]
            taken["copy"].append(_run(COPY, "bucket", *names, "copied")[0])
            print({name: round(times[-1], 2) for name, times in taken.items()}, flush=True)
        quarter = max(_merge(options.megabytes // 4)[1] for _ in range(2))
    ratios = [copy / merge for merge, copy in zip(taken["merge"], taken["copy"], strict=True)]
    summary = {name: _common.summarize(times) for name, times in taken.items()}
    rows = [[name, times["median"], times["min"], times["max"]] for name, times in summary.items()]
    _common.table(f"two members of {options.megabytes} MB", ["", "median s", "min s", "max s"], rows)
    ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"throughput {ratio:.2f} [{low:.2f}-{high:.2f}] of the copy's, goal at least {GOAL}")
    print(f"peak memory {max(peaks) / 1e6:.0f} MB; of members of a quarter {quarter / 1e6:.0f} MB")
    record = {"machine": _common.machine(), "settings": _common.settings(options), "goal": GOAL, "ratio": ratio}
    record |= {"ratios": ratios, "seconds": summary, "peak_bytes": {"whole": max(peaks), "quarter": quarter}}
    _common.write(options.output, record)


@contextlib.contextmanager
def _server():
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        os.environ.update(KEYS, AWS_ENDPOINT_URL=endpoint)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
        yield
        server.stdin.close()


def _put_members(folder, megabytes):
    """Write two members of a few large tensors and many small ones to the store."""
    rows, path = megabytes * 10**6 // 8 // 4096, os.path.join(folder, "model.safetensors")
    for seed, name in enumerate("ab"):
        draw = np.random.default_rng(seed).standard_normal
        leaves = {f"blocks.{block}.kernel": draw((rows, 1024), np.float32) for block in range(8)}
        leaves |= {f"blocks.{block}.bias": draw(1024, np.float32) for block in range(8)}
        write_safetensors(path, leaves)
        place = store_path(f"s3://bucket/{name}{megabytes}") / "model.safetensors"
        with open(path, "rb") as content:
            place.upload(iter(lambda content=content: content.read(PART), b""), os.path.getsize(path))


def _merge(megabytes):
    return _run(MERGE, *[f"s3://bucket/{name}{megabytes}" for name in "ab"], f"s3://bucket/out{megabytes}")


def _run(code, *words):
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256, help="of one member (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", help="where the members are made (default: the temporary folder)")
    parser.add_argument("--output", default="runs/benchmarks/merge_store.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
