#!/usr/bin/env python3
"""Files that open with "HOT PATH:" may not allocate, log, sleep or make system calls: checked on the undefined symbols of their release
objects. A file's own first line says what it may do besides (`no syscall but ...`, `no lock but ...`): a symbol named after a "but" is
allowed."""
import re
import subprocess
import sys

build = sys.argv[1]
FORBIDDEN = re.compile(
    r"^(malloc|calloc|realloc|free|aligned_alloc|posix_memalign|strdup|asprintf|mmap|munmap|mremap|"
    r"log_line|printf|__printf_chk|fprintf|__fprintf_chk|puts|snprintf|__snprintf_chk|vsnprintf|syslog|err_set|err_prefix|"
    r"read|write|pread|pwrite|pread64|pwrite64|readv|writev|preadv|pwritev|open|open64|openat|close|fstat|fsync|fdatasync|ftruncate|"
    r"ftruncate64|fallocate|fallocate64|ioctl|poll|epoll_wait|epoll_ctl|select|syscall|send|recv|sendmsg|recvmsg|"
    r"io_uring_enter|io_uring_submit|io_uring_submit_and_wait_timeout|io_uring_submit_and_get_events|__io_uring_get_cqe|"
    r"io_submit|io_getevents|usleep|nanosleep|sleep|"
    r"pthread_mutex_lock|pthread_mutex_trylock|pthread_cond_\w+|pthread_rwlock_\w+|sem_wait|pthread_create|fork|execve|system)$")

bad = hot = 0
for path in subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "*.c"], text=True).split():
    head = open(path, encoding="utf-8").read(3000)
    if not head.startswith("/* HOT PATH:"):
        continue
    hot += 1
    allowed = set()
    for exception in re.findall(r"\bbut\b(.*?)(?=\bno\b|$)", head[: head.index("*/")], flags=re.S):
        allowed |= set(re.findall(r"\w+", exception))
    out = subprocess.check_output(["nm", "-u", f"{build}/obj/{path[:-2]}.o"], text=True)
    for symbol in (line.split()[-1].split("@")[0] for line in out.splitlines() if line.strip()):
        if FORBIDDEN.match(symbol) and symbol not in allowed:
            print(f"{path}: calls {symbol}, which a hot path file may not (its first line does not name it)")
            bad += 1
if not hot:
    print("no file opens with HOT PATH: the lint has lost its subject")
    bad += 1
print(f"{hot} hot files")
sys.exit(1 if bad else 0)
