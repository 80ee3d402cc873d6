"""NIH ChestX-ray14 as a TFDS data set, prepared and read without TensorFlow."""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dpa_jax.data.decode import Preprocessing
from dpa_jax.datasets import nih_collect, nih_metadata, nih_protocols, writing

_SHARD_BYTES = 2**26  # of pixels; TFDS holds the examples of one shard in memory


class NihChestXray14(writing.Builder, tfds.core.ShardBasedBuilder):
    """Chest radiographs with labels mined from their reports (Wang et al. 2017).

    The splits of each configuration: `train` holds normal images only; `test` holds
    normal images, then abnormal ones. `validation` is for choosing hyper-parameters:
    of the subset, the normal and abnormal images of its own lists; of the official
    protocols, the abnormal images of the official training list, whose patients
    may be in `train` too (its normal images are all in `train`, as published).
    """

    name = "nih_chest_xray14"
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"2.0.0": "Boxes are relative to the image as it is stored."}
    BUILDER_CONFIGS = nih_protocols.CONFIGS
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the files as NIH, Kaggle or a mirror distributes them (images or "
        "images_*.tar.gz, Data_Entry_2017.csv, train_val_list.txt, test_list.txt) into "
        "one folder, then run: dpa-jax prepare nih --source FOLDER --data_dir DATA"
    )

    # what to write; gathered from manual_dir if it is not set beforehand
    collected: nih_collect.Collected | None = None

    def __init__(self, *, lists: str | None = None, **kwargs: Any):
        """Makes a builder.

        Args:
          lists: if it gathers the images itself, the folder of the lists that split the
            subset, None for the published ones, or a custom protocol.
          **kwargs: of every TFDS builder: `data_dir`, `config`, `version`.
        """
        super().__init__(**kwargs)
        self._lists = pathlib.Path(lists) if lists else None
        self._cache_dir: pathlib.Path | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        size = config.preprocessing.size
        finding = tfds.features.ClassLabel(names=nih_metadata.FINDINGS)
        return writing.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
            citation=_CITATION,
            license=_LICENSE,
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(
                preprocessing=dataclasses.asdict(config.preprocessing)
            ),
            features=tfds.features.FeaturesDict(
                {
                    # As bytes, for one integer per pixel takes ten times as long.
                    "image": tfds.features.Tensor(
                        shape=(size, size, 1), dtype=np.uint8, encoding="bytes"
                    ),
                    "label": tfds.features.ClassLabel(names=["normal", "abnormal"]),
                    "findings": tfds.features.Sequence(finding),
                    "image_id": tfds.features.Text(),
                    "patient_id": tfds.features.Scalar(np.int64),
                    "age": tfds.features.Scalar(np.float32),  # years
                    "sex": tfds.features.ClassLabel(names=["F", "M"]),
                    "view": tfds.features.ClassLabel(names=["PA", "AP"]),
                    "follow_up": tfds.features.Scalar(np.int64),
                    "original_width": tfds.features.Scalar(np.int64),
                    "original_height": tfds.features.Scalar(np.int64),
                    # relative to the stored image, cut at its edges; those that lie
                    # wholly in what was cropped are left out
                    "boxes": tfds.features.Sequence(
                        {"finding": finding, "box": tfds.features.BBoxFeature()}
                    ),
                }
            ),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Iterator]]]:
        config = self.builder_config
        collected = self.collected or self._collect(pathlib.Path(dl_manager.manual_dir))
        entries = collected.plan.entries
        requested = collected.plan.requested[config.name]
        splits = collected.splits[config.name]
        names = {name for split in requested.values() for name, _ in split}
        problems = [
            problem
            for problem in collected.problems
            if problem.name in names or problem.name not in entries
        ]
        if problems:
            nih_collect.write_problems(
                problems, pathlib.Path(self.data_path, "problems.csv")
            )
        self.info.metadata.update(
            fingerprint=nih_protocols.fingerprint(requested),
            left_out=sum(len(requested[part]) - len(splits[part]) for part in splits),
            resized=sum(problem.kind == "size" for problem in problems),
            counts={
                part: [sum(kind == label for _, label in split) for kind in (0, 1)]
                for part, split in splits.items()
            },
        )
        examples = functools.partial(
            _examples, entries, collected.image[config.name], config.preprocessing
        )
        step = max(1, _SHARD_BYTES // config.preprocessing.size**2)
        return {
            part: [
                functools.partial(examples, split[start : start + step])
                for start in range(0, len(split), step)
            ]
            for part, split in splits.items()
            if split
        }

    def _collect(self, source: pathlib.Path) -> nih_collect.Collected:
        config = self.builder_config
        root = pathlib.Path(self.data_dir_root)
        self._cache_dir = nih_collect.cache_dir(root, source, config.name)
        planned = nih_collect.plan(source, [config], self._lists)
        return nih_collect.collect(planned, self._cache_dir)

    def _post_download_and_prepare_hook(self) -> None:
        if self._cache_dir:
            shutil.rmtree(self._cache_dir)


def _examples(
    entries: nih_protocols.Entries,
    image: Callable,
    preprocessing: Preprocessing,
    split: nih_protocols.Split,
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, label in split:
        entry = entries[name]
        yield (
            name,
            {
                "image": image(name),
                "label": label,
                **vars(entry),
                "boxes": _stored_boxes(entry.boxes, preprocessing),
            },
        )


def _stored_boxes(
    boxes: Sequence[nih_metadata.Box], preprocessing: Preprocessing
) -> list[dict[str, Any]]:
    """Returns the boxes as fractions of an image that was resized and cropped."""
    whole, side = preprocessing.resize, preprocessing.crop or preprocessing.resize
    edge = (whole - side) // 2
    found = []
    for box in boxes:
        corners = np.array([box.ymin, box.xmin, box.ymax, box.xmax])
        corners = np.clip((corners * whole - edge) / side, 0, 1)
        if (corners[2:] > corners[:2]).all():
            bounds = tfds.features.BBox(*corners.tolist())
            found.append({"finding": box.finding, "box": bounds})
    return found


_LICENSE = (
    "No restriction on use. NIH asks to link to its download site, to cite Wang et al. "
    "2017 and to name the NIH Clinical Center as the provider of the data."
)
_CITATION = """\
@inproceedings{wang2017chestxray,
  title={{ChestX-ray8}: Hospital-scale chest {X}-ray database and benchmarks on
    weakly-supervised classification and localization of common thorax diseases},
  author={Wang, Xiaosong and Peng, Yifan and Lu, Le and Lu, Zhiyong and
    Bagheri, Mohammadhadi and Summers, Ronald M.},
  booktitle={CVPR},
  year={2017}
}"""
