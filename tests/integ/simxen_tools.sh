#!/bin/bash
# The real xenstore tools (package xenstore-utils) work against simxen, unmodified; and simxen behaves as a daemon should:
# says when it is ready, refuses a second start, replaces stale sockets, ends cleanly, explains wrong usage.
set -eu

BUILD=$(realpath "${BUILD:-build/release}")
dir=$(mktemp -d /tmp/simxen-tools-XXXXXX)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true; wait; rm -rf "$dir"' EXIT

die() {
	echo "simxen_tools: $*" >&2
	exit 1
}

expect() { # WANT COMMAND...: the command's output
	local want=$1 got
	shift
	got=$("$@") || die "$*: exit $?"
	[ "$got" = "$want" ] || die "$*: \"$got\", not \"$want\""
}

refused() { # EXIT-CODE PATTERN COMMAND...: that exit code, and one line on stderr that matches
	local code=$1 pattern=$2 rc=0
	shift 2
	"$@" >"$dir/out" 2>"$dir/err" || rc=$?
	[ "$rc" = "$code" ] || die "$*: exit $rc, not $code"
	grep -q -- "$pattern" "$dir/err" || die "$*: said \"$(cat "$dir/err")\", nothing like \"$pattern\""
}

wait_for() { # PATTERN FILE: up to 10 s
	for _ in $(seq 200); do
		! grep -q -- "$1" "$2" 2>/dev/null || return 0
		sleep 0.05
	done
	die "no \"$1\" in $2: $(cat "$2")"
}

start() {
	: >"$dir/log"
	"$BUILD/simxen" --dir "$dir/x" >"$dir/log" &
	pid=$!
	wait_for "^simxen: ready $dir/x\$" "$dir/log"
}

# Usage
"$BUILD/simxen" --help | grep -q '^usage: simxen --dir DIR' || die "--help does not help"
refused 2 '--dir DIR is needed' "$BUILD/simxen"
refused 2 'see simxen --help' "$BUILD/simxen" --nonsense
refused 2 'unexpected argument "more"' "$BUILD/simxen" --dir "$dir/x" more
refused 2 'too long' "$BUILD/simxen" --dir "/tmp/$(printf 'a%.0s' $(seq 100))"
refused 1 'No such file or directory' "$BUILD/simxen" --dir "$dir/none/x"

start
export XENSTORED_PATH=$dir/x/socket

# The tools
xenstore-write /t/a 1 /t/b/c 'two words'
expect 1 xenstore-read /t/a
expect 'two words' xenstore-read /t/b/c
expect "$(printf 'a\nb')" xenstore-list /t
xenstore-exists /t/b || die "xenstore-exists denies /t/b"
! xenstore-exists /t/z 2>/dev/null || die "xenstore-exists affirms /t/z"
expect "$(printf 'a = "1"\nb = ""\n c = "two words"')" xenstore-ls /t
xenstore-chmod /t/a n0 r0
xenstore-ls -p / | grep -q '(n0,r0)' || die "xenstore-ls -p does not show the permissions"
xenstore-rm /t/b
! xenstore-read /t/b/c 2>/dev/null || die "xenstore-rm left /t/b/c"
expect Domain-0 xenstore-read /local/domain/0/name
env -u XENSTORED_PATH XENSTORED_RUNDIR="$dir/x" xenstore-read /t/a >/dev/null || die "XENSTORED_RUNDIR does not lead to it"

# A watch, from another process
stdbuf -oL xenstore-watch -n 3 /t >"$dir/watched" &
watcher=$!
wait_for '^/t$' "$dir/watched"
xenstore-write /t/w 1
wait_for '^/t/w$' "$dir/watched"
xenstore-rm /t/w
wait "$watcher" || die "xenstore-watch: exit $?"
expect "$(printf '/t\n/t/w\n/t/w')" cat "$dir/watched"

# Many at once: every write arrives
for i in 1 2 3 4; do
	(for j in $(seq 50); do xenstore-write "/many/$i/$j" "$j"; done) &
	writers[i]=$!
done
for w in "${writers[@]}"; do wait "$w" || die "a writer failed"; done
[ "$(xenstore-ls -f /many | wc -l)" -ge 200 ] || die "writes were lost"

# One directory, one simxen
refused 1 'another simxen serves this directory' "$BUILD/simxen" --dir "$dir/x"
expect 1 xenstore-read /t/a

# Killed: its sockets are stale, and the next one replaces them
kill -9 "$pid"
wait "$pid" || true
[ -S "$dir/x/socket" ] || die "where did the socket go?"
start
! xenstore-read /t/a 2>/dev/null || die "a new simxen remembers the old store"

# Ended: it cleans up and is content
kill -TERM "$pid"
rc=0
wait "$pid" || rc=$?
pid=
[ "$rc" = 0 ] || die "exit $rc after SIGTERM"
[ -z "$(find "$dir/x" -type s)" ] || die "sockets left: $(ls "$dir/x")"
start
kill -INT "$pid" # an interactive ^C
rc=0
wait "$pid" || rc=$?
pid=
[ "$rc" = 0 ] || die "exit $rc after SIGINT"
