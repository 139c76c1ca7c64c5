"""ImageNet's development kit in small, with a meta.mat that scipy writes in MATLAB's own format."""

import numpy as np
import scipy.io

from triplet.pull.imagenet import GROUND_TRUTH

WNIDS = ("n01440764", "n01443537", "n00001740")
SORTED = {
    f"{WNIDS[1]}/ILSVRC2012_val_00000001.JPEG": "1",
    f"{WNIDS[0]}/ILSVRC2012_val_00000002.JPEG": "2",
    f"{WNIDS[1]}/ILSVRC2012_val_00000003.JPEG": "3",
}


def devkit(folder, truth=(2, 1, 2)):
    """Two leaves and one inner node, as in the original (which has 1000 and 860)."""
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    synsets = np.array(
        [(1, WNIDS[0], "tench", 0), (2, WNIDS[1], "goldfish", 0), (1001, WNIDS[2], "entity", 3)], dtype=kind
    )
    (folder / "data").mkdir(parents=True)
    scipy.io.savemat(folder / "data" / "meta.mat", {"synsets": synsets})
    (folder / "data" / GROUND_TRUTH).write_text("".join(f"{number}\n" for number in truth))
    return folder
