"""Who is let in, and where the server listens."""

import socket

import pytest

from dnnlib.util import UserError
from viz.web.server import check_address, is_own_page


@pytest.mark.parametrize(
    ('host', 'asked', 'origin', 'own'),
    [
        ('127.0.0.1', '127.0.0.1:8000', 'http://127.0.0.1:8000', True),
        ('127.0.0.1', 'localhost:9000', 'http://localhost:9000', True),  # through ssh -L 9000:localhost:8000
        ('::1', '[::1]:8000', 'http://[::1]:8000', True),
        ('127.0.0.1', 'localhost:8000', None, True),  # no browser
        ('127.0.0.1', '127.0.0.1:8000', 'http://evil.example', False),
        ('127.0.0.1', 'evil.example:8000', 'http://evil.example:8000', False),  # its name points to us
        ('127.0.0.5', '127.0.0.5:8000', 'http://127.0.0.5:8000', True),
        ('127.0.0.5', 'evil.example:8000', 'http://evil.example:8000', False),
        ('0.0.0.0', 'gpu.example:8000', 'http://gpu.example:8000', True),
        ('0.0.0.0', 'gpu.example:8000', 'http://evil.example', False),
    ],
)
def test_other_sites_are_not_let_in(host, asked, origin, own):
    headers = {'Host': asked} | ({'Origin': origin} if origin else {})
    assert is_own_page(headers, host) == own


def test_a_used_port_is_passed_over():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < check_address('127.0.0.1', port) < port + 20
    assert check_address('127.0.0.1', 0) == 0
    with pytest.raises(UserError, match='--host'):
        check_address('203.0.113.7', 8000)
