#!/usr/bin/env bash
# Every verb of blkimg with good and with bad input. Bad input means: one line that says why, exit code 1 (2 for wrong usage), and not a byte of
# the file changed. Other programs judge what we write: qemu-img single images, libvhdi a chain.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=${BUILD:-$top/build/release}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export BLKD_RUN_DIR=$dir/run
mkdir "$BLKD_RUN_DIR"
blkimg() { "$BUILD/blkimg" "$@"; }
patch() { python3 "$top/tests/integ/oracle/vhdpatch.py" "$@"; }
fail() {
	echo "FAIL: $*"
	exit 1
}
scene() {
	echo "== $*"
	rm -rf "$dir/s"
	mkdir "$dir/s"
	cd "$dir/s"
}

# bad PATTERN VERB ARGS...: exit 1, one line on stderr that matches, nothing on disk changed, nothing new there.
bad() {
	local pattern=$1 before after rc=0
	shift
	before=$(find . -type f ! -name '.err' -exec sha256sum {} + | sort)
	timeout 60 "$BUILD/blkimg" "$@" >/dev/null 2>"$dir/err" || rc=$?
	after=$(find . -type f ! -name '.err' -exec sha256sum {} + | sort)
	[ $rc -eq 1 ] || fail "blkimg $*: exit $rc, not 1: $(cat "$dir/err")"
	[ "$(grep -c . "$dir/err")" -eq 1 ] || fail "blkimg $*: not one line: $(cat "$dir/err")"
	grep -qE "$pattern" "$dir/err" || fail "blkimg $*: '$(cat "$dir/err")' does not match '$pattern'"
	[ "$before" = "$after" ] || fail "blkimg $*: files changed"
}

# found CODE FILE [ARGS]: check names that finding, exits 1 and writes nothing.
found() {
	local code=$1 file=$2 before rc=0
	shift 2
	before=$(sha256sum "$file")
	timeout 60 "$BUILD/blkimg" check --json "$file" "$@" >"$dir/out" 2>"$dir/err" || rc=$?
	[ "$before" = "$(sha256sum "$file")" ] || fail "check changed $file"
	[ $rc -eq 1 ] || fail "check $file $*: exit $rc, wanted $code: $(cat "$dir/out" "$dir/err")"
	grep -q "\"code\": \"$code\"" "$dir/out" || fail "check $file: no $code in: $(cat "$dir/out")"
}

clean() {
	blkimg check --bitmaps "$@" >"$dir/out" || fail "check $*: $(cat "$dir/out")"
	grep -q ' 0 errors, 0 unclean' "$dir/out" || fail "check $*: $(cat "$dir/out")"
}

usage_error() {
	local rc=0
	blkimg "$@" >/dev/null 2>"$dir/err" || rc=$?
	[ $rc -eq 2 ] || fail "blkimg $*: exit $rc, not 2"
	[ "$(grep -c . "$dir/err")" -eq 1 ] || fail "blkimg $*: not one line: $(cat "$dir/err")"
}

data() { # FILE MiB...: random bytes at these places of a raw file
	local file=$1 at
	shift
	for at in "$@"; do
		dd if=/dev/urandom of="$file" bs=64K count=11 seek=$((at * 16)) conv=notrunc status=none
	done
}

scene "wrong usage is told in one line, with exit code 2"
usage_error nonsense
usage_error create
usage_error create a.vhd 1M extra words
usage_error info
usage_error info --hide a.vhd
usage_error create --format
usage_error create --format qcow2 a.vhd 1M
usage_error check --json=yes a.vhd
usage_error snapshot a.vhd
[ -z "$(ls)" ] || fail "something was made: $(ls)"

scene "each verb has help, and --help exits 0"
blkimg --help | grep -q snapshot
for v in create snapshot info map check repair convert compare; do
	blkimg $v --help | grep -q -- '--json' || fail "help of $v"
done

