"""One checker of annotations (COCO's instances and keypoints, VOC's XML) for every stage that reads them.

A whole file is checked before any training or inference. Flaws that occur in COCO 2017 and that Detectron2
drops or tolerates are accepted and counted in a note; anything else that is ambiguous is refused in one
line.
"""
