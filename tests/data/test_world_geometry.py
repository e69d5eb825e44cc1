import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevquant.data.world import camera, lidar
from bevquant.data.world.geometry import GROUND, Plane, Rays, cast, corners, rotate, slab
from bevquant.data.world.rig import LIDAR, MOUNTS, mount_pose
from bevquant.data.world.route import Route
from bevquant.data.world.scene import make_scene
from bevquant.data.world.settings import WorldSettings

SETTINGS = WorldSettings(keyframes=2, image_size=(30, 52), azimuths=60)
ANGLES = st.floats(-3.1, 3.1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), ANGLES)
def test_slab_enters_and_leaves_through_the_surface(seed: int, yaw: float) -> None:
    rng = np.random.default_rng(seed)
    half = rng.uniform(0.3, 3.0, 3)
    origin = rng.uniform(4.0, 9.0, 3) * rng.choice([-1, 1], 3)
    target = rng.uniform(-1.2, 1.2, (20, 3)) * half
    direction = (target - origin).astype(np.float32)
    enter, leave = slab(origin, direction, half, yaw)
    turn = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    steps = np.linspace(0, 3, 1500)[:, None, None]
    local = (origin + steps * direction) @ turn.T
    inside = (np.abs(local) <= half).all(-1)
    for ray in range(len(target)):
        if inside[:, ray].sum() > 2:
            where = steps[inside[:, ray], 0, 0]
            assert enter[ray] == pytest.approx(where[0], abs=0.003)
            assert leave[ray] == pytest.approx(where[-1], abs=0.003)
        elif enter[ray] + 0.01 < leave[ray]:
            pytest.fail("hit where no sample of the ray is inside")


def test_windows_lose_no_hit() -> None:
    """Casting inside the windows finds what casting every ray at every box finds."""
    scene = make_scene(SETTINGS, 2)
    solids, ego = scene.solids(0.0), scene.ego(0.0)
    everything = slice(None)
    for channel in MOUNTS:
        pose = ego @ mount_pose(channel)
        points = pose.inverse(corners(solids.centre, solids.half, solids.yaw))
        if channel == LIDAR:
            directions = lidar.beams(SETTINGS)
            windows = list(lidar._windows(points, SETTINGS.azimuths))
        else:
            matrix = MOUNTS[channel].camera_matrix(SETTINGS.image_size)
            directions = camera.pixel_rays(matrix, SETTINGS.image_size)
            windows = list(camera._windows(points, matrix, SETTINGS.image_size))
        rays = Rays(pose.translation, rotate(pose.rotation, directions))
        found = cast(rays, scene.plane, solids, windows, len(scene.actors))
        every = [(index, everything, everything) for index in range(len(solids))]
        truth = cast(rays, scene.plane, solids, every, len(scene.actors))
        near = truth.distance < 80
        assert np.array_equal(found.distance[near], truth.distance[near])
        assert (found.solid[near] == truth.solid[near]).mean() > 0.999


@pytest.mark.parametrize("grade", [(0.0, 0.0), (0.04, 0.0), (-0.02, 0.03)])
def test_rays_meet_the_slope(grade: tuple[float, float]) -> None:
    plane = Plane(grade)
    origin = np.array([120.0, 80.0, float(plane.height(np.array(120.0), np.array(80.0))) + 1.8])
    angle = np.linspace(-3, 3, 50)
    direction = np.stack([np.cos(angle), np.sin(angle), np.full(50, -0.2)], -1)[None]
    solids = make_scene(SETTINGS, 0).block.scenery
    hits = cast(Rays(origin, direction.astype(np.float32)), plane, solids, [], 0)
    assert (hits.solid == GROUND).all()
    spots = origin + hits.distance[..., None] * direction
    assert spots[..., 2] == pytest.approx(plane.height(spots[..., 0], spots[..., 1]), abs=1e-3)


@settings(deadline=None)
@given(ANGLES, st.floats(0, 12), st.floats(-5, 20), st.sampled_from([-np.pi / 2, 0.0, np.pi / 2]))
def test_a_route_moves_along_its_heading_at_its_speed(
    heading: float, speed: float, straight: float, turn: float
) -> None:
    route = Route((3.0, -2.0), heading, speed, straight, turn, 9.0)
    time = np.linspace(-1, 5, 2001)
    place, yaw = route.at(time)
    velocity = np.gradient(place, time, axis=0)
    assert np.hypot(*velocity.T) == pytest.approx(np.full(2001, speed), abs=1e-3 + 1e-3 * speed)
    ahead = speed * np.stack([np.cos(yaw), np.sin(yaw)], -1)
    assert velocity == pytest.approx(ahead, abs=0.01 * speed + 1e-6)


def test_the_car_stands_on_the_slope() -> None:
    for index in range(3):
        scene = make_scene(SETTINGS, index)
        for time in (-0.5, 0.0, 0.5):
            pose = scene.ego(time)
            assert pose.rotation @ pose.rotation.T == pytest.approx(np.eye(3), abs=1e-12)
            assert np.linalg.det(pose.rotation) == pytest.approx(1.0)
            assert pose.rotation[:, 2] @ scene.plane.normal() > np.cos(0.011)
            height = scene.plane.height(pose.translation[0], pose.translation[1])
            assert pose.translation[2] == pytest.approx(float(height))
