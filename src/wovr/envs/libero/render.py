"""Pictures of a MuJoCo model, equal to LIBERO's pixel by pixel where `Look` asks for all that those show.

On a software renderer a picture costs by triangles (the robot alone has 160,000) and by their four samples a pixel
more than by pixels: half the time at 256 is that of multisampling, which is seen where it lacks. Mirror images
double the triangles, and meshes out of the camera's sight cost as much as others unless they are left out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wovr.core.types import Frames

COLLISION_GROUP, HIDDEN_GROUP = 0, 5


@dataclass(frozen=True, slots=True)
class Look:
    """How a scene is rendered; fields as in `LiberoConfig`."""

    image_size: int
    wrist: bool
    shadows: bool
    reflections: bool
    samples: int = 4


class Renderer:
    """Renders one model at one size. Imports mujoco when made."""

    def __init__(self, model: Any, look: Look) -> None:
        import mujoco

        model.vis.global_.offwidth = model.vis.global_.offheight = look.image_size
        model.vis.quality.offsamples = look.samples if look.samples > 1 else 0  # asked for 1, GL gives more
        self._model = model
        self._renderer = mujoco.Renderer(model, look.image_size, look.image_size)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = look.shadows
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = look.reflections
        self._option = mujoco.MjvOption()
        self._option.geomgroup[[COLLISION_GROUP, HIDDEN_GROUP]] = 0
        self._groups = model.geom_group.copy()
        # What is out of sight may still be mirrored, or cast a shadow into it.
        self._everything = look.shadows or look.reflections
        self._meshes = model.geom_type == int(mujoco.mjtGeom.mjGEOM_MESH)

    def picture(self, data: Any, camera: str) -> Frames:
        """(height, width, 3) as LIBERO shows it, rotated by 180 degrees."""
        if not self._everything:
            out_of_sight = self._meshes & ~_in_sight(self._model, data, self._model.camera(camera).id)
            self._model.geom_group[out_of_sight] = HIDDEN_GROUP
        self._renderer.update_scene(data, camera, self._option)
        self._model.geom_group[:] = self._groups
        # MuJoCo's renderer turns GL's picture upright. LIBERO does not, so that the rotated one is this one mirrored.
        return np.ascontiguousarray(self._renderer.render()[:, ::-1])

    def close(self) -> None:
        """Free what GL holds."""
        self._renderer.close()


def _in_sight(model: Any, data: Any, camera: int) -> NDArray[np.bool_]:
    """(number of geoms,) whether the box around a geom reaches into a square camera's field of view."""
    slope = np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    # Normals, pointing inwards, of the planes through the camera that bound what it sees; it looks along -z.
    inwards = np.array([[1, 0, -slope], [-1, 0, -slope], [0, 1, -slope], [0, -1, -slope]])
    inwards_P3 = inwards @ data.cam_xmat[camera].reshape(3, 3).T
    axes_G33 = data.geom_xmat.reshape(-1, 3, 3)
    centre_G3, half_G3 = model.geom_aabb[:, :3], model.geom_aabb[:, 3:]
    centre_G3 = data.geom_xpos + np.einsum("gij,gj->gi", axes_G33, centre_G3) - data.cam_xpos[camera]
    reach_PG = np.einsum("pgj,gj->pg", np.abs(np.einsum("pi,gij->pgj", inwards_P3, axes_G33)), half_G3)
    return (inwards_P3 @ centre_G3.T + reach_PG > -1e-3).all(axis=0)
