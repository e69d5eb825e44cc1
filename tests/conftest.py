import os
import shutil
from pathlib import Path

import pytest

REAL_FRAME = Path(__file__).parents[1] / "../shared/data/nuscenes_frame"


@pytest.fixture(scope="session")
def real_frame() -> Path:
    """A data root with one real nuScenes key frame: version v1.0-frame, split frame."""
    if not REAL_FRAME.is_dir():
        pytest.skip(f"the real nuScenes frame is not here ({REAL_FRAME})")
    return REAL_FRAME.resolve()


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated world of two scenes of two key frames, one scene a split. Don't change it."""
    world = pytest.importorskip("bevquant.data.world")
    root = tmp_path_factory.mktemp("world") / "world"
    settings = world.WorldSettings(
        scenes=2, keyframes=2, seed=3, sweeps=2, val_fraction=0.5, labels=True
    )
    world.generate(root, settings)
    return root


@pytest.fixture
def damaged_world(tiny_world: Path, tmp_path: Path) -> Path:
    """A copy of the tiny world for one test; replace files there, never write into them."""
    return Path(shutil.copytree(tiny_world, tmp_path / "world", copy_function=os.link))
