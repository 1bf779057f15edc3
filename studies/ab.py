"""Trains a base and changes of it at equal cost; `python -m studies.ab --help` explains."""

import dataclasses
from pathlib import Path
from typing import Annotated

from dnnlib.cli import Range, command

from dnnlib.util import usable_cores
from studies.options import Runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Runs):
    """Compares changes of a training run, each trained at equal cost from several seeds.

    Every run has one thread and the same time of the processor (on a GPU: of the clock), whatever else the
    machine does. The same command given again continues, and a new --change is added to what is there.

    Example:
      python -m studies.ab --base study --data faces.zip --outdir ab --change loss.r1_gamma=1
        --change d_video.pair=difference+loss.video_weight=1 --minutes 15 --seeds 0,1
    """

    base: Annotated[str, 'CFG|PRESET']  # preset, or training_options.json of a run
    data: Annotated[str, 'ZIP|DIR']  # data of `dataset_tool.py synth`
    # options that one run sets, joined by +; may be given several times
    change: Annotated[tuple[str, ...], 'PATH=VALUE'] = ()
    minutes: Annotated[float, Range(above=0)] = 15.0  # of training, for each run
    resume: Annotated[str, 'PKL'] | None = None  # all runs start from the weights of this snapshot
    full: bool = False  # measure with all codes: four times longer, half the errors
    # folder that keeps renderings of the data [default: beside them]
    cache: Annotated[Path, 'DIR'] | None = None


def run(options: Options) -> None:
    """Trains what is not trained yet, then reports."""
    options.begin()
    from dnnlib.config import override
    from studies.arms import Budget, Task, base_config, make_arm, split_changes
    from studies.comparison import run_and_compare
    from studies.judges import TruthJudge
    from studies.measure import FULL, QUICK, Settings, prepare
    from torch_utils.misc import pick_device

    settings = Settings(
        sizes=FULL if options.full else QUICK,
        cache=options.cache,
        workers=usable_cores(),
        device=pick_device(options.device),
    )
    base = base_config(options.base, options.data, options.resume)
    configs = {'base': base, **{text: override(base, split_changes(text)) for text in options.change}}
    arms = [make_arm(n, seed, c, options.outdir) for seed in options.seeds for n, c in configs.items()]
    prepare(options.data, base.generator, settings)
    judge = TruthJudge(settings, options.full)
    tasks = [Task(arm, Budget(seconds=60 * options.minutes), judge) for arm in arms]
    run_and_compare(tasks, options.parallel, options.outdir)


main = command(Options, run, 'use --parallel 1')

if __name__ == '__main__':
    main()
