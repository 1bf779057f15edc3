"""Numbers of the world, for code with and without torch; training/camera.py has the conventions."""

LABEL_DIM = 25  # numbers of a camera label: 4x4 camera-to-world and 3x3 intrinsics
RADIUS = 2.7  # distance of the camera from the origin, scene units [EG3D FFHQ]
PIVOT = (0.0, 0.0, 0.2)  # point that sampled cameras look at, scene units [EG3D FFHQ]
FOCAL = 4.2647  # focal length in image widths [EG3D FFHQ]
