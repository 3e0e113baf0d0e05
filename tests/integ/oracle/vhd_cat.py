#!/usr/bin/env python3
"""Writes the disk that a chain of dynamic and differencing VHDs holds to a raw file: vhd_cat.py OUT LEAF [PARENT ...].

A second opinion to the sector, straight from the specification: libvhdi 20210425 takes the sectors behind a run of set bits, up to the next
multiple of 8, for present, and so is one only for what was written in whole 4 KiB.
"""
import struct
import sys


def layer(path):
    data = open(path, "rb").read()
    size, kind = struct.unpack(">Q", data[48:56])[0], struct.unpack(">I", data[60:64])[0]
    header = struct.unpack(">Q", data[16:24])[0]
    assert data[:8] == b"conectix" and data[header : header + 8] == b"cxsparse" and kind in (3, 4)
    table = struct.unpack(">Q", data[header + 16 : header + 24])[0]
    entries, block = struct.unpack(">II", data[header + 28 : header + 36])
    return data, size, block, struct.unpack(">%dI" % entries, data[table : table + 4 * entries])


def main():
    out = None
    for path in reversed(sys.argv[2:]):
        data, size, block, bat = layer(path)
        out = bytearray(size) if out is None else out[:size] + bytes(max(0, size - len(out)))
        for i, entry in enumerate(bat):
            if entry == 0xFFFFFFFF:
                continue
            bitmap = data[entry * 512 : entry * 512 + 512]
            for s in range(min(block, size - i * block) // 512):
                if bitmap[s >> 3] & 0x80 >> (s & 7):
                    at = (entry + 1 + s) * 512
                    out[i * block + s * 512 : i * block + s * 512 + 512] = data[at : at + 512]
    open(sys.argv[1], "wb").write(out)


main()
