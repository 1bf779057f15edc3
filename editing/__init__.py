"""Videos of a person whose code is known: found for an image or a video, moved, edited, seen from elsewhere.

Alphabet: T frames; ws [1, num_ws, w_dim] is who it is, u [T, motion_dim] what the face does (all that a
network sees of motion codes and time, `RadianceGenerator.motion_at`), cameras [T, 25] from where. The network
is known through its contract alone. Source: PV3D section 4.4; what is beyond it says so.
"""
