"""Commands that show: signal, lab, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stepalign.cli.options import OutOption, SetOption, interrupted
from stepalign.config import Config
from stepalign.errors import ConfigError
from stepalign.events import line


def signal(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_RUN",
            help="JSONL with question, completion and contexts (name -> text), a run folder, or a shipped example "
            "(fizzbuzz, integral, correct, one-wrong-step, wrong-approach).",
        ),
    ],
    out: OutOption,
    model: Annotated[
        str, typer.Option("--model", help="Scores the rollouts: a folder or a Hub name. A run brings its own.")
    ] = "",
    contexts: Annotated[
        str, typer.Option("--contexts", help="Names separated by commas: designs for a run, columns of a file.")
    ] = "",
    num: Annotated[
        int | None, typer.Option("--num", help="Rollouts from the first on; 256 of a run, all of a file.", min=1)
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="Prompts and temperature for a file come from this recipe.")
    ] = "",
    settings: SetOption = None,
) -> None:
    """A_t of attempts under several contexts: signal.jsonl, arrays and a page; goes on where it stopped."""
    from stepalign.verbs.configs import config_for_file
    from stepalign.verbs.progress import Display, console
    from stepalign.verbs.signal.from_jsonl import find_file
    from stepalign.verbs.signal.from_run import analyse_file, analyse_run

    path = find_file(source)
    names = tuple(name.strip() for name in contexts.split(",") if name.strip())
    with Display(transient=True) as display:
        try:
            if path.is_dir():
                if recipe:
                    raise ConfigError("a run brings its own recipe", where="--recipe", hint="change keys with --set")
                page = analyse_run(
                    path, out, contexts=names, model=model, num=num, settings=settings or (),
                    listener=display,
                )  # fmt: skip
            else:
                if not model:
                    raise ConfigError(
                        "a file needs a model that scores it", where="--model", hint="--model FOLDER or a Hub name"
                    )
                config, prompts_from = config_for_file(model, recipe, settings)
                display(line(_prompts_said(config, prompts_from)))
                page = analyse_file(
                    path, out, config, contexts=names, num=num, prompts_from=prompts_from, listener=display
                )  # fmt: skip
        except KeyboardInterrupt:
            raise interrupted("the same command") from None
    console.print(f"page: {page}")


def _prompts_said(config: Config, prompts_from: str) -> str:
    section = config.prompts
    student, teacher = (text.strip().splitlines()[0] for text in (section.student, section.self_teacher))
    options = section.student_chat_options or "none"
    return (
        f"student prompt {student!r}, self-teacher prompt {teacher!r}, system message {section.system or 'none'!r}, "
        f"chat options {options}, temperature {config.sampling.temperature:g} (from {prompts_from}; --recipe, --set or "
        "columns of the file change them)"
    )


def lab(
    model: Annotated[str, typer.Argument(help="A model folder, a Hub name, or embedded:arithmetic.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Prompts, temperature and critic; else the defaults.")] = "",
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1; any free one by default.", min=0)] = 0,
    settings: SetOption = None,
) -> None:
    """A local page: edit feedback and see at once which tokens it reinforces or suppresses."""
    from stepalign.verbs.lab import open_lab
    from stepalign.verbs.progress import Display

    open_lab(model, recipe=recipe, port=port, settings=settings or (), listener=Display("lab"))


SignalArgument = Annotated[
    Path, typer.Argument(metavar="SIGNAL_DIR", help="What `stepalign signal`, `compare` or `demo` has written.")
]
RolloutOption = Annotated[str, typer.Option("--rollout", help="A rollout_id, or a position on the page from 0 on.")]
ContextOption = Annotated[
    list[str] | None, typer.Option("--context", help="Show only this context; may be given several times.")
]


def show(folder: SignalArgument, rollout: RolloutOption = "0", contexts: ContextOption = None) -> None:
    """One rollout in the terminal, token by token: the twin of the page."""
    from stepalign.report.terminal import print_rollout
    from stepalign.token_signal.files import load_signal
    from stepalign.verbs.progress import console

    print_rollout(load_signal(folder, rollout), rollout, contexts=contexts or (), console=console)


def figure(
    folder: SignalArgument,
    out: Annotated[Path, typer.Option("--out", help="The file: its suffix .pdf, .svg or .png is the format.")],
    rollout: RolloutOption = "0",
    contexts: ContextOption = None,
    steps: Annotated[
        list[str] | None, typer.Option("--step", help="Draw only this step; may be given several times.")
    ] = None,
    width: Annotated[str, typer.Option("--width", help="Exact width: 5.5in, 14cm, 397.5pt (TeX points).")] = "5.5in",
    font_size: Annotated[float, typer.Option("--font-size", help="Points.", min=3, max=40)] = 7.0,
    dpi: Annotated[int, typer.Option("--dpi", help="Dots per inch of a PNG.", min=30, max=1200)] = 300,
) -> None:
    """One rollout as a picture for a paper: contexts stacked, one scale, fonts embedded."""
    from stepalign.report.figure import parse_width, write_figure
    from stepalign.token_signal.files import load_signal
    from stepalign.verbs.progress import console

    inches = parse_width(width)
    missing = write_figure(
        load_signal(folder, rollout), out, rollout=rollout, contexts=contexts or (), steps=steps or (),
        width=inches, font_size=font_size, dpi=dpi,
    )  # fmt: skip
    if missing:
        some = ", ".join(f"U+{ord(character):04X}" for character in missing[:8])
        console.print(f"warning: no installed font has {some}; the figure shows boxes there", style="yellow")
    console.print(f"figure: {out}")


def report(
    folders: Annotated[list[Path], typer.Argument(help="A comparison folder, or one or more folders of train.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the page of several runs goes; else into the folder itself.")
    ] = None,
) -> None:
    """The page and the tables of a comparison, of a run, or of several runs side by side; finished or not."""
    from stepalign.verbs.progress import console
    from stepalign.verbs.report import write_reports

    console.print(f"page: {write_reports(folders, out)}")
