"""The published feature statistics file, read without PyTorch and without unpickling.

The file is in the format that `torch.save` wrote before it turned to zip archives:
five pickles (a magic number, a version, sizes, the object, the order of the storages),
then each storage as its length and its float32 values. Its checksum is known, so all
that has to be found is which storage belongs to which array. The opcodes' strings say
that, and `pickletools.genops` lists them without running anything.
"""

import os
import pathlib
import pickletools
import re

import numpy as np

from dpa_jax import errors

URL = (
    "https://raw.githubusercontent.com/ninatu/anomaly_detection/"
    "6fa35f3fd35976ce2b857801d288e17f454241b9/anomaly_detection/dpa/data/"
    "vgg19_ILSVRC2012_object_detection_mean_var.pt"
)
SHA256 = "f0c8f0ce94a9239176103a71ad457af705721530889eb5cc9e77dfc73b01b38c"


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the published file; the caller has checked that it has `SHA256`.

    Returns:
      `LAYER/mean` and `LAYER/std`, float32 `[C]`, of 37 layers of VGG19.

    Raises:
      DpaError: the file is not laid out as the published one.
    """
    with pathlib.Path(path).open("rb") as file:
        _, _, _, described, order = [_strings(file) for _ in range(5)]
        storages = {}
        for key in order:
            (count,) = np.frombuffer(file.read(8), "<i8")
            storages[key] = np.frombuffer(file.read(4 * int(count)), "<f4")
    arrays: dict[str, np.ndarray] = {}
    layer, kinds = "", [""]
    for text in described:
        if re.fullmatch(r"[crp]\d{1,2}", text):
            layer, kinds = text, ["std", "mean"]
        elif text in storages:
            arrays[f"{layer}/{kinds.pop()}"] = storages[text]
    if len(arrays) != len(storages):
        raise errors.DpaError(f"{path} is not laid out as the published statistics")
    return arrays


def _strings(file) -> list[str]:
    return [
        str(argument)
        for opcode, argument, _ in pickletools.genops(file)
        if opcode.name == "BINUNICODE"
    ]
