import numpy as np
from nuscenes.utils.geometry_utils import transform_matrix
from pyquaternion import Quaternion

from bevquant.data.geometry import pose_matrix, rigid_inverse


def random_record(generator: np.random.Generator) -> dict[str, list[float]]:
    rotation = generator.normal(size=4)
    return {"rotation": rotation.tolist(), "translation": generator.normal(size=3).tolist()}


def test_pose_matrix_is_the_devkits():
    generator = np.random.default_rng(0)
    for _ in range(10):
        record = random_record(generator)
        expected = transform_matrix(record["translation"], Quaternion(record["rotation"]).unit)
        np.testing.assert_allclose(pose_matrix(record), expected, atol=1e-12)


def test_rigid_inverse_is_the_inverse_of_stacked_poses():
    generator = np.random.default_rng(1)
    poses = np.stack([pose_matrix(random_record(generator)) for _ in range(6)]).reshape(2, 3, 4, 4)
    np.testing.assert_allclose(rigid_inverse(poses), np.linalg.inv(poses), atol=1e-12)
