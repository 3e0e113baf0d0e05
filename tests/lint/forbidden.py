#!/usr/bin/env python3
"""Calls and words that no file of ours has: unbounded string functions, allocas, asserts on input, promises instead of work, paths of one
machine, long files."""
import re
import subprocess
import sys

CALLS = re.compile(r"\b(gets|strcat|sprintf|vsprintf|alloca|strtok|atoi|atol|rand|srand|tmpnam|mktemp|asctime|ctime)\s*\(")
SHELL = re.compile(r"\b(system|popen)\s*\(")
ASSERT = re.compile(r"(^|[^_\w])assert\s*\(")
PROMISES = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
LIMIT = 800

bad = 0


def tell(where, what):
    global bad
    print(f"{where}: {what}")
    bad += 1


def code_of(text):
    """The text without comments and strings, line numbers kept."""
    blank = lambda m: re.sub(r"[^\n]", " ", m.group(0))
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(\\.|[^"\\\n])*"', blank, text, flags=re.S)


for path in subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "*.c", "*.h"], text=True).split():
    text = open(path, encoding="utf-8").read()
    product = not path.startswith(("tests/", "bench/"))
    if product and text.count("\n") > LIMIT:
        tell(path, f"{text.count(chr(10))} lines, above {LIMIT}: is there one idea in it?")
    if not text.lstrip().startswith("/*"):
        tell(path, "does not open with what it is for")
    for number, line in enumerate(text.split("\n"), 1):
        if PROMISES.search(line):
            tell(f"{path}:{number}", "promises instead of doing")
    for number, line in enumerate(code_of(text).split("\n"), 1):
        if product and CALLS.search(line):
            tell(f"{path}:{number}", f"forbidden call: {line.strip()[:60]}")
        if product and SHELL.search(line):
            tell(f"{path}:{number}", "no shell from the product")
        if product and ASSERT.search(line) and "_Static_assert" not in line and "static_assert" not in line:
            tell(f"{path}:{number}", "CHECK or DCHECK, not assert")
        if "endian.h" in line or re.search(r"\b(htobe|be\d+toh|htonl|ntohl|htons|ntohs)\w*\(", line):
            if product and not path.startswith("sim/"):
                tell(f"{path}:{number}", "bytes.h is the only place that knows endianness")
sys.exit(1 if bad else 0)