scene "create: formats by suffix and option, sizes with suffixes, never over a file"
blkimg create a.vhd 64M >/dev/null
blkimg create a.raw 1048576 >/dev/null
blkimg create f.vhd 8M --format vhd-fixed >/dev/null
[ "$(stat -c %s a.raw)" = 1048576 ] || fail "raw size"
[ "$(stat -c %s f.vhd)" = $((8 * 1048576 + 512)) ] || fail "fixed size"
clean a.vhd
clean f.vhd
clean a.raw
bad 'exists' create a.vhd 64M
bad 'exists' create a.raw 64M
for size in 0 -5 12x 1000 99999999T '' 5KK; do
	rc=0
	blkimg create b.vhd "$size" >/dev/null 2>"$dir/err" || rc=$?
	[ $rc -ne 0 ] && [ ! -e b.vhd ] && [ "$(grep -c . "$dir/err")" -eq 1 ] || fail "size '$size' was taken"
done
bad '2040 GiB' create b.vhd 2041G
bad 'does not say its format' create b.qcow2 1M
bad 'No such file|no such' create nodir/b.vhd 1M
bad 'only the format vhd' create b.raw 1M --parent a.vhd

scene "create --parent and snapshot: relative locators, moved directories, hidden parents"
mkdir base x
blkimg create base/g.vhd 64M >/dev/null
blkimg snapshot base/g.vhd x/c.vhd >/dev/null
blkimg create x/d.vhd --parent base/g.vhd >/dev/null
blkimg info --json x/c.vhd | grep -q '"../base/g.vhd"' || fail "locator: $(blkimg info x/c.vhd)"
before=$(sha256sum base/g.vhd)
blkimg snapshot x/c.vhd x/e.vhd >/dev/null
[ "$before" = "$(sha256sum base/g.vhd)" ] || fail "a snapshot changed the parent"
blkimg info x/e.vhd | grep -q 'parent: ./c.vhd' || fail "locator: $(blkimg info x/e.vhd)"
mkdir moved
mv base x moved
clean moved/x/e.vhd
bad 'exists' snapshot moved/x/c.vhd moved/x/e.vhd
bad 'no such file|No such file' snapshot nothing.vhd n.vhd
blkimg snapshot --hide moved/x/e.vhd moved/x/h.vhd >/dev/null
blkimg info moved/x/e.vhd | grep -q hidden || fail "not hidden"
clean moved/x/h.vhd
truncate -s 8M r.raw
blkimg snapshot r.raw rc.vhd >/dev/null
clean rc.vhd

scene "info and map say where bytes live"
truncate -s 64M src.raw
data src.raw 0 8 21
blkimg convert src.raw g.vhd >/dev/null
blkimg snapshot g.vhd c.vhd >/dev/null
blkimg map --json c.vhd >map.json
python3 - <<'PY'
import json
m = json.load(open("map.json"))
at, ok = 0, m["ok"]
src = open("src.raw", "rb").read()
for x in m["extents"]:
    assert x["offset"] == at and x["length"] > 0, x
    if x["kind"] == "data":
        assert x["layer"] == 1 and x["file"].endswith("g.vhd"), x
        with open(x["file"], "rb") as f:
            f.seek(x["file_offset"])
            assert f.read(x["length"]) == src[at:at + x["length"]], x
    else:
        assert not any(src[at:at + x["length"]]), x
    at += x["length"]
assert ok and at == 64 << 20
PY
blkimg info --json c.vhd | python3 -c 'import json,sys; j=json.load(sys.stdin); assert j["depth"] == 2 and j["ok"] and len(j["parents"]) == 1'

scene "convert round trips, sparse, and qemu agrees"
truncate -s 300M src.raw
data src.raw 0 1 2 99 150 299
blkimg convert src.raw a.vhd >/dev/null
qemu-img compare -q -f raw -F vpc src.raw a.vhd
blkimg convert --format vhd-fixed a.vhd f.vhd >/dev/null
qemu-img compare -q -f raw -F vpc src.raw f.vhd
blkimg convert f.vhd b.raw >/dev/null
cmp src.raw b.raw
[ "$(du -k b.raw | cut -f1)" -lt 16384 ] || fail "zeros were written: $(du -k b.raw)"
clean a.vhd
clean f.vhd
qemu-img convert -f raw -O vpc src.raw q.vhd
blkimg compare q.vhd src.raw >"$dir/out" || grep -q 'differ in size' "$dir/out" || fail "qemu's image: $(cat "$dir/out")"
bad 'exists' convert src.raw a.vhd
bad 'no such file|No such file' convert nothing.raw b.vhd
printf 'x' | dd of=odd.raw bs=1 seek=1000 status=none
bad 'multiple of 512' convert odd.raw odd.vhd

