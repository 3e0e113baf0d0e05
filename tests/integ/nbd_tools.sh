#!/usr/bin/env bash
# The NBD server against clients that share no code with ours: libnbd's tools and its Python binding, qemu-img, fio. The disk is a
# clone (differencing VHD) of a golden image; what it must read is kept in a flat file.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=$(cd "${BUILD:-$top/build/release}" && pwd)
python=/usr/bin/python3
dir=$(mktemp -d)
pid=
cleanup() {
	[ -z "$pid" ] || kill "$pid" 2>/dev/null || true
	[ -z "$pid" ] || wait "$pid" 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
fail() {
	echo "FAIL: $*"
	[ ! -e "$dir/log" ] || sed 's/^/blkd: /' "$dir/log"
	exit 1
}
scene() { echo "== $*"; }
cd "$dir"
export BLKD_RUN_DIR=$dir/run
blkctl() { "$BUILD/blkctl" "$@"; }
plug() { blkctl vbd-plug "$@" nbd=true; }

start_blkd() {
	"$BUILD/blkd" --run-dir "$dir/run" ${BLKD_ENGINE:+--engine "$BLKD_ENGINE"} >>"$dir/log" 2>&1 &
	pid=$!
	for _ in $(seq 200); do
		[ -S "$dir/run/ctl.sock" ] && blkctl vbd-list >/dev/null 2>&1 && return
		kill -0 "$pid" 2>/dev/null || fail "blkd died"
		sleep 0.05
	done
	fail "blkd does not answer"
}
stop_blkd() {
	kill -TERM "$pid"
	wait "$pid" || fail "blkd ended with $?"
	pid=
}

# A golden image of 64 MiB with data in some places, and a clone of it.
truncate -s 64M model
dd if=/dev/urandom of=model bs=1M count=5 seek=3 conv=notrunc status=none
dd if=/dev/urandom of=model bs=1k count=777 seek=40001 conv=notrunc status=none
"$BUILD/blkimg" convert --src-format raw model golden.vhd >/dev/null
"$BUILD/blkimg" create --parent golden.vhd leaf.vhd >/dev/null
start_blkd
uri=$(plug image="$dir/leaf.vhd" name="the leaf")

scene "nbdinfo sees what is offered"
nbdinfo --json "$uri" >info.json
$python - <<'PY' || fail "nbdinfo: $(cat info.json)"
import json
x = json.load(open("info.json"))
assert x["protocol"] == "newstyle-fixed" and x["structured"]
e = x["exports"][0]
assert e["export-name"] == "the leaf" and e["export-size"] == 64 << 20
assert "base:allocation" in e["contexts"]
assert not e["is_read_only"]
for k in ("can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"):
    assert e[k], k
assert (e["block_size_minimum"], e["block_size_preferred"], e["block_size_maximum"]) == (512, 4096, 32 << 20)
PY
nbdinfo --list "nbd+unix://?socket=$dir/run/nbd.sock" >list.txt
grep -q 'export="the leaf"' list.txt || fail "nbdinfo --list: $(cat list.txt)"

scene "what the map calls zero is zero"
nbdinfo --map --json "$uri" >map.json
$python - <<'PY' || fail "map: $(cat map.json)"
import json
disk = open("model", "rb").read()
at = 0
zeros = 0
for x in json.load(open("map.json")):
    assert x["offset"] == at
    if x["type"] & 2:
        assert not any(disk[at:at + x["length"]])
        zeros += x["length"]
    at += x["length"]
assert at == 64 << 20
assert zeros >= 50 << 20, zeros
PY
qemu-img map --output=json "$uri" >qemu-map.json

scene "nbdcopy and qemu-img read the clone"
nbdcopy "$uri" back
cmp back model
nbdcopy --connections=4 --requests=64 --request-size=1048576 "$uri" back
cmp back model
nbdcopy --synchronous --request-size=33554432 "$uri" back
cmp back model
qemu-img compare -f raw -F raw "$uri" model >/dev/null
qemu-img convert -f raw -O raw "$uri" back
cmp back model

scene "nbdcopy writes, with zeros"
truncate -s 64M model
dd if=/dev/urandom of=model bs=1M count=9 seek=11 conv=notrunc status=none
nbdcopy --flush model "$uri"
qemu-img compare -f raw -F raw "$uri" model >/dev/null
nbdcopy "$uri" back
cmp back model
nbdcopy --allocated --connections=1 --requests=128 model "$uri"
nbdcopy "$uri" back
cmp back model

scene "qemu-img writes"
rm model
truncate -s 64M model
dd if=/dev/urandom of=model bs=4k count=3000 seek=2000 conv=notrunc status=none
qemu-img convert -n -f raw -O raw model "$uri"
nbdcopy "$uri" back
cmp back model

scene "several connections with 64 requests in flight each"
URI=$uri $python - <<'PY' || fail "python"
import nbd, os, random
uri, size = os.environ["URI"], 64 << 20
disk = bytearray(open("model", "rb").read())
hs = []
for i in range(4):
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    assert h.get_size() == size and h.can_multi_conn()
    hs.append(h)
rng = random.Random(5)
done = 0
def completed(error):
    global done
    assert not error, error
    done += 1
    return 1
def drain(limit):
    while any(h.aio_in_flight() > limit for h in hs):
        for h in hs:
            if h.aio_in_flight() > limit:
                h.poll(-1)
# No two of a round overlap: each takes blocks of its own.
for rnd in range(12):
    blocks = rng.sample(range(size >> 16), 700)
    reads = []
    n = 0
    for b in blocks:
        h = hs[b % 4]
        off, length = (b << 16) + 512 * rng.randrange(64), 512 * rng.randrange(1, 64)
        what = rng.randrange(8)
        n += 1
        if what < 3:
            buf = nbd.Buffer(length)
            h.aio_pread(buf, off, completion=completed)
            reads.append((buf, off, length))
        elif what < 6:
            data = rng.randbytes(length)
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), off, completion=completed,
                         flags=nbd.CMD_FLAG_FUA if what == 5 and not b % 16 else 0)
            disk[off:off + length] = data
        elif what == 6:
            h.aio_zero(length, off, completion=completed, flags=nbd.CMD_FLAG_NO_HOLE if b % 3 else 0)
            disk[off:off + length] = bytes(length)
        else:
            h.aio_block_status(length, off, lambda *a: 0, completion=completed)
        drain(64)
    drain(0)
    assert done == n, (done, n)
    done = 0
    for buf, off, length in reads:
        assert buf.to_bytearray() == disk[off:off + length], off
    hs[rnd % 4].flush()
    other = hs[(rnd + 1) % 4]
    for off in range(0, size, 16 << 20):
        assert other.pread(16 << 20, off) == disk[off:off + (16 << 20)], off
