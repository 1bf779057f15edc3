"""The server: browsers come and go, each with a page of its own; a run may bring a new network."""

import contextlib
import io
import ipaddress
import math
import socket
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from dnnlib.scene import FOCAL, PIVOT, RADIUS, fov_degrees
from dnnlib.util import UserError
from viz.web.page import Page
from viz.web.painter import Painter

_PORTS = 20  # are tried from the wanted one on
BuildPanels = Callable[[Page], None]


class Viewer:
    """Serves pages until it is stopped."""

    def __init__(self, painter: Painter | None, build: BuildPanels, host: str, port: int) -> None:
        """Starts to listen.

        Args:
            painter: draws for all pages; None = there is no network.
            build: gives a page its panels.
            host: address to listen at.
            port: 0 = any that is free.

        Raises:
            UserError: if viser is missing, or the address cannot be used.
        """
        try:
            import viser
        except ImportError as err:
            raise UserError("the viewer needs viser; pip install 'pv3d[viewer]' or make install") from err

        class Server(viser.ViserServer):
            """viser's, but nothing of it leaves the machine."""

            def request_share_url(self, verbose: bool = True) -> str | None:
                """Opens no tunnel, whatever a page asks for."""
                return None

        self.host, self.painter, self._build = host, painter, build
        self.pages: dict[int, Page] = {}
        self._lock = threading.Lock()
        port = check_address(host, port)
        with contextlib.redirect_stdout(io.StringIO()):  # a banner; the script prints the address
            self.server = Server(host=host, port=port, verbose=False)
        self.server.scene.set_up_direction('+y')
        self.server.scene.add_light_ambient('/light', intensity=1.0)  # meshes have no black side
        self.server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        start = self.server.initial_camera
        start.position, start.look_at = (0.0, 0.0, RADIUS), PIVOT
        start.fov = math.radians(fov_degrees(painter.model.G.config.focal if painter else FOCAL))
        self.server.on_client_connect(self._connect)
        self.server.on_client_disconnect(self._disconnect)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = {'0.0.0.0': 'localhost', '::': 'localhost'}.get(self.host, self.host)
        return f'http://{host}:{self.server.get_port()}'

    @property
    def tunnel(self) -> str:
        """The command that brings a page to another machine."""
        port = self.server.get_port()
        return f'ssh -L {port}:localhost:{port} {socket.gethostname()}'

    def replace(self, painter: Painter) -> None:
        """Shows another network on all pages, which keep their state."""
        self.painter = painter
        for page in list(self.pages.values()):
            page.painter = painter
            if page.state.person not in painter.model.people:
                page.change(person='')
            page.redraw()

    def message(self, text: str, title: str) -> None:
        """Shows a sentence on all pages."""
        for page in list(self.pages.values()):
            page.message(text, title)

    def stop(self) -> None:
        """Ends the pages and the server."""
        for page in list(self.pages.values()):
            page.close()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def _connect(self, client: Any) -> None:
        connection = self.server._websock_server._live_connections.get(client.client_id)
        if connection is None or not is_own_page(connection.request.headers, self.host):
            return  # another site's script has no page here
        page = Page(client, self.painter)
        with self._lock:
            self.pages[client.client_id] = page
        self._build(page)
        client.camera.on_update(page.guard(page.look))
        if page.backdrop is None:  # else a panel has moved the camera
            page.aim()
        page.redraw()

    def _disconnect(self, client: Any) -> None:
        with self._lock:
            page = self.pages.pop(client.client_id, None)
        if page is not None:
            page.close()


def is_own_page(headers: Mapping[str, str], host: str) -> bool:
    """Returns whether a browser's connection comes from a page of ours, not from one of another site.

    Any site may open a socket to this machine, but browsers state which it is (Origin). A site whose name
    points to this machine calls us by it (Host), and a server that only this machine reaches has no name.

    Args:
        headers: of the request.
        host: that the server listens at.
    """
    asked, origin = headers.get('Host', ''), headers.get('Origin')
    if origin is not None and origin.partition('://')[2] != asked:
        return False
    name = urllib.parse.urlsplit(f'//{asked}').hostname
    return not is_loopback(host) or is_loopback(name or '')


def is_loopback(host: str) -> bool:
    """Returns whether a name or address is that of this machine for itself alone."""
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(host: str, port: int) -> int:
    """Returns the first free port from `port` on at an address, or 0 for any.

    Raises:
        UserError: if this machine has no such address, or no free port near by.
    """
    last = None
    for candidate in range(port, port + _PORTS) if port else (0,):
        try:
            family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family, socket.SOCK_STREAM) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind((host, candidate))
            return candidate
        except (OSError, OverflowError) as err:
            last = err
    raise UserError(f'--host {host} --port {port} cannot be used: {last}; give others')