scene "compare finds the first difference"
truncate -s 20M a.raw
data a.raw 3
cp a.raw b.raw
blkimg convert a.raw a.vhd >/dev/null
blkimg compare a.vhd b.raw >/dev/null || fail "equal ones differ"
printf '\001' | dd of=b.raw bs=1 seek=$((17 * 1048576 + 5)) conv=notrunc status=none
rc=0
blkimg compare a.vhd b.raw >"$dir/out" || rc=$?
[ $rc -eq 1 ] && grep -q "byte $((17 * 1048576 + 5)) " "$dir/out" || fail "difference: $(cat "$dir/out")"
truncate -s 21M a.raw
rc=0
blkimg compare --json a.raw a.vhd >"$dir/out" || rc=$?
[ $rc -eq 1 ] && grep -q '"equal": false' "$dir/out" || fail "sizes: $(cat "$dir/out")"

scene "files that are no VHD are refused by every verb"
: >empty.vhd
truncate -s 1M zero.vhd
head -c 1M /dev/urandom >random.vhd
truncate -s 100 short.vhd
mkdir isdir.vhd
blkimg create ok.vhd 64M >/dev/null
head -c 1000 ok.vhd >cut.vhd
for f in empty zero random short cut; do
	bad "$f.vhd" info $f.vhd
	bad "$f.vhd" map $f.vhd
	bad "$f.vhd" repair $f.vhd
	bad "$f.vhd" repair --dry-run $f.vhd
	bad "$f.vhd" convert $f.vhd new.raw
	bad "$f.vhd" compare ok.vhd $f.vhd
	bad "$f.vhd" snapshot $f.vhd new.vhd
	rc=0
	blkimg check $f.vhd >"$dir/out" 2>&1 || rc=$?
	[ $rc -eq 1 ] && grep -q error "$dir/out" || fail "check $f.vhd: $rc, $(cat "$dir/out")"
done
bad 'isdir.vhd' info isdir.vhd
bad 'isdir.vhd' check isdir.vhd

scene "forged fields with right checksums: block sizes, sizes, a short BAT, entries out of place"
truncate -s 64M src.raw
data src.raw 0 4 9
blkimg convert src.raw good.vhd >/dev/null
forged() { # CODE PATCH...
	local code=$1
	shift
	cp good.vhd f.vhd
	patch f.vhd "$@"
	found "$code" f.vhd
}
for v in 00000000 00000001 00000002 00000200 00300000 00400000 80000000; do
	forged header-block-size "header:32=$v"
	bad 'block size' info f.vhd
done
for v in 4000000000000000 3ffffffffffffe00 7fffffffffffffff 0000000000000000 0000000000000001; do
	forged footer-size "both:48=$v"
	bad 'disk size' map f.vhd
done
forged header-entries header:28=00000001
bad 'too short' convert f.vhd new.raw
forged header-entries header:28=ffffffff
bad 'BAT' convert f.vhd new.raw
forged header-table-offset header:16=4000000000000000
forged block-beyond-end bat:0=00ffffff
bad 'BAT|block' info f.vhd
forged block-in-metadata bat:0=00000000
forged block-in-metadata bat:0=00000003
cp good.vhd f.vhd
python3 - <<'PY'
d = bytearray(open("f.vhd", "rb").read())
d[1540:1544] = d[1536:1540] # two blocks in one place
open("f.vhd", "wb").write(d)
PY
found block-overlap f.vhd
bad 'overlap|block' map f.vhd

scene "bad blocks are never guessed at: repair lists what --drop-bad-blocks would lose"
truncate -s 64M src.raw
data src.raw 0 4 9
blkimg convert src.raw f.vhd >/dev/null
patch f.vhd bat:8=00ffffff
sum=$(sha256sum f.vhd)
rc=0
blkimg repair --dry-run f.vhd >"$dir/out" || rc=$?
grep -q '2097152 bytes of the disk at 4194304' "$dir/out" || fail "$(cat "$dir/out")"
[ "$sum" = "$(sha256sum f.vhd)" ] || fail "a dry run wrote"
blkimg repair f.vhd >"$dir/out" && fail "still broken, yet exit 0"
blkimg repair --json --dry-run --drop-bad-blocks f.vhd >dry.json
blkimg repair --json --drop-bad-blocks f.vhd >wet.json
python3 -c 'import json; a, b = json.load(open("dry.json")), json.load(open("wet.json")); assert a["writes"] == b["writes"] and a["writes"]; assert b["errors_left"] == 0'
clean f.vhd
dd if=/dev/zero of=src.raw bs=1M seek=4 count=2 conv=notrunc status=none
blkimg compare f.vhd src.raw >/dev/null || fail "something else was lost"