try:
    hs[0].set_strict_mode(0)
    hs[0].pread(100, 1)
    raise SystemExit("an unaligned read was answered")
except nbd.Error as e:
    assert e.errnum == 22 or e.errno == "EINVAL", e
assert hs[0].pread(4096, 0) == disk[:4096]
for h in hs:
    h.shutdown()
open("model", "wb").write(disk)
PY

scene "fio writes and verifies"
fio --name=verify --ioengine=nbd --uri="$uri" --rw=randrw --bsrange=512-64k --bs_unaligned=0 --blockalign=512 --iodepth=32 --size=48m \
	--verify=crc32c --verify_fatal=1 --minimal >fio.txt 2>&1 || fail "fio: $(cat fio.txt)"

scene "a read-only export beside it refuses writes; busy and forced removal"
nbdcopy "$uri" model
ro=$(plug image="$dir/golden.vhd" mode=RO) || fail "the parent cannot be served read-only"
URI=$ro RW=$uri $python - <<'PY' || fail "python"
import nbd, os
h = nbd.NBD()
h.connect_uri(os.environ["URI"])
assert h.is_read_only()
h.set_strict_mode(0)
try:
    h.pwrite(bytes(512), 0)
    raise SystemExit("a write was accepted")
except nbd.Error as e:
    assert e.errno == "EPERM", e
PY
$python - "$uri" <<'PY' &
import nbd, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
open("connected", "w")
time.sleep(60)
PY
idle=$!
while [ ! -e connected ]; do sleep 0.05; done
if blkctl vbd-unplug vbd="the leaf" 2>unplug.txt; then fail "unplugged with a client"; fi
grep -q "1 client" unplug.txt || fail "$(cat unplug.txt)"
blkctl vbd-unplug vbd="the leaf" force=true >/dev/null
kill $idle
wait $idle 2>/dev/null || true

scene "what was written is in the image"
"$BUILD/blkimg" check leaf.vhd >/dev/null || fail "blkimg check"
"$BUILD/blkimg" compare leaf.vhd model --src-format raw || fail "the image differs from what was read"

scene "SIGTERM with clients ends cleanly, a restart serves the same"
uri=$(plug image="$dir/leaf.vhd")
fio --name=busy --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k --iodepth=16 --size=32m --time_based --runtime=20 >/dev/null 2>&1 &
busy=$!
sleep 1
stop_blkd
wait $busy 2>/dev/null || true
[ ! -e "$dir/run/nbd.sock" ] || fail "the socket stayed"
"$BUILD/blkimg" check leaf.vhd >/dev/null || fail "blkimg check"
start_blkd
uri=$(plug image="$dir/leaf.vhd")
nbdcopy "$uri" back
stop_blkd
"$BUILD/blkimg" compare leaf.vhd back --src-format raw || fail "the image differs from what was read"
if grep -E "ERROR|Sanitizer" log; then fail "the log"; fi
echo "nbd_tools: passed"
