#!/usr/bin/env python3
"""Changes fields of VHDs and makes the checksums right again: what a forger would do. Shares no code with formats/.

vhdpatch.py FILE [copy|tail|both|header|bat|file]:OFFSET=HEX ...   bytes at an offset of that structure
vhdpatch.py --relink FILE UUID_HEX PARENT_UUID_HEX OLD_PARENT NEW_PARENT   names of one length
"""
import sys


def fix(data, off, length, field):
    if off + length > len(data) or off < 0:
        return
    data[off + field:off + field + 4] = bytes(4)
    data[off + field:off + field + 4] = (~sum(data[off:off + length]) & 0xffffffff).to_bytes(4, "big")


def fix_all(data):
    if data[512:520] == b"cxsparse":
        fix(data, 512, 1024, 36)
    for off in (0, len(data) - 512):
        if data[off:off + 8] == b"conectix":
            fix(data, off, 512, 64)


def main():
    args = sys.argv[1:]
    relink = args[0] == "--relink"
    path = args[1] if relink else args[0]
    with open(path, "rb") as f:
        data = bytearray(f.read())
    if relink:
        uuid, parent = bytes.fromhex(args[2]), bytes.fromhex(args[3])
        for off in (0, len(data) - 512):
            data[off + 68:off + 84] = uuid
        data[512 + 40:512 + 56] = parent
        old, new = args[4], args[5]
        for coding in ("utf-16-be", "utf-16-le", "utf-8"):
            data = bytearray(data.replace(old.encode(coding), new.encode(coding)))
    else:
        bases = {"copy": [0], "tail": [len(data) - 512], "both": [0, len(data) - 512], "header": [512], "bat": [1536], "file": [0]}
        for word in args[1:]:
            where, value = word.split("=")
            where, off = where.split(":")
            for base in bases[where]:
                at = base + int(off, 0)
                raw = bytes.fromhex(value)
                data[at:at + len(raw)] = raw
    if not any(w.startswith("file:") for w in args):
        fix_all(data)
    with open(path, "wb") as f:
        f.write(data)


main()
