"""Which colors the numbers of a video mean: names, FFmpeg's numbers for them, and the guess where a file is silent."""

from __future__ import annotations

NAMES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020"}  # AVCOL_SPC_* -> our name
MATRIX = {"bt709": 1, "bt601": 5, "bt2020": 9}  # our name -> SWS_CS_*
TAGS = {"bt709": (1, 1, 1), "bt601": (6, 6, 6)}  # our name -> AVCOL_PRI_*, AVCOL_TRC_*, AVCOL_SPC_*
LIMITED, FULL = 1, 2  # AVCOL_RANGE_*: Y 16..235, Y 0..255


def guess(width: int, height: int) -> str:
    """What a video of this size most likely means where it does not say.

    High definition was born with BT.709, everything smaller with BT.601, and players guess so too.
    """
    return "bt709" if height >= 720 or width >= 1280 else "bt601"
