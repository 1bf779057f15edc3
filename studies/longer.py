"""Paths of motion in videos longer than those of training; `python -m studies.longer --help` explains."""

import dataclasses
from pathlib import Path
from typing import Annotated

from dnnlib.cli import Range, command

from studies.options import Runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Runs):
    """Compares paths of motion, each trained at equal cost, by videos of 128 frames.

    The base has the paper's path, the line; all rows train with the preset study and pairs of frames far
    apart. The same command given again continues.

    Example:
      python dataset_tool.py synth --dest long64.zip --people 8 --motions 24 --frames 64 --focal 7
        --resolution 32 --seed 4
      python dataset_tool.py synth --dest long128.zip --people 8 --motions 8 --frames 128 --focal 7
        --resolution 32 --seed 4
      python -m studies.longer --data long64.zip --reference long128.zip --outdir longer --minutes 60
    """

    data: Annotated[str, 'ZIP|DIR']  # to train on, clips of 64 frames
    reference: Annotated[str, 'ZIP|DIR']  # of the same people, clips of 128 frames, to compare with
    base: Annotated[str, 'CFG|PRESET'] = 'study'  # preset, or training_options.json of a run
    minutes: Annotated[float, Range(above=0)] = 60.0  # of training, for each run
    videos: Annotated[int, Range(2)] = 64  # of each network and of the reference
    # folder that keeps features and feature networks [default: ~/.cache/pv3d]
    cache: Annotated[Path, 'DIR'] | None = None


def run(options: Options) -> None:
    """Trains what is not trained yet, measures, and reports."""
    options.begin()
    from metrics.detectors.registry import default_cache
    from studies.comparison import run_and_compare
    from studies.long_rows import Wanted, make_tasks, metric_names
    from studies.measure import QUICK, Settings
    from torch_utils.misc import pick_device

    cache, device = options.cache or default_cache(), pick_device(options.device)
    settings = Settings(sizes=QUICK, cache=cache, device=device)
    wanted = Wanted(options.reference, metric_names(options.videos))
    made_of = options.base, options.data
    tasks = make_tasks(made_of, options.seeds, options.outdir, settings, 60 * options.minutes, wanted)
    run_and_compare(tasks, options.parallel, options.outdir)


main = command(Options, run, 'use --parallel 1')

if __name__ == '__main__':
    main()
