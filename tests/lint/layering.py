#!/usr/bin/env python3
"""Who may include whom: main -> ctl -> {blkif, nbd} -> dev -> {formats, cache, sr-drivers, io} -> base, and blkif -> hyp -> base.
Leaves never include each other nor anything above them; sim/ shares no code with the datapath; nobody but formats/, dev/ and the
tools looks into formats/'s private headers."""
import os
import re
import subprocess
import sys

# header under include/blkd/ -> the module whose contract it is
CONTRACT = {
    "err": "base", "log": "base", "bytes": "base", "list": "base", "clock": "base", "conf": "base", "bufpool": "base",
    "backing": "base", "io": "io", "replay": "io", "format": "formats", "vhd": "formats", "vhd_check": "formats", "cache": "cache",
    "disk": "dev", "dev": "dev", "devtab": "dev", "journal": "dev", "hyp": "hyp", "blkif": "blkif", "nbd": "nbd", "ctl": "ctl",
}
BELOW = {
    "base": set(), "io": {"base"}, "formats": {"base"}, "cache": {"base"}, "sr-drivers": {"base"}, "hyp": {"base"},
    "dev": {"base", "io", "formats", "cache", "sr-drivers"},
    "blkif": {"base", "dev", "hyp", "io", "formats"},
    "nbd": {"base", "dev", "io", "formats"},
    "ctl": {"base", "dev", "io", "formats", "cache", "blkif", "nbd"},
    "main": {"base", "dev", "io", "formats", "cache", "blkif", "nbd", "ctl", "hyp"},
    "blkimg": {"base", "dev", "formats", "sr-drivers"},
    "blkctl": set(), "simxen": {"simproto"}, "simguest": {"simproto"},
}
# The device's contract speaks of images, engines and buffers, and the journal's of metadata records: whoever includes dev.h sees these.


def module_of(path):
    for prefix, module in (("blkd/base/", "base"), ("blkd/io/", "io"), ("blkd/dev/", "dev"), ("blkd/blkif/", "blkif"),
                           ("blkd/hyp/", "hyp"), ("blkd/nbd/", "nbd"), ("blkd/ctl/", "ctl"), ("blkd/main", "main"),
                           ("formats/", "formats"), ("cache/", "cache"), ("sr-drivers/", "sr-drivers"), ("control/", "blkctl"),
                           ("sim/simxen/", "simxen"), ("sim/simguest/", "simguest"), ("tools/blkimg/", "blkimg"),
                           ("sim/simproto.h", "simproto")):
        if path.startswith(prefix):
            return module
    if path.startswith("include/blkd/"):
        return CONTRACT.get(os.path.basename(path)[:-2])
    return None


def resolve(source, name):
    for candidate in (os.path.join(os.path.dirname(source), name), name, os.path.join("include", name)):
        candidate = os.path.normpath(candidate)
        if os.path.exists(candidate):
            return candidate
    return None


def main():
    files = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "*.c", "*.h"], text=True).split()
    bad = 0
    for path in files:
        if path.startswith(("tests/", "bench/")) or not os.path.exists(path):
            continue
        module = module_of(path)
        if module is None:
            print(f"{path}: belongs to no module known to {sys.argv[0]}")
            bad += 1
            continue
        for number, line in enumerate(open(path, encoding="utf-8"), 1):
            m = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if not m:
                continue
            target = resolve(path, m.group(1))
            if target is None:
                print(f"{path}:{number}: {m.group(1)} is not found")
                bad += 1
                continue
            other = module_of(target)
            if other == module or other in BELOW.get(module, ()):
                continue
            if target.startswith("include/") and path.startswith("include/"):
                continue  # contracts may name each other's types
            if module == "hyp" and other == "simproto":
                continue  # the one contract that the datapath has with the simulator
            print(f"{path}:{number}: {module} may not include {target} ({other})")
            bad += 1
    return 1 if bad else 0


sys.exit(main())
