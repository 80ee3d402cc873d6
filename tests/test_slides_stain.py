"""Stain normalisation against independent solutions of the same problems."""

import numpy as np
import pytest
import scipy.optimize
import slide_factory
from sklearn.decomposition import DictionaryLearning

from dpa_jax.errors import DpaError
from dpa_jax.slides import stain


@pytest.fixture(scope="module")
def image():
    return slide_factory.stained((96, 128), seed=3)


def densities(image, count):
    pixels = image.reshape(-1, 3)[:: image[..., 0].size // count].astype(np.float64)
    return -np.log(np.maximum(pixels, 1) / 255)


def objective(density, codes, matrix):
    error = 0.5 * ((density - codes @ matrix) ** 2).sum(1)
    return (error + 0.1 * codes.sum(1)).mean()


def test_concentrations_solve_the_non_negative_lasso(image):
    matrix = np.array([[0.6, 0.75, 0.28], [0.13, 0.98, 0.13]])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    # With pixels of one stain alone and of neither, so that both bounds are met.
    density = np.concatenate(
        [
            densities(image, 40),
            [[1.2, 0.3, 0.2], [0.0, 1.0, 0.0], [0.02, 0.02, 0.02]],
        ]
    )
    codes = stain.concentrations(density, matrix)
    for pixel, code in zip(density, codes, strict=True):
        expected = scipy.optimize.minimize(
            lambda h, pixel=pixel: (
                0.5 * ((pixel - h @ matrix) ** 2).sum() + 0.1 * h.sum()
            ),
            [0.5, 0.5],
            bounds=[(0, None)] * 2,
            tol=1e-14,
        ).x
        np.testing.assert_allclose(code, expected, atol=1e-5)
    assert (codes[:, 0] == 0).any() and (codes[:, 1] == 0).any()


def test_stain_matrix_is_the_dictionary_that_sklearn_learns(image):
    density = densities(image, 400)
    learner = DictionaryLearning(
        2,
        alpha=0.1,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        positive_code=True,
        positive_dict=True,
        max_iter=200,
        tol=1e-10,
        random_state=0,
    )
    expected = learner.fit(density).components_
    expected = expected[np.argsort(-expected[:, 0])]
    matrix = stain.stain_matrix(density)
    np.testing.assert_allclose(matrix, expected, atol=1e-4)


def test_stain_matrix_is_a_local_minimum(image, rng):
    density = densities(image, 400)
    matrix = stain.stain_matrix(density)
    best = objective(density, stain.concentrations(density, matrix), matrix)
    for _ in range(50):
        other = np.maximum(matrix + rng.normal(0, 1e-3, matrix.shape), 0)
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        codes = stain.concentrations(density, other)
        assert objective(density, codes, other) >= best


def test_tissue_follows_lightness():
    # L* of grey 203 is 81.7 and of grey 197 is 79.6 (IEC 61966-2-1, CIE 1976).
    image = np.array([[[203] * 3, [197] * 3]], np.uint8)
    assert stain.is_tissue(image).tolist() == [[False, True]]


def test_image_normalised_to_itself_keeps_its_stains(image):
    profile = stain.estimate(image)
    again = stain.estimate(stain.normalize(image, profile))
    np.testing.assert_allclose(again.matrix, profile.matrix, atol=0.03)
    # What the sparsity takes, about lambda of each stain, is taken twice.
    assert (again.maxima <= profile.maxima).all()
    assert (again.maxima >= profile.maxima - 0.25).all()


def test_differently_stained_images_come_out_alike(image):
    target = stain.estimate(image)
    other = slide_factory.stained(
        image.shape[:2],
        seed=3,  # the same tissue
        hematoxylin=np.array([0.5, 0.8, 0.35]),
        eosin=np.array([0.2, 0.9, 0.3]),
        strength=1.4,
    )
    before = np.abs(other.astype(float) - image).mean()
    first = stain.normalize(image, target).astype(float)
    second = stain.normalize(other, target).astype(float)
    assert np.abs(first - second).mean() < 0.3 * before


def test_normalisation_is_deterministic(image):
    target = stain.estimate(slide_factory.stained((64, 64), seed=9))
    first, second = (stain.normalize(image, target) for _ in range(2))
    assert (first == second).all()


def test_profile_survives_a_file(image, tmp_path):
    profile = stain.estimate(image, "normal_056:1,2,3,4")
    stain.save(profile, tmp_path / "target.npz")
    again = stain.load(tmp_path / "target.npz")
    assert (again.matrix == profile.matrix).all()
    assert (again.maxima == profile.maxima).all()
    assert again.source == "normal_056:1,2,3,4"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text"])
def test_file_of_something_else_is_refused(content, tmp_path):
    (tmp_path / "target.npz").write_bytes(content)
    with pytest.raises(DpaError, match="cannot read .*target.npz: it is not an .npz"):
        stain.load(tmp_path / "target.npz")


def test_profile_with_nan_is_refused(tmp_path):
    matrix = np.full((2, 3), np.nan)
    np.savez(tmp_path / "t.npz", matrix=matrix, maxima=np.ones(2), source="")
    with pytest.raises(DpaError, match="finite"):
        stain.load(tmp_path / "t.npz")


def test_blank_image_has_no_stains():
    with pytest.raises(stain.StainError, match="only 0 of 4096 pixels are stained"):
        stain.estimate(np.full((64, 64, 3), 245, np.uint8))