scene "a trailing footer that a crash took is told, and repaired exactly as the dry run said"
truncate -s 64M src.raw
data src.raw 0 4 9
blkimg convert src.raw good.vhd >/dev/null
for how in zero killed cut differs; do
	cp good.vhd f.vhd
	case $how in
	zero) dd if=/dev/zero of=f.vhd bs=512 count=1 seek=$(($(stat -c %s f.vhd) / 512 - 1)) conv=notrunc status=none ;;
	killed) head -c 512 /dev/zero | tr '\0' '\307' | dd of=f.vhd bs=512 count=1 seek=$(($(stat -c %s f.vhd) / 512 - 1)) conv=notrunc status=none ;;
	cut) truncate -s -512 f.vhd ;;
	differs) patch f.vhd tail:24=00000001 ;;
	esac
	case $how in killed) found tail-killed f.vhd ;; differs) found tail-differs f.vhd ;; *) found tail-missing f.vhd ;; esac
	blkimg compare f.vhd src.raw >/dev/null || fail "$how: content"
	blkimg repair --json --dry-run f.vhd >dry.json
	blkimg repair --json f.vhd >wet.json
	python3 -c 'import json; a, b = json.load(open("dry.json")), json.load(open("wet.json")); assert a["writes"] == b["writes"] and len(a["writes"]) == 1'
	clean f.vhd
	[ $how = cut ] || cmp f.vhd good.vhd || fail "$how: not what it was" # a cut file gets its footer where it ends now
	blkimg compare f.vhd src.raw >/dev/null || fail "$how: content after the repair"
done

scene "a lost footer copy is rewritten from the trailing footer, and only when the header agrees"
truncate -s 64M src.raw
data src.raw 3
blkimg convert src.raw good.vhd >/dev/null
cp good.vhd f.vhd
dd if=/dev/zero of=f.vhd bs=512 count=1 conv=notrunc status=none
found footer-cookie f.vhd
blkimg repair f.vhd >/dev/null
cmp f.vhd good.vhd || fail "not what it was"
dd if=/dev/zero of=f.vhd bs=512 count=1 conv=notrunc status=none
patch f.vhd tail:60=00000004
dd if=/dev/zero of=f.vhd bs=512 count=1 conv=notrunc status=none
bad 'contradicts' repair f.vhd

scene "a forged footer as the last guest sector of an unclosed image is not believed"
truncate -s 2M src.raw
data src.raw 0
cp src.raw secret.raw
blkimg convert src.raw g.vhd >/dev/null
blkimg snapshot secret.raw evil.vhd >/dev/null
python3 - <<'PY'
import struct
g = bytearray(open("g.vhd", "rb").read())[:-512]   # unclosed: no footer, the last block's last sector ends the file
bat = struct.unpack(">I", g[1536:1540])[0]
end = bat * 512 + 512 + (2 << 20)
g = g[:end] + bytes(max(0, end - len(g)))
foot = open("evil.vhd", "rb").read()[:512]         # type 4: the guest says that it is a child of a host file
g[bat * 512:bat * 512 + 512] = b"\xff" * 512
g[end - 512:end] = foot
open("f.vhd", "wb").write(g)
src = bytearray(open("src.raw", "rb").read())
src[-512:] = foot
open("want.raw", "wb").write(src)
PY
bad 'differ in type' info f.vhd
found type-ambiguous f.vhd
found tail-differs f.vhd --format vhd
blkimg convert --src-format vhd f.vhd out.raw >/dev/null
cmp out.raw want.raw || fail "content"
rm out.raw
blkimg repair --format vhd f.vhd >/dev/null
clean f.vhd
blkimg convert f.vhd out.raw >/dev/null
cmp out.raw want.raw || fail "the repair changed guest data"

