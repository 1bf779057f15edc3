"""The viewer in the browser, on viser. It knows networks and data sets; editing is handed in by the script.

server (browsers come and go) -> page (one of them) -> worker (newest request only) -> painter (image of a
state). Panels, the controls of a page: controls, geometry, capture, keyframes, clips, uploads, status.
"""
