"""One checker of annotations (COCO's instances and keypoints, VOC's XML) for every stage that reads them.

All of a file is seen before any training or inference. What Detectron2 itself drops or tolerates, as it
occurs in COCO 2017, is accepted and counted in a note; anything else that cannot be read in one way only is
refused in one line.
"""
