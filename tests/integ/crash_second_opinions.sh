#!/usr/bin/env bash
# What power cuts and kills leave behind, read by others: states of the crash test, as they were left (where the trailing footer is in place) and
# after blkd recovered them, against what blkd reads. libvhdi reads the chains, qemu the images that stand alone, and both are held against the
# specification too. What either is known to misread is listed in oracle/vhd_opinions.c, and predicted from the image byte for byte; anything else
# is a disagreement. (qemu-img check knows nothing of VHDs: "This image format does not support checks".)
#   OPINION_STATES=N for more
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=${BUILD:-$top/build/release}
states=${OPINION_STATES:-$([ "$(basename "$BUILD")" = release ] && echo 4000 || echo 1000)}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() {
	echo "FAIL: $*"
	exit 1
}

gcc -std=gnu11 -O2 -Wall -Wextra -Werror -o "$dir/opinions" "$top/tests/integ/oracle/vhd_opinions.c" -lvhdi

qemu_reads() { # lines "KIND, FLAT, LEAF"; leaves nothing of them behind
	local images=0 explained=0 kind flat leaf said
	while IFS=$'\t' read -r kind flat leaf; do
		images=$((images + 1))
		said=$(qemu-img compare -f vpc -F raw "$leaf" "$flat" 2>&1) || true
		if [ "$said" != "Images are identical." ]; then
			qemu-img convert -f vpc -O raw "$leaf" "$dir/got" && "$dir/opinions" --qemu "$flat" "$leaf" "$dir/got" || exit 1
			explained=$((explained + 1))
		fi
		rm -f "$leaf"
		[ "$kind" = closed ] && rm -f "$flat"
	done
	echo "qemu: $images images, 0 disagreements; explained: some sectors of $explained images" >"$dir/qemu"
}

echo "== one byte that is wrong is found, by each"
mkdir "$dir/x"
"$BUILD/tests/crash/crashtest" --export "$dir/x" --workload 82 --budget 20 >/dev/null
IFS=$'\t' read -r kind flat leaf < <(tail -n 1 "$dir/x/manifest")
printf 'x' | dd of="$flat" bs=1 seek=20000 conv=notrunc status=none
if printf '%s\t%s\t%s\n' "$kind" "$flat" "$leaf" | "$dir/opinions" >"$dir/single" 2>"$dir/said"; then fail "nobody noticed"; fi
grep -q 'DISAGREEMENT.* by the specification' "$dir/said" || fail "the reader of the specification did not notice"
grep -q 'DISAGREEMENT.* by libvhdi' "$dir/said" || fail "libvhdi did not notice"
if (qemu_reads) <"$dir/single" 2>"$dir/said"; then fail "qemu did not notice"; fi
grep -q 'DISAGREEMENT.* by qemu' "$dir/said" || fail "qemu did not notice: $(cat "$dir/said")"
rm -rf "$dir/x"

echo "== $states states of the crash test"
mkdir "$dir/s"
mkfifo "$dir/s/manifest"
"$BUILD/tests/crash/crashtest" --export "$dir/s" --states "$states" >"$dir/crashtest" 2>&1 &
crashtest=$!
set +e
"$dir/opinions" <"$dir/s/manifest" 2>"$dir/said" | qemu_reads
rc="${PIPESTATUS[*]}"
wait $crashtest || rc="$rc, crashtest $?"
set -e
cat "$dir/said"
[ "$rc" = "0 0" ] || {
	tail -n 5 "$dir/crashtest"
	fail "exit codes $rc"
}
cat "$dir/qemu"
left=$(find "$dir/s" -type f -not -name '*-parent.vhd' | wc -l)
[ "$left" = 0 ] || fail "$left files were looked at by nobody"
seen=$(sed -n 's/^libvhdi: \([0-9]*\) images, .*/\1/p' "$dir/said")
by_qemu=$(sed -n 's/^qemu: \([0-9]*\) images, .*/\1/p' "$dir/qemu")
[ "$seen" -ge "$states" ] || fail "libvhdi saw $seen images"
[ "$by_qemu" -ge $((states / 20)) ] || fail "qemu saw $by_qemu images"
echo "second opinions: $states states, $seen images, 0 disagreements"
