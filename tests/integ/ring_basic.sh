#!/usr/bin/env bash
# blkd as a process serves rings of simguest processes through simxen: every ring order, ABI, kind of request; several guests at once; and what a
# death leaves: of a guest, of blkd by SIGTERM and by SIGKILL. After each, the images are checked, and what was answered is there.
# BLKD_ENGINE: the I/O engine.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=${BUILD:-$top/build/release}
engine=${BLKD_ENGINE:-auto}
PATH=$BUILD:$PATH
dir=$(mktemp -d)
blkd_pid='' simxen_pid='' full=''
cleanup() {
	local p
	for p in $(jobs -p); do kill -9 "$p" 2>/dev/null || true; done
	wait 2>/dev/null || true
	[ -z "$full" ] || umount "$dir/full" || true
	rm -rf "$dir"
}
trap cleanup EXIT
fail() {
	echo "FAIL: $*"
	tail -n 15 "$dir/blkd.log"
	exit 1
}
scene() { echo "== $* ($SECONDS s)"; }

wait_for() { # PATTERN FILE
	for _ in $(seq 400); do
		! grep -q -- "$1" "$2" 2>/dev/null || return 0
		sleep 0.05
	done
	fail "no \"$1\" in $2: $(cat "$2")"
}

start_blkd() {
	: >"$dir/blkd.log"
	blkd --config /dev/null --hyp sim --sim-dir "$dir/sim" --run-dir "$dir/run" --engine "$engine" >>"$dir/blkd.log" 2>&1 &
	blkd_pid=$!
	wait_for 'ready: control socket' "$dir/blkd.log"
}
stop_blkd() {
	local rc=0
	kill -TERM "$blkd_pid"
	wait "$blkd_pid" || rc=$?
	[ $rc -eq 0 ] || fail "blkd ended with $rc after SIGTERM"
}
guest() {
	local rc=0
	simguest --dir "$dir/sim" --timeout 30 --io-timeout 60 "$@" >"$dir/guest.log" 2>&1 || rc=$?
	[ $rc -eq 0 ] && return
	cat "$dir/guest.log"
	fail "guest: exit $rc: $*"
}
clean() { blkimg check --bitmaps "$1" >"$dir/check.log" || fail "$(cat "$dir/check.log")"; }

# A guest under way: waits until it has done some work.
reads_of() { # VBD
	blkctl --socket "$dir/run/ctl.sock" --json stats vbd="$1" 2>/dev/null |
		python3 -c 'import json,sys; v = json.load(sys.stdin)["vbds"][0]; print(v.get("stats", {"ops": {"write": {"requests": 0}}})["ops"]["write"]["requests"])' 2>/dev/null || echo 0
}
wait_busy() { # VBD REQUESTS
	for _ in $(seq 400); do
		[ "$(reads_of "$1")" -lt "$2" ] || return 0
		sleep 0.02
	done
	fail "$1 does no work: $(tail -n 5 "$dir/guest.log")"
}

# A golden image of 64 MiB with data in it, and clones.
head -c 24M /dev/urandom >"$dir/golden.raw"
truncate -s 64M "$dir/golden.raw"
blkimg convert "$dir/golden.raw" "$dir/golden.vhd" >/dev/null
golden_sum=$(sha256sum <"$dir/golden.vhd")
clone() {
	rm -f "$dir/$1.vhd" "$dir/$1.state"
	blkimg snapshot "$dir/golden.vhd" "$dir/$1.vhd" >/dev/null
}
disk() { # NAME [NODES]
	echo "--disk vhd:$dir/$1.vhd${2:-} --base $dir/golden.raw --state $dir/$1.state"
}

mkdir "$dir/sim" "$dir/run"
simxen --dir "$dir/sim" >"$dir/simxen.log" 2>&1 &
simxen_pid=$!
wait_for '^simxen: ready' "$dir/simxen.log"
export XENSTORED_PATH=$dir/sim/socket
start_blkd

mixed="mix=5:4:1:1,bs=512-64k,ios=600"
all="readall,bs=128k"

for order in 0 1 2 3 4; do
	for abi in x86_64 x86_32 native; do
		scene "order $order, ABI $abi"
		clone a
		# shellcheck disable=SC2046
		guest $(disk a) --ring-order $order --abi $abi --phase "$mixed" --phase $all
		clean "$dir/a.vhd"
	done
done

