"""The baselines of the table, a file each: networks, a pure loss, a training step.

A module has

- ``MEASURES``: names of what its step gives for the log, besides the loss;
- ``PASSES``: of an image through the online and the target network in a step, for the estimate;
- ``EMA``: whether the trainer moves ``networks.target`` after the optimiser's step;
- ``build(config, images)``: the networks; ``networks.online.backbone`` is what is finetuned later;
- ``step(networks, views, batch)``: the loss and the measures.

The Triplet method itself is ``triplet.pretrain.step``.
"""

from types import ModuleType

from triplet.pretrain.methods import byol, moco, npid, relative_loc, rotation_pred, simclr

METHODS: dict[str, ModuleType] = {
    "byol": byol,
    "moco": moco,
    "npid": npid,
    "relative-loc": relative_loc,
    "rotation-pred": rotation_pred,
    "simclr": simclr,
}
