#!/usr/bin/env bash
# blkd as a program, and its control socket through blkctl: options and config file, one daemon per directory, every verb with good and bad
# input, exit codes, and clients that speak no JSON. A refusal is one sentence and changes nothing.
# BLKD_ENGINE: the I/O engine.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=${BUILD:-$top/build/release}
engine=${BLKD_ENGINE:-auto}
PATH=$BUILD:$PATH
dir=$(mktemp -d)
cleanup() {
	local p
	for p in $(jobs -p); do kill -9 "$p" 2>/dev/null || true; done
	wait 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
fail() {
	echo "FAIL: $*"
	exit 1
}
scene() { echo "== $*"; }

# Exit code and one line on stderr that matches; nothing on stdout.
refused() { # EXIT PATTERN COMMAND...
	local code=$1 pattern=$2 rc=0
	shift 2
	timeout 20 "$@" >"$dir/out" 2>"$dir/err" || rc=$?
	[ $rc -eq "$code" ] || fail "$*: exit $rc, not $code: $(cat "$dir/out" "$dir/err")"
	grep -q -- "$pattern" "$dir/err" || fail "$*: said \"$(cat "$dir/err")\", nothing like \"$pattern\""
}
# The same, in exactly one line.
refused_line() {
	refused "$@"
	[ "$(wc -l <"$dir/err")" -eq 1 ] || fail "$*: more than a line: $(cat "$dir/err")"
	[ ! -s "$dir/out" ] || fail "$*: refused, and yet: $(cat "$dir/out")"
}
wait_for() { # PATTERN FILE
	for _ in $(seq 400); do
		! grep -q -- "$1" "$2" 2>/dev/null || return 0
		sleep 0.05
	done
	fail "no \"$1\" in $2: $(cat "$2")"
}
start() { # RUN-DIR [OPTION...]
	local run=$1
	shift
	: >"$dir/log"
	blkd --config /dev/null --hyp none --engine "$engine" --run-dir "$run" "$@" >"$dir/log" 2>&1 &
	pid=$!
	wait_for 'ready: control socket' "$dir/log"
}
stop() {
	local rc=0
	kill "-${1:-TERM}" "$pid"
	wait "$pid" || rc=$?
	[ $rc -eq 0 ] || fail "blkd ended with $rc: $(cat "$dir/log")"
}
export BLKD_RUN_DIR=$dir/run
ctl() { blkctl "$@"; }
value() { python3 -c 'import json,sys; v = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"; }

scene "options"
blkd --help | grep -q '^usage: blkd' || fail "--help"
refused_line 2 'run-dri' blkd --run-dri "$dir/run"
grep -q 'run-dir' "$dir/err" || fail "no hint at the right name: $(cat "$dir/err")"
refused_line 2 'engine' blkd --engine
refused_line 1 'engine' blkd --config /dev/null --run-dir "$dir/run" --hyp none --engine warp
refused_line 1 'write-mode' blkd --config /dev/null --run-dir "$dir/run" --hyp none --write-mode sideways
refused_line 1 'log-level' blkd --config /dev/null --run-dir "$dir/run" --hyp none --log-level loud
refused_line 1 'buffers' blkd --config /dev/null --run-dir "$dir/run" --hyp none --buffers -1
refused_line 1 'idle-commit' blkd --config /dev/null --run-dir "$dir/run" --hyp none --idle-commit 0
refused_line 1 'run-dir' blkd --config /dev/null --run-dir "$dir/none/run" --hyp none
refused_line 1 'sim-dir' blkd --config /dev/null --run-dir "$dir/run" --hyp sim
refused 1 'no-such-sim' blkd --config /dev/null --run-dir "$dir/run" --hyp sim --sim-dir "$dir/no-such-sim"
refused 1 'vmware' blkd --config /dev/null --run-dir "$dir/run" --hyp vmware
refused 1 'sock' blkd --config /dev/null --hyp none --run-dir "$dir/$(printf 'a%.0s' $(seq 120))"

scene "config file"
config() { printf '%b' "$1" >"$dir/conf"; }
config "# a comment\n\nrun-dir = $dir/run\nengine=$engine\n\n  log-level =  debug  # more\nhyp = none\n"
blkd --config "$dir/conf" --log-level info >"$dir/log" 2>&1 &
pid=$!
wait_for "ready: control socket $dir/run/ctl.sock" "$dir/log"
stop
refused_line 2 'absent' blkd --config "$dir/absent"
config "hyp = none\nrun-dri = $dir/run\n"
refused_line 2 'conf: line 2' blkd --config "$dir/conf"
config "hyp = none\n\nrun-dir\n"
refused_line 2 'conf: line 3' blkd --config "$dir/conf"
config "hyp = none\nhyp = sim\n\n"
blkd --config "$dir/conf" --hyp none --run-dir "$dir/run" >"$dir/log" 2>&1 &
pid=$!
for _ in $(seq 100); do kill -0 $pid 2>/dev/null || break; grep -q ready "$dir/log" && break; sleep 0.05; done
kill $pid 2>/dev/null || true
wait $pid || grep -q 'conf: line 2' "$dir/log" || fail "a key given twice: $(cat "$dir/log")"
head -c 6000 /dev/zero | tr '\0' 'x' >"$dir/conf"
refused_line 2 'conf: line 1' blkd --config "$dir/conf"
head -c 3000 /dev/urandom >"$dir/conf"
refused 2 'conf' blkd --config "$dir/conf"
refused 2 "$dir" blkd --config "$dir"

scene "one daemon for a directory; sockets of a dead one"
rm -rf "$dir/run"
start "$dir/run"
[ "$(stat -c %a "$dir/run")" = 700 ] || fail "the run directory is open to others"
[ "$(stat -c %a "$dir/run/ctl.sock")" = 600 ] && [ "$(stat -c %a "$dir/run/nbd.sock")" = 600 ] || fail "the sockets are open to others"
refused 1 'another' blkd --config /dev/null --hyp none --run-dir "$dir/run"
ctl vbd-list >/dev/null || fail "the first one suffered"
kill -9 "$pid"
wait "$pid" 2>/dev/null || true
[ -S "$dir/run/ctl.sock" ] || fail "where did the socket go?"
refused_line 3 'no blkd answers' blkctl vbd-list
start "$dir/run"
ctl vbd-list >/dev/null
stop INT
[ -z "$(find "$dir/run" -type s)" ] || fail "sockets left: $(ls "$dir/run")"

scene "blkctl's own usage"
blkctl --help | grep -q '^usage: blkctl' || fail "--help"
refused 2 'usage' blkctl
refused 2 'unknown option' blkctl --nonsense vbd-list
refused_line 2 'key=value' blkctl vbd-plug image
refused_line 2 'key=value' blkctl vbd-plug =x
refused_line 2 'twice' blkctl vbd-plug image=a image=b
refused_line 2 'UTF-8' blkctl vbd-plug name=$'\xff'
refused_line 3 'no blkd answers' blkctl --socket "$dir/none" vbd-list
refused_line 3 'no blkd answers' blkctl --socket "/$(printf 'a%.0s' $(seq 200))" vbd-list
BLKD_RUN_DIR=$dir/elsewhere refused_line 3 "$dir/elsewhere/ctl.sock" blkctl vbd-list

scene "verbs"
start "$dir/run"
head -c 8M /dev/urandom >"$dir/disk.raw"
blkimg convert "$dir/disk.raw" "$dir/golden.vhd" >/dev/null
blkimg snapshot "$dir/golden.vhd" "$dir/leaf.vhd" >/dev/null
ctl help | grep -q '^vbd-plug' || fail "help"
[ "$(ctl --json help | value 'len(v)')" -ge 5 ] || fail "help --json"
[ "$(ctl --json vbd-list)" = "[]" ] || fail "something is served"
uri=$(cd "$dir" && ctl vbd-plug image=golden.vhd nbd=true mode=RO)
[ "$uri" = "nbd+unix:///golden?socket=$dir/run/nbd.sock" ] || fail "URI: $uri"
nbdcopy "$uri" "$dir/out.raw"
cmp "$dir/out.raw" "$dir/disk.raw"
# A name that a URI cannot hold as it is; and a second name for the same disk.
uri=$(ctl vbd-plug image="$dir/leaf.vhd" nbd=true name='two words/ä' write-mode=through)
nbdinfo "$uri" >/dev/null || fail "URI: $uri"
ctl vbd-plug image="$dir/leaf.vhd" nbd=true name=again >/dev/null
[ "$(ctl --json vbd-list | value 'sorted(x["vbd"] for x in v)')" = "['again', 'golden', 'two words/ä']" ] || fail "list: $(ctl vbd-list)"
ctl --minimal vbd-list | grep -q golden || fail "--minimal"
[ "$(ctl --json stats vbd=golden | value 'v["vbds"][0]["stats"]["ops"]["read"]["bytes"] >= 8 << 20')" = True ] || fail "stats"
ctl stats | grep -q 'metadata_cache' || fail "stats of all"

scene "what vbd-plug refuses changes nothing"
before=$(ctl --json vbd-list)
: >"$dir/empty.vhd"
mkdir "$dir/sub"
cp "$dir/leaf.vhd" "$dir/sub/orphan.vhd"
plug() { refused_line 1 "$1" blkctl vbd-plug "${@:2}"; }
plug 'image' nbd=true
plug 'missing.vhd' image="$dir/missing.vhd" nbd=true
plug 'empty.vhd' image="$dir/empty.vhd" nbd=true
plug 'orphan.vhd' image="$dir/sub/orphan.vhd" nbd=true
plug 'format=qcow2' image="$dir/leaf.vhd" nbd=true format=qcow2
plug 'served as vhd' image="$dir/golden.vhd" nbd=true format=vhd-fixed mode=RO name=x
plug 'mode=rw' image="$dir/leaf.vhd" nbd=true mode=rw
plug 'nbd=yes' image="$dir/leaf.vhd" nbd=yes
plug 'for whom' image="$dir/leaf.vhd"
plug 'two calls' image="$dir/leaf.vhd" nbd=true domid=5 device=xvda
plug 'device' image="$dir/leaf.vhd" domid=5
plug 'domid=0' image="$dir/leaf.vhd" domid=0 device=xvda
plug 'domid=99999' image="$dir/leaf.vhd" domid=99999 device=xvda
plug 'device=nvme0' image="$dir/leaf.vhd" domid=5 device=nvme0
plug 'hypervisor' image="$dir/leaf.vhd" domid=5 device=xvda
plug 'write-mode=sideways' image="$dir/leaf.vhd" nbd=true write-mode=sideways
plug 'colour' image="$dir/leaf.vhd" nbd=true colour=red
plug 'golden' image="$dir/golden.vhd" nbd=true mode=RO
plug 'being read by nbd:golden' image="$dir/golden.vhd" nbd=true name=writable
plug 'name' image="$dir/golden.vhd" nbd=true mode=RO name="$(printf 'n%.0s' $(seq 300))"
refused_line 1 'unknown verb' blkctl vbd-plugg
refused_line 1 'colour' blkctl vbd-list colour=red
refused_line 1 'vbd' blkctl vbd-unplug
refused_line 1 'nobody' blkctl vbd-unplug vbd=nobody
refused_line 1 'nobody' blkctl stats vbd=nobody
refused_line 1 'force=perhaps' blkctl vbd-unplug vbd=golden force=perhaps
[ "$(ctl --json vbd-list)" = "$before" ] || fail "the list has changed"

scene "vbd-unplug with a client connected"
PATH=/usr/bin:$PATH nbdsh -u "nbd+unix:///golden?socket=$dir/run/nbd.sock" -c 'import time; print("here", flush=True); h.pread(512, 0); time.sleep(20)' >"$dir/nbdsh" 2>&1 &
client=$!
wait_for here "$dir/nbdsh"
refused_line 1 'client' blkctl vbd-unplug vbd=golden
ctl vbd-unplug vbd=golden force=true >/dev/null
refused_line 1 'golden' blkctl vbd-unplug vbd=golden
plug 'is the parent of' image="$dir/golden.vhd" nbd=true # and so is never written
kill $client 2>/dev/null || true
wait $client 2>/dev/null || true

scene "clients that speak no JSON-RPC"
python3 - "$dir/run/ctl.sock" <<'P'
import json, os, socket, sys

def session(data, answers, half=False):
    """Sends data; reads so many lines (None: until the end)."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    s.connect(sys.argv[1])
    try:
        s.sendall(data)
        if half:
            s.shutdown(socket.SHUT_WR)
        f = s.makefile("rb")
        lines = [f.readline() for _ in range(answers)] if answers is not None else f.readlines()
    except (BrokenPipeError, ConnectionResetError):
        lines = []
    s.close()
    return [json.loads(l) for l in lines if l]

def error(data):
    [a] = session(data + b"\n", 1)
    assert a["jsonrpc"] == "2.0" and a["error"]["message"] and "result" not in a, a
    return a["error"]["code"]

call = lambda **m: json.dumps({"jsonrpc": "2.0", "id": 1, **m}).encode()
for bad in b"", b"garbage", b"{", b"[]", b"7", b'"x"', b"null", b"\xff\xfe", b"{}" * 3, b"[" * 5000, b'{"a":1,"a":2}', b"\0" * 100, b'{"id":"\\u0000"}':
    assert error(bad) in (-32700, -32600), bad
assert error(b"{}") == -32600
assert error(call(method=7)) == -32600
assert error(json.dumps({"method": "vbd-list", "id": 1}).encode()) == -32600
assert error(call(method="x" * 5000)) == -32601
for params in [], "x", 7, {"image": 7}, {"image": None}, {"image": {"a": "b"}}, {"x" * 3000: "y"}:
    assert error(call(method="vbd-plug", params=params)) == -32602, params
assert error(call(method="vbd-plug", params={"image": "relative.vhd", "nbd": "true"})) < 0
assert error(call(method="vbd-plug", params={"image": "/" + "x" * 5000, "nbd": "true"})) < 0
assert error(call(method="vbd-plug", params={"image": "/dev/null", "nbd": "true"})) < 0
# An id comes back as it was.
for i in "x", 7, None, [1], {"a": 1}:
    [a] = session(json.dumps({"jsonrpc": "2.0", "id": i, "method": "vbd-list"}).encode() + b"\n", 1)
    assert a["id"] == i and "result" in a, a
# Several in one piece; one byte at a time; too long a line ends the connection; half a line does nothing.
assert len(session((call(method="vbd-list") + b"\n") * 50, 50)) == 50
assert session(b"x" * 200000, None) == []
assert session(call(method="vbd-list"), None, half=True) == []
s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])
for c in call(method="vbd-list") + b"\n":
    s.sendall(bytes([c]))
assert b'"result"' in s.makefile("rb").readline()
# More clients at once than there is room for: some are turned away, and afterwards there is room again.
many = []
for _ in range(60):
    c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]); many.append(c)
for c in many:
    c.close()
s.close()
P
for _ in $(seq 100); do ctl vbd-list >/dev/null 2>&1 && break; sleep 0.05; done
ctl vbd-list >/dev/null || fail "no room again"

scene "SIGTERM with clients that do not read: ends all the same"
python3 - "$dir/run/ctl.sock" "$dir/deaf" <<'P' &
import json, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.setblocking(False)
line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "help"}).encode() + b"\n"
end = time.time() + 3
while time.time() < end:
    try:
        s.send(line * 100)
    except BlockingIOError:
        time.sleep(0.1)
open(sys.argv[2], "w").write("deaf\n")
time.sleep(60)
P
deaf=$!
wait_for deaf "$dir/deaf"
kill -TERM "$pid"
for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
! kill -0 "$pid" 2>/dev/null || fail "blkd does not end"
wait "$pid" || fail "blkd ended with $?"
kill $deaf
wait $deaf 2>/dev/null || true
blkimg check "$dir/leaf.vhd" >/dev/null || fail "the leaf was not closed clean"
left=$(find "$dir/run" -type f)
[ -z "$left" ] || fail "left behind: $left"
echo "all good"