scene "guest data that looks like footers stays guest data in raw and fixed disks"
blkimg create child.vhd 8M >/dev/null
truncate -s 8M g.raw
dd if=child.vhd of=g.raw bs=512 count=4 conv=notrunc status=none
dd if=child.vhd of=g.raw bs=512 count=1 seek=16383 conv=notrunc status=none
blkimg convert g.raw f.vhd --format vhd-fixed >/dev/null
cp g.raw g.img
blkimg map --json g.raw | grep -q '"length": 8388608' || fail "raw was looked into"
clean g.raw
blkimg convert g.img out.raw >/dev/null
cmp g.raw out.raw
found type-ambiguous f.vhd
bad 'differ in type' convert f.vhd no.raw
clean --format vhd-fixed f.vhd
blkimg convert --src-format vhd-fixed f.vhd out2.raw >/dev/null
cmp g.raw out2.raw

scene "a fixed VHD whose guest wrote a differencing footer at sector 0"
truncate -s 8M g.raw
blkimg create p.vhd 8M >/dev/null
blkimg snapshot p.vhd d.vhd >/dev/null
dd if=d.vhd of=g.raw bs=512 count=8 conv=notrunc status=none
blkimg convert g.raw f.vhd --format vhd-fixed >/dev/null
bad 'differ in type' info f.vhd
bad 'differ in type' snapshot f.vhd no.vhd
bad 'differ in type' repair f.vhd
clean --format vhd-fixed f.vhd

scene "a batmap that qemu wrote over: told, served, and rebuilt where there is room"
blkimg create a.vhd 100M >/dev/null
truncate -s 100M model
qemu-io -f vpc -c 'write -P 0x77 4M 3M' a.vhd >/dev/null
qemu-io -f raw -c 'write -P 0x77 4M 3M' model >/dev/null
found batmap-clobbered a.vhd
blkimg compare a.vhd model --src-format raw >/dev/null || fail "content"
rc=0
blkimg repair --dry-run a.vhd >"$dir/out" || rc=$?
grep -q 'cannot be rebuilt' "$dir/out" || fail "$(cat "$dir/out")"
blkimg convert a.vhd b.vhd >/dev/null
clean b.vhd
truncate -s 64M src.raw
data src.raw 2 8
blkimg convert src.raw c.vhd >/dev/null
dd if=/dev/urandom of=c.vhd bs=512 count=1 seek=4 conv=notrunc status=none
found batmap-missing c.vhd
blkimg repair c.vhd >/dev/null
clean c.vhd
blkimg compare c.vhd src.raw >/dev/null || fail "content"
dd if=/dev/zero bs=512 count=1 status=none | tr '\0' '\377' | dd of=c.vhd bs=512 count=1 seek=5 conv=notrunc status=none
found batmap-checksum c.vhd
blkimg repair c.vhd >/dev/null
clean c.vhd

scene "missing, wrong and cyclic parents"
blkimg create p.vhd 64M >/dev/null
blkimg snapshot p.vhd c.vhd >/dev/null
mv p.vhd away.vhd
bad 'p.vhd' map c.vhd
bad 'p.vhd' convert c.vhd new.raw
found parent-missing c.vhd
blkimg create p.vhd 64M >/dev/null
bad 'uuid' map c.vhd
found parent-uuid c.vhd
mv away.vhd p.vhd
clean c.vhd
u1=11111111111111111111111111111111 u2=22222222222222222222222222222222
cp c.vhd a.vhd
cp c.vhd b.vhd
patch --relink a.vhd $u1 $u2 p.vhd b.vhd
patch --relink b.vhd $u2 $u1 p.vhd a.vhd
bad 'cycle' map a.vhd
bad 'cycle' convert a.vhd new.raw
found parent-cycle a.vhd
cp c.vhd a.vhd
patch --relink a.vhd $u1 $u1 p.vhd a.vhd
bad 'cycle' map a.vhd
found parent-cycle a.vhd

scene "an image that is a parent is not repaired by the way"
blkimg create p.vhd 64M >/dev/null
blkimg snapshot p.vhd c.vhd >/dev/null
dd if=/dev/zero of=p.vhd bs=512 count=1 seek=$(($(stat -c %s p.vhd) / 512 - 1)) conv=notrunc status=none
bad 'even-parent' repair p.vhd
blkimg repair --even-parent p.vhd >/dev/null
clean c.vhd

