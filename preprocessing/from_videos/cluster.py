"""Workers on other machines: a Dask cluster whose workers see the same files under the same paths."""

import concurrent.futures
import contextlib
import importlib.util
from collections.abc import Iterator

from dnnlib.util import UserError
from preprocessing.from_videos.stages import Pool

_JOIN_SEC = 60  # how long to wait for the first worker


@contextlib.contextmanager
def cluster_pool(address: str) -> Iterator[tuple[Pool, int]]:
    """Connects to a Dask scheduler; yields what opens its executor, and how many tasks it runs at a time.

    A task whose worker dies is given to another worker.

    Raises:
        UserError: if distributed is not installed, no worker can be reached, or a task kills its workers.
    """
    try:
        import distributed
    except ImportError as err:
        raise UserError("--scheduler needs Dask: pip install -e '.[cluster]'") from err
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(distributed.Client(address, set_as_default=False))
            client.wait_for_workers(1, timeout=_JOIN_SEC)
            find, package = importlib.util.find_spec, 'preprocessing'
            found = {'the scheduler': client.run_on_scheduler(find, package), **client.run(find, package)}
        except (OSError, ValueError, distributed.TimeoutError) as err:
            raise UserError(f'--scheduler {address} cannot be used: {err}') from err
        if lost := [name for name, spec in found.items() if spec is None]:
            raise UserError(f'{lost[0]} cannot import {package}; start it in the checkout, with PYTHONPATH=.')
        executor = client.get_executor(pure=False)  # two runs may do the same, and both write files
        stack.callback(executor.shutdown, wait=False)
        try:
            yield lambda _: contextlib.nullcontext(executor), sum(client.nthreads().values())
        except (distributed.KilledWorker, concurrent.futures.CancelledError) as err:
            raise UserError(f'--scheduler {address} has lost a task ({err}); are its workers alive?') from err