scene "kinds of requests, on one clone that is closed and opened between them"
clone b
# shellcheck disable=SC2046
{
	guest $(disk b) --phase "rw=randrw,bs=4k-1M,iodepth=8,ios=150,force-indirect" --phase $all
	guest $(disk b) --no-indirect --phase "rw=randrw,bs=4k-256k,ios=300" --phase $all
	guest $(disk b) --max-segments 32 --phase "rw=randrw,bs=4k-256k,ios=300" --phase $all
	guest $(disk b ,blkd-barrier=1) --phase "rw=randwrite,bs=512-16k,ios=300,barrier,flush-every=9" --phase $all
	guest $(disk b) --phase "mix=2:2:4:1,bs=512-1M,ios=400" --phase $all
	guest $(disk b) --phase "$mixed,unaligned,size=8M" --phase "$all,unaligned"
	guest $(disk b) --phase "mix=4:4:1,bs=4k-32k,size=1M,ios=2000,overlap" --phase $all
	guest $(disk b) --queues 2 --ring-order 2 --phase "$mixed,iodepth=128" --phase $all
	guest $(disk b) --queues 4 --phase "mix=4:4:1,bs=4k-32k,size=1M,ios=2000,overlap" --phase $all
	guest $(disk b) --regrant --poll --phase "$mixed" --phase $all
	guest $(disk b) --cycles 5 --phase "$mixed"
	guest $(disk b) --verify-only
}
clean "$dir/b.vhd"

scene "four guests on four clones at once"
pids=()
for i in 1 2 3 4; do
	clone "four$i"
	# shellcheck disable=SC2046
	simguest --dir "$dir/sim" $(disk "four$i") --ring-order "$i" --queues $((1 + i % 2)) --phase "$mixed,ios=2000" --phase "$all,marks=8" --phase $all >"$dir/four$i.log" 2>&1 &
	pids[i]=$!
done
for i in 1 2 3 4; do
	wait "${pids[i]}" || fail "guest $i: $(cat "$dir/four$i.log")"
	clean "$dir/four$i.vhd"
done

scene "one guest with a clone, a raw and a fixed disk"
clone c
rm -f "$dir/c.state"*
truncate -s 32M "$dir/c.raw"
blkimg create --format vhd-fixed "$dir/c-fixed.vhd" 32M >/dev/null
guest --disk "raw:$dir/c.raw" --disk "vhd-fixed:$dir/c-fixed.vhd" --base-zero --phase "$mixed" --phase $all
clean "$dir/c.vhd"

scene "read-only: reads are right, writes fail, the file does not change"
before=$(sha256sum <"$dir/b.vhd")
guest --disk "vhd:$dir/golden.vhd,mode=r" --base "$dir/golden.raw" --phase $all
guest --disk "vhd:$dir/golden.vhd,mode=r" --base "$dir/golden.raw" --force-write --expect-errors --phase "rw=randwrite,ios=100" --phase $all
[ "$before" = "$(sha256sum <"$dir/b.vhd")" ] || fail "a clone changed"

scene "what cannot be served is refused, with the reason in xenstore"
refused() { # WHAT PATTERN
	local rc=0
	simguest --dir "$dir/sim" --domid 900 --timeout 5 --disk "$1" --phase rw=read,ios=1 >"$dir/guest.log" 2>&1 || rc=$?
	[ $rc -eq 3 ] || fail "$1: exit $rc"
	grep -q 'the backend says' "$dir/guest.log" && grep -q -- "$2" "$dir/guest.log" || fail "$1: $(cat "$dir/guest.log")"
}
: >"$dir/empty.vhd"
truncate -s 4M "$dir/zeros.vhd"
head -c 4M /dev/urandom >"$dir/random.vhd"
head -c 1000 "$dir/b.vhd" >"$dir/short.vhd"
truncate -s 1000 "$dir/odd.raw"
refused "vhd:$dir/missing.vhd" 'missing.vhd'
refused "vhd:$dir/empty.vhd" 'empty.vhd'
refused "vhd:$dir/zeros.vhd" 'zeros.vhd'
refused "vhd:$dir/random.vhd" 'random.vhd'
refused "vhd:$dir/short.vhd" 'short.vhd'
refused "raw:$dir/odd.raw" 'odd.raw'
refused "vhd:$dir" "$dir"
refused "qcow2:$dir/b.vhd" 'qcow2'
refused "vhd:relative.vhd" 'relative.vhd'
refused "vhd:$dir/golden.vhd" 'golden.vhd' # a parent is not written
mkdir "$dir/moved"
cp "$dir/b.vhd" "$dir/moved/orphan.vhd"
refused "vhd:$dir/moved/orphan.vhd" 'orphan.vhd'
refused "vhd:$dir/b.vhd,mode=w,blkd-write-mode=sideways" 'write-mode'