scene "an image that somebody has open for writing is left alone"
blkimg create p.vhd 64M >/dev/null
exec 9<p.vhd
flock -x 9
bad 'open for writing|another' snapshot p.vhd c.vhd
bad 'open for writing' repair p.vhd
exec 9<&-
blkimg snapshot p.vhd c.vhd >/dev/null

scene "a chain 30 deep holds what each level wrote, and libvhdi agrees"
gcc -std=gnu11 -O1 -Wall -Wextra -Werror -o "$dir/vhdi_cat" "$top/tests/integ/oracle/vhdi_cat.c" -lvhdi
truncate -s 64M model
blkimg create n00.vhd 64M >/dev/null
list=n00.vhd
for i in $(seq 1 29); do
	p=$(printf 'n%02d.vhd' $((i - 1))) c=$(printf 'n%02d.vhd' "$i")
	blkimg snapshot "$p" "$c" >/dev/null
	list="$c $list"
done
python3 - <<'PY'
# Each level gets a block of its own and one page over its parent's, written by hand: bitmap, BAT and footer.
import os, struct
model = bytearray(64 << 20)
for i in range(30):
    name = "n%02d.vhd" % i
    d = bytearray(open(name, "rb").read())
    table = struct.unpack(">Q", d[512 + 16:512 + 24])[0]
    foot, d = d[-512:], d[:-512]
    for block in (i, max(i - 1, 0)):
        if block == i - 1 or i == 0 or block == i:
            start = (len(d) + 512 + 4095) // 4096 * 4096 - 512
            d += bytes(start - len(d))
            page = os.urandom(4096)
            at = 0 if block == i else 8192
            bitmap = bytearray(512)
            bitmap[at // 4096] = 0xff
            body = bytearray(2 << 20)
            body[at:at + 4096] = page
            if struct.unpack(">I", d[table + 4 * block:table + 4 * block + 4])[0] != 0xffffffff:
                continue
            d[table + 4 * block:table + 4 * block + 4] = struct.pack(">I", start // 512)
            d += bitmap + body
            model[(block << 21) + at:(block << 21) + at + 4096] = page
    open(name, "wb").write(d + foot)
open("model", "wb").write(model)
PY
blkimg check --json n29.vhd | python3 -c 'import json,sys; j=json.load(sys.stdin); assert j["ok"] and j["files"] == 30, j'
blkimg info --json n29.vhd | grep -q '"depth": 30'
blkimg convert n29.vhd flat.raw >/dev/null
cmp flat.raw model || fail "content of the chain"
# shellcheck disable=SC2086
"$dir/vhdi_cat" out.raw $list
cmp out.raw model || fail "libvhdi reads something else"

scene "a chain of 1024 parents opens, one of 1025 is refused"
blkimg create n0000.vhd 64M >/dev/null
blkimg snapshot n0000.vhd n0001.vhd >/dev/null
python3 - "$top/tests/integ/oracle" <<'PY'
import sys
def fix(d, off, n, field):
    d[off + field:off + field + 4] = bytes(4)
    d[off + field:off + field + 4] = (~sum(d[off:off + n]) & 0xffffffff).to_bytes(4, "big")
one = open("n0001.vhd", "rb").read()
root = open("n0000.vhd", "rb").read()[68:84]
for i in range(1, 1026):
    d = bytearray(one)
    for coding in ("utf-16-be", "utf-16-le", "utf-8"):
        d = bytearray(d.replace("n0000.vhd".encode(coding), ("n%04d.vhd" % (i - 1)).encode(coding)))
    for off in (0, len(d) - 512):
        d[off + 68:off + 84] = (0x5000 + i).to_bytes(16, "big")
    d[552:568] = root if i == 1 else (0x5000 + i - 1).to_bytes(16, "big")
    fix(d, 512, 1024, 36)
    fix(d, 0, 512, 64)
    fix(d, len(d) - 512, 512, 64)
    open("n%04d.vhd" % i, "wb").write(d)
PY
blkimg info --json n1024.vhd 2>/dev/null | grep -q '"depth": 1025' || fail "1024 do not open"
blkimg check n1024.vhd >/dev/null || fail "check of 1024"
bad 'deep' map n1025.vhd
bad 'deep' snapshot n1024.vhd new.vhd
found parent-depth n1025.vhd

echo "all scenes passed"
