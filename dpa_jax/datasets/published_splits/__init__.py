"""The lists of images by which the published experiments are split."""

import pathlib
import zipfile


def lists(data_set: str) -> zipfile.Path:
    """Returns the published lists of `nih_chest_xray14` or `camelyon16`, as a folder.

    README.md beside this file names their source and licence.
    """
    return zipfile.Path(pathlib.Path(__file__).with_name(f"{data_set}.zip"))
