"""The TFDS data set `camelyon16`; importing this module registers it."""

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dpa_jax.data import filesystems
from dpa_jax.datasets import camelyon16_parts, camelyon16_patches, writing
from dpa_jax.slides import stain, tissue

SHARD_BYTES = 128 * 2**20
LABELS = ["normal", "tumor"]  # by the number of the label

_DESCRIPTION = """
Patches of 768x768 pixels at x40 from the whole-slide images of sentinel lymph nodes
of Camelyon16: train holds normal patches of normal slides, test normal and tumour
patches, validation tumour patches of training slides, to tune hyper-parameters with.
By the published lists there are 7,612 patches of 153 slides to train, 2,169 of 64 to
validate, and 4,000 normal ones of 80 slides and 817 tumour ones of 24 to test.
"""
_CITATION = """@article{bejnordi2017diagnostic,
  title={Diagnostic Assessment of Deep Learning Algorithms for Detection of Lymph Node
         Metastases in Women With Breast Cancer},
  author={Ehteshami Bejnordi, Babak and others},
  journal={JAMA}, volume={318}, number={22}, pages={2199--2210}, year={2017}}"""


class Camelyon16(writing.Builder, tfds.core.ShardBasedBuilder):
    """Normal and tumour patches of lymph nodes; made by `dpa-jax prepare camelyon16`.

    Attributes:
      parts: by split, the patches of each slide; set before `download_and_prepare`.
      target: the stains that they were normalised to, kept beside the data.
    """

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"2.0.0": "The metadata say how it was made."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name=f"x{m}", description=f"{tissue.CELL * m // 40} px patches at x{m}."
        )
        for m in camelyon16_patches.MAGNIFICATIONS
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get the slides and annotations from the challenge's site, then run "
        "`dpa-jax prepare camelyon16 --source DIR --data_dir DIR`, or give their "
        "folder as manual_dir for the same with its default settings."
    )
    parts: Mapping[str, Sequence[camelyon16_parts.PartTask]] | None = None
    target: stain.StainProfile | None = None

    def __init__(self, *, lists: str = "published", **kwargs: Any):
        """Makes a builder.

        Args:
          lists: which patches are cut from manual_dir: see `dpa-jax prepare`.
          **kwargs: of every TFDS builder: `data_dir`, `config`, `version`.
        """
        super().__init__(**kwargs)
        self.lists = lists

    @property
    def magnification(self) -> int:
        """That of the patches, which names the configuration."""
        return int(self.builder_config.name[1:])

    def _info(self) -> tfds.core.DatasetInfo:
        size = tissue.CELL * self.magnification // 40
        text, integer = tfds.features.Text(), tfds.features.Scalar(dtype=np.int64)
        return writing.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    # Stored as bytes: a list of integers would be slow to read.
                    "image": tfds.features.Tensor(
                        shape=(size, size, 3), dtype=np.uint8, encoding="bytes"
                    ),
                    "label": tfds.features.ClassLabel(names=LABELS),
                    "name": text,
                    "slide": text,
                    "group": text,
                    "x": integer,
                    "y": integer,
                    "tumor_fraction": tfds.features.Scalar(dtype=np.float32),
                }
            ),
            homepage="https://camelyon16.grand-challenge.org",
            citation=_CITATION,
            license="CC0 1.0",
            supervised_keys=("image", "label"),
            # how it was made: options, counts, what is missing
            metadata=tfds.core.MetadataDict(),
            # The shards are written slide by slide; readers shuffle.
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        cut_in = None
        if self.parts is None:
            from dpa_jax.datasets import camelyon16_prepare

            cut_in = camelyon16_prepare.fill(self, dl_manager.manual_dir)
        # TFDS renames this folder when all is written: nothing is there half-done.
        if self.target is not None:
            stain.save(self.target, pathlib.Path(self.data_dir) / stain.FILE)
        super()._download_and_prepare(dl_manager, download_config)
        if cut_in:
            filesystems.remove(cut_in)

    def _shard_iterators_per_split(
        self, dl_manager
    ) -> dict[str, list[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        assert self.parts is not None
        size = self.info.features["image"].shape[0]
        # So many slides of the most patches possible go into one shard.
        count = max(1, SHARD_BYTES // (camelyon16_patches.PER_SLIDE * 3 * size**2))
        return {
            split: [
                functools.partial(_examples, parts[i : i + count])
                for i in range(0, len(parts), count)
            ]
            for split, parts in self.parts.items()
        }


def _examples(
    parts: Sequence[camelyon16_parts.PartTask],
) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in parts:
        slide, label = part.task.slide, part.task.label
        patches = camelyon16_parts.read_part(part)
        assert not isinstance(patches, str)  # only parts that could be cut are written
        for image, (x, y), fraction in zip(
            patches.images, patches.corners.tolist(), patches.fractions, strict=True
        ):
            name = f"{slide}_{LABELS[label]}_x_{x}_y_{y}_w_768_h_768"
            yield (
                name,
                {
                    "image": image,
                    "label": label,
                    "name": name,
                    "slide": slide,
                    "group": slide,
                    "x": x,
                    "y": y,
                    "tumor_fraction": fraction,
                },
            )
