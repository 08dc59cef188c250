"""A .npy file of bytes that grows a piece at a time."""

import math
import os

import numpy as np


def append(path, rows, start):
    """Write `rows` (N, ...) as uint8 behind the first `start` rows of the .npy file `path`, which then has start + N.

    The header is rewritten in its place: numpy reserves room in it for any number of rows. So a piece that was cut
    short is made good by writing it again.
    """
    rows = np.ascontiguousarray(rows, dtype=np.uint8)
    with open(path, "r+b" if start else "wb") as file:
        shape = (start + len(rows), *rows.shape[1:])
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        file.seek(start * math.prod(shape[1:]), os.SEEK_CUR)
        file.write(rows)