# Killed, it cannot say what it wrote: its successor writes all, and trusts nothing. Abandoned, it has kept its state.
scene "a guest that dies in mid I/O: the image is closed by itself, and the next guest finds what was answered"
gone() { # VBD: its image is not open; the nodes are the toolstack's to remove
	for _ in $(seq 400); do
		blkctl --socket "$dir/run/ctl.sock" --json vbd-list |
			python3 -c 'import json,sys; sys.exit(any(v["vbd"] == sys.argv[1] and v["size"] for v in json.load(sys.stdin)))' "$1" && return
		sleep 0.02
	done
	fail "the image of $1 stays open: $(blkctl --socket "$dir/run/ctl.sock" vbd-list)"
}
for i in 1 2 3; do
	clone d
	simguest --dir "$dir/sim" --domid $((100 + i)) --disk "vhd:$dir/d.vhd" --base "$dir/golden.raw" --queues 2 --phase "rw=randrw,bs=4k-64k,runtime=60,iodepth=64" >"$dir/guest.log" 2>&1 &
	pid=$!
	wait_busy "$((100 + i))/51712" 100
	kill -9 $pid
	wait $pid 2>/dev/null || true
	gone "$((100 + i))/51712"
	clean "$dir/d.vhd"
	guest --disk "vhd:$dir/d.vhd" --state "$dir/d.state" --phase "rw=write,bs=256k" --phase $all
	# shellcheck disable=SC2046
	guest $(disk d) --domid $((110 + i)) --abandon --phase "rw=randwrite,bs=512-64k,ios=500"
	gone "$((110 + i))/51712"
	# shellcheck disable=SC2046
	guest $(disk d) --verify-only
	clean "$dir/d.vhd"
done

scene "SIGTERM under load: drains, closes clean, and a second life goes on"
clone e
# shellcheck disable=SC2046
simguest --dir "$dir/sim" --domid 200 $(disk e) --expect-close --phase "rw=randrw,bs=4k-64k,runtime=60,iodepth=64,flush-every=50" >"$dir/guest.log" 2>&1 &
pid=$!
wait_busy 200/51712 200
stop_blkd
wait $pid || fail "guest: $(cat "$dir/guest.log")"
clean "$dir/e.vhd"
blkimg check --json "$dir/e.vhd" | python3 -c 'import json,sys; r = json.load(sys.stdin); sys.exit(r["errors"] + r["unclean"] + r["warnings"])' || fail "not closed clean"
start_blkd
# shellcheck disable=SC2046
guest $(disk e) --verify-only

scene "SIGKILL under load: what was answered survives"
for mode in through back auto; do
	clone f
	: >"$dir/guest.log"
	# shellcheck disable=SC2046
	simguest --dir "$dir/sim" --domid 300 $(disk f ,blkd-write-mode=$mode) --expect-close --expect-errors --io-timeout 3 --timeout 2 \
		--phase "mix=2:5:1:0,bs=512-64k,runtime=60,iodepth=32,flush-every=40" >"$dir/guest.log" 2>&1 &
	pid=$!
	wait_busy 300/51712 300
	kill -9 "$blkd_pid"
	wait "$blkd_pid" 2>/dev/null || true
	kill -TERM $pid
	wait $pid || true
	[ -s "$dir/f.state" ] || fail "the guest kept no state: $(cat "$dir/guest.log")"
	start_blkd
	# shellcheck disable=SC2046
	guest $(disk f) --phase $all --phase "$mixed" --phase $all
	clean "$dir/f.vhd"
done

scene "the disk fills up: the write fails, the guest goes on, the image stays valid"
truncate -s 48M "$dir/full.ext4"
mke2fs -q -t ext4 -O ^has_journal "$dir/full.ext4"
mkdir "$dir/full"
mount -o loop "$dir/full.ext4" "$dir/full"
full=1
blkimg create "$dir/full/disk.vhd" 256M >/dev/null
rc=0
simguest --dir "$dir/sim" --disk "vhd:$dir/full/disk.vhd" --base-zero --state "$dir/full.state" --expect-errors --json "$dir/full.json" \
	--phase "rw=write,bs=64k" --phase $all --phase "rw=randread,bs=4k-64k,ios=500" >"$dir/guest.log" 2>&1 || fail "guest: $? $(cat "$dir/guest.log")"
python3 - "$dir/full.json" <<'P' || fail "the disk did not fill up: $(cat "$dir/guest.log")"
import json, sys
d = json.load(open(sys.argv[1]))["disks"][0]
w = d["phases"][0]["ops"]["write"]
assert 0 < w["errors"] < w["ops"], w
assert d["phases"][1]["ops"]["read"]["errors"] == 0
P
clean "$dir/full/disk.vhd"
guest --disk "vhd:$dir/full/disk.vhd" --base-zero --state "$dir/full.state" --verify-only
stop_blkd
clean "$dir/full/disk.vhd"
umount "$dir/full"
full=''

[ "$golden_sum" = "$(sha256sum <"$dir/golden.vhd")" ] || fail "golden.vhd has changed"
# The rings of a killed blkd are kept for a successor that resumes them.
left=$(find "$dir/run" -type f ! -name 'ring-*.journal')
[ -z "$left" ] || fail "left behind: $left"
kill -TERM "$simxen_pid"
wait "$simxen_pid"
echo "all good"
