#!/usr/bin/env bash
# VHDs against two programs that share no code with ours: qemu (dynamic and fixed) and libvhdi (differencing chains too).
# What we write they read, what they write we read, byte for byte.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=${BUILD:-$top/build/release}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
blkimg() { "$BUILD/blkimg" "$@" --buffered; }
fail() {
	echo "FAIL: $*"
	exit 1
}
# Opening for writing asks which VHDs of the directory name the image as their parent: each scene has a directory of its own.
scene() {
	echo "== $*"
	rm -rf "$dir/s"
	mkdir "$dir/s"
	cd "$dir/s"
}

san=
case $(basename "$BUILD") in
asan) san=-fsanitize=address,undefined ;;
tsan) san=-fsanitize=thread ;;
esac
gcc -std=gnu11 -O1 -Wall -Wextra -Werror -o "$dir/vhdi_cat" "$top/tests/integ/oracle/vhdi_cat.c" -lvhdi
# shellcheck disable=SC2086
gcc -std=gnu11 -D_GNU_SOURCE -O1 -Wall -Wextra -Werror $san -pthread -I"$top" -I"$top/include" -o "$dir/disk_write" \
	"$top/tests/integ/oracle/disk_write.c" "$BUILD/libblkd.a" -l:liburing.a -laio -ljansson -luuid -lxenstore

virtual_size() { qemu-img info --output=json -f vpc "$1" | python3 -c 'import json,sys; print(json.load(sys.stdin)["virtual-size"])'; }

scene "an empty dynamic VHD of ours is one to qemu and libvhdi"
blkimg create a.vhd 100M >/dev/null
[ "$(virtual_size a.vhd)" = 104857600 ] || fail "qemu sees $(virtual_size a.vhd) bytes"
truncate -s 100M model
qemu-img compare -f vpc -F raw a.vhd model
vhdiinfo a.vhd | grep -q 'Disk type.*Dynamic' || fail "libvhdi: $(vhdiinfo a.vhd)"

scene "what we write into a dynamic VHD, qemu and libvhdi read"
blkimg create a.vhd 100M >/dev/null
truncate -s 100M model
for seed in 1 2 3; do
	"$dir/disk_write" a.vhd model $seed 150
	qemu-img compare -f vpc -F raw a.vhd model
	"$dir/vhdi_cat" out a.vhd
	cmp out model
	blkimg check a.vhd >/dev/null || fail "blkimg check"
done

scene "what we write into a fixed VHD, qemu and libvhdi read"
blkimg create --format vhd-fixed f.vhd 20M >/dev/null
truncate -s 20M model
"$dir/disk_write" f.vhd model 4 100
[ "$(virtual_size f.vhd)" = 20971520 ] || fail "qemu sees $(virtual_size f.vhd) bytes"
qemu-img compare -f vpc -F raw f.vhd model
"$dir/vhdi_cat" out f.vhd
cmp out model

chain_of_three() { # UNIT
	blkimg create a.vhd 50M >/dev/null
	truncate -s 50M model
	"$dir/disk_write" a.vhd model 5 100 "$1"
	mkdir sub
	blkimg snapshot a.vhd b.vhd >/dev/null
	"$dir/disk_write" b.vhd model 6 60 "$1"
	blkimg snapshot b.vhd sub/c.vhd >/dev/null
	"$dir/disk_write" sub/c.vhd model 7 40 "$1"
	blkimg convert sub/c.vhd flat.raw >/dev/null
	cmp flat.raw model
	blkimg check sub/c.vhd >/dev/null || fail "blkimg check"
	vhdiinfo sub/c.vhd | grep -q Differential || fail "libvhdi: $(vhdiinfo sub/c.vhd)"
}

scene "a chain of three that we wrote by sectors holds what the specification says"
chain_of_three 512
python3 "$top/tests/integ/oracle/vhd_cat.py" out sub/c.vhd b.vhd a.vhd
cmp out model

scene "a chain of three that we wrote by pages, libvhdi reads"
chain_of_three 4096
"$dir/vhdi_cat" out sub/c.vhd b.vhd a.vhd
cmp out model

for opts in subformat=dynamic subformat=dynamic,force_size=on subformat=fixed subformat=fixed,force_size=on; do
	scene "what qemu writes ($opts), we read"
	head -c 31M /dev/zero >src
	for at in 0 3 17 30; do
		dd if=/dev/urandom of=src bs=64K count=9 seek=$((at * 16)) conv=notrunc status=none
	done
	truncate -s 31M src
	qemu-img convert -f raw -O vpc -o "$opts" src q.vhd
	size=$(virtual_size q.vhd)
	truncate -s "$size" src # qemu rounds sizes up to a geometry
	blkimg convert q.vhd out.raw >/dev/null
	cmp out.raw src
done

scene "a VHD that qemu made, we write, and qemu reads again"
qemu-img create -q -f vpc -o subformat=dynamic q.vhd 64M
truncate -s "$(virtual_size q.vhd)" model
qemu-io -f vpc -c 'write -P 0x5a 1M 5M' q.vhd >/dev/null
qemu-io -f raw -c 'write -P 0x5a 1M 5M' model >/dev/null
"$dir/disk_write" q.vhd model 8 100
qemu-img compare -f vpc -F raw q.vhd model
"$dir/vhdi_cat" out q.vhd
cmp out model

scene "a batmap that qemu wrote over is noted, and the data is right"
blkimg create a.vhd 100M >/dev/null
truncate -s 100M model
qemu-io -f vpc -c 'write -P 0x77 4M 3M' a.vhd >/dev/null
qemu-io -f raw -c 'write -P 0x77 4M 3M' model >/dev/null
blkimg info a.vhd | grep -q 'batmap is ignored' || fail "no note: $(blkimg info a.vhd)"
blkimg convert a.vhd out.raw >/dev/null
cmp out.raw model
"$dir/disk_write" a.vhd model 9 50
qemu-img compare -f vpc -F raw a.vhd model

scene "an image above 2040 GiB is refused, one of 2040 GiB is opened by qemu"
blkimg create big.vhd 2040G >/dev/null
[ "$(virtual_size big.vhd)" = $((2040 << 30)) ] || fail "qemu sees $(virtual_size big.vhd) bytes"
if blkimg create big2.vhd 2041G 2>err; then fail "2041 GiB were accepted"; fi
grep -q '2040 GiB' err

echo "all scenes passed"
