#!/usr/bin/env python3
"""The demo's table: table.py LOGDIR GUESTS. Guests' figures are their own; blkd's are the kernel's (/proc), so that
blkd does not grade itself. Exit 1 if anything counts as an error."""
import json
import os
import sys

log, guests = sys.argv[1], int(sys.argv[2])


def kernel(when):
    io = dict(line.split(": ") for line in open(f"{log}/io.{when}"))
    status = dict(line.split(":", 1) for line in open(f"{log}/status.{when}"))
    # Fields after the command's closing parenthesis; 14 and 15 of proc(5) are utime and stime.
    stat = open(f"{log}/stat.{when}").read().rpartition(")")[2].split()
    return {"read": int(io["read_bytes"]), "written": int(io["write_bytes"]),
            "cpu": (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"),
            "peak_kib": int(status["VmHWM"].split()[0])}


def row(name, *cells):
    print(f"{name:<8}" + "".join(f"{c:>11}" for c in cells))


class Sum:
    def __init__(self):
        self.read = self.written = self.ops = self.marks = self.flushes = self.faults = 0
        self.seconds = 0.0

    def add_guest(self, report):
        self.faults += sum(report["faults"].values()) + (report["exit"] != 0)
        for disk in report["disks"]:
            for phase in disk["phases"]:
                self.seconds += phase["seconds"]
                for kind, op in phase["ops"].items():
                    self.ops += op["ops"]
                    self.faults += op["errors"]
                    self.read += op["bytes"] if kind == "read" else 0
                    self.written += op["bytes"] if kind == "write" else 0
                    self.marks += op["ops"] if kind == "write" else 0
                    self.flushes += op["ops"] if kind == "flush" else 0

    def cells(self):
        return (f"{self.read / 1e6:.0f}", f"{self.written / 1e6:.0f}", self.marks, self.flushes,
                f"{self.ops / self.seconds:.0f}", f"{(self.read + self.written) / 1e6 / self.seconds:.0f}", self.faults)


row("guest", "MB read", "MB written", "writes", "flushes", "IOPS", "MB/s", "errors")
total = Sum()
longest = 0.0
for n in range(1, guests + 1):
    with open(f"{log}/guest{n}.json") as f:
        report = json.load(f)
    one = Sum()
    one.add_guest(report)
    total.add_guest(report)
    longest = max(longest, one.seconds)
    row(str(n), *one.cells())
total.seconds = longest
row(f"all {guests}", *total.cells())

a, b = kernel("before"), kernel("after")
cpu = b["cpu"] - a["cpu"]
print()
print(f"blkd, as the kernel counts: read from storage {(b['read'] - a['read']) / 1e6:.0f} MB, "
      f"written {(b['written'] - a['written']) / 1e6:.0f} MB; "
      f"CPU {cpu:.1f} s ({cpu / longest * 100:.0f} % of one core); memory at most {b['peak_kib'] / 1024:.0f} MiB")
print(f"errors {total.faults}")
sys.exit(total.faults != 0)
