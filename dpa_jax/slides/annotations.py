"""Outlined regions of a slide: ASAP's XML with holes, or a mask of the same size."""

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from dpa_jax.errors import DpaError
from dpa_jax.slides.reader import Slide

# Groups of ASAP's files for Camelyon16 and 17, in lower case.
TUMOUR_GROUPS = {"", "none", "tumor", "tumour", "_0", "_1", "metastases"}
HOLE_GROUPS = {"exclusion", "_2", "normal"}
# pairs of edges that may lie near each other, so that regions are found within seconds
_NEAR, _NEAR_EACH = 200_000, 10

# (x, y, side) in level-0 pixels -> the part of that square that is inside, 0 to 1
Coverage = Callable[[float, float, float], float]


def from_xml(
    path: str | os.PathLike, name: str | None = None
) -> tuple[Coverage, list[str]]:
    """Reads an ASAP annotation.

    Args:
      path: the XML file; coordinates are level-0 pixels.
      name: what to call it in messages; None for its path.

    Returns:
      The coverage of a square by the outlined tumour without its holes, exact; and
      what had to be mended or left out, in words. Dots and lines enclose nothing and
      are left out.

    Raises:
      DpaError: the file is no ASAP annotation, outlines no tumour, has a polygon
        of an unknown group, or outlines that cross themselves thousands of times.
    """
    name = name or os.fspath(path)
    try:
        import shapely
        from shapely import validation
    except ImportError:
        raise DpaError(
            "reading annotations needs a library: pip install 'dpa_jax[wsi]'"
        ) from None
    try:
        # entities, which expand without bound, need a document type: it is refused
        parser = ElementTree.XMLParser(target=_Plain())  # nosec B314
        root = ElementTree.parse(path, parser).getroot()  # nosec B314
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DpaError(f"{name} is no annotation: {error}") from None
    mended, outlines, tumours, holes = [], [], [], []
    for element in root.iter("Annotation"):
        outline = element.get("Name", "?")
        points = _points(element, f"{name}: {outline}")
        if len(points) < 3:
            mended.append(
                f"{name}: {outline} has fewer than three points; it is left out"
            )
            continue
        group = element.get("PartOfGroup", "").lower()
        if group not in TUMOUR_GROUPS | HOLE_GROUPS:
            raise DpaError(
                f"{name}: {outline} is of the group {element.get('PartOfGroup')!r}; "
                f"known are {', '.join(sorted((TUMOUR_GROUPS | HOLE_GROUPS) - {''}))}"
            )
        outlines.append((outline, group, points))
    _check_crossings([points for *_, points in outlines], name)
    for outline, group, points in outlines:
        polygon = shapely.Polygon(points)
        if not polygon.is_valid:
            reason = validation.explain_validity(polygon)
            mended.append(
                f"{name}: the outline of {outline} crosses or touches itself "
                f"({reason}); the area it encloses is used"
            )
            polygon = shapely.make_valid(
                polygon, method="structure", keep_collapsed=False
            )
        (holes if group in HOLE_GROUPS else tumours).append(polygon)
    if not tumours:
        raise DpaError(f"{name} outlines no tumour")
    region = shapely.union_all(tumours).difference(shapely.union_all(holes))
    shapely.prepare(region)

    def coverage(x: float, y: float, side: float) -> float:
        square = shapely.box(x, y, x + side, y + side)
        if region.covers(square):
            return 1.0
        return region.intersection(square).area / side**2

    return coverage, mended


def _check_crossings(outlines: Sequence[Sequence], name: str) -> None:
    """Refuses outlines that cross so often that no time would do to find regions."""
    import shapely

    if not outlines:
        return
    corners = [np.array(points) for points in outlines]
    edges = [np.stack([c, np.roll(c, -1, axis=0)], axis=1) for c in corners]
    lines = shapely.linestrings(np.concatenate(edges))
    tree, near, block = shapely.STRtree(lines), 0, 64
    for first in range(0, len(lines), block):
        near += tree.query(lines[first : first + block]).shape[1]
        if near > _NEAR + _NEAR_EACH * len(lines):
            raise DpaError(
                f"{name} has outlines of {len(lines):,} points that cross each other "
                "or themselves too often to be drawn by hand; is it damaged?"
            )


def _points(element, name: str) -> list[tuple[float, float]]:
    try:
        points = [
            (float(c.attrib["X"]), float(c.attrib["Y"]))
            for c in sorted(
                element.iter("Coordinate"), key=lambda c: float(c.attrib["Order"])
            )
        ]
    except (KeyError, ValueError) as error:
        raise DpaError(f"{name} has a bad coordinate: {error}") from None
    if not np.isfinite(points).all():
        raise DpaError(f"{name} has a bad coordinate: it is not finite")
    return points


class _Plain(ElementTree.TreeBuilder):
    """Builds a tree; refuses a document type, whose entities can grow without bound."""

    def doctype(self, name, pubid, system):
        """Refuses it, before any entity is read."""
        raise ValueError("it has a document type, which ASAP writes none of")


def from_mask(mask: Slide, slide: Slide) -> Coverage:
    """Takes a mask slide as an annotation.

    Args:
      mask: an open slide of the same size, in grey values: tumour is 2 or more.
      slide: the slide that it belongs to.

    Raises:
      DpaError: the sizes differ, or no value says what is tumour.
    """
    if mask.size != slide.size:
        raise DpaError(
            f"{mask.path} has {mask.size[0]}x{mask.size[1]} pixels, but {slide.path} "
            f"{slide.size[0]}x{slide.size[1]}: the mask is of another slide or level"
        )
    # A lesion that could hold a patch covers hundreds of pixels at this scale.
    if (mask.overview(32, Image.Resampling.NEAREST) < 2).all():
        raise DpaError(
            f"{mask.path} has no value above 1: tissue is 1 and tumour 2 in some "
            f"masks of Camelyon, tumour 1 in others; put an annotation (.xml) beside "
            "it, or write its tumour as 2 or 255"
        )

    def coverage(x: float, y: float, side: float) -> float:
        x, y, side = round(x), round(y), round(side)
        square = mask.read(x, y, side, side, (side, side))[..., 0]
        return float((square > 1).mean())

    return coverage
