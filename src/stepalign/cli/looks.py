"""The commands that show, ask and serve, behind those of ``commands`` in ``--help``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from stepalign.cli.commands import app
from stepalign.cli.options import OutFolder, Recipe, Resume, Set, note_new_run, say, working
from stepalign.errors import ConfigError
from stepalign.events import line, progress
from stepalign.outside import shown

Source = Annotated[
    str,
    typer.Argument(
        metavar="FILE_OR_RUN",
        help="JSONL with question, completion and contexts (name -> text), a run folder, a dump of another trainer "
        "(docs/dumps.md), or a shipped example (clock, fizzbuzz, integral, correct, one-wrong-step, wrong-approach).",
    ),
]
ScoringModel = Annotated[
    str, typer.Option("--model", help="Scores the rollouts: a folder or a Hub name. A run brings its own.")
]
ContextNames = Annotated[
    str, typer.Option("--contexts", help="Names separated by commas: designs for a run, columns of a file.")
]
Num = Annotated[
    int | None, typer.Option("--num", help="Rollouts from the first on; 256 of a run, all of a file.", min=1)
]
FileRecipe = Annotated[str, typer.Option("--recipe", help="Prompts and temperature for a file come from this recipe.")]
Critiques = Annotated[
    Path | None, typer.Option("--critiques", help="What `stepalign critique` wrote of the same dump.")
]
Checkpoints = Annotated[
    str, typer.Option("--checkpoints", help="Of a run: all, or steps separated by commas; 0 is untrained.")
]
Spelling = Annotated[
    str, typer.Option("--tokenizer", help="Spells the token ids of a dump that is shown without --model.")
]
Counterfactual = Annotated[
    int, typer.Option("--counterfactual", help="Continuations at the strongest tokens of a run, each.", min=0)
]


@app.command()
def signal(
    source: Source,
    out: OutFolder,
    model: ScoringModel = "",
    contexts: ContextNames = "",
    num: Num = None,
    recipe: FileRecipe = "",
    critiques: Critiques = None,
    checkpoints: Checkpoints = "",
    tokenizer: Spelling = "",
    counterfactual: Counterfactual = 0,
    settings: Set = None,
) -> None:
    """A_t of attempts under several contexts: signal.jsonl, arrays and a page; goes on where it stopped."""
    from stepalign.problems.dumps import open_dump
    from stepalign.verbs.signal.rows import find_file

    path = find_file(source)
    names = tuple(name.strip() for name in contexts.split(",") if name.strip())
    dump = None if (path / "config.toml").exists() else open_dump(path)
    if counterfactual and (dump is not None or not path.is_dir()):
        raise ConfigError("only a run has problems to go on with", where="--counterfactual", hint="give a run folder")
    with working(transient=True, resume="", kept="analysed rollouts are kept") as display:
        if dump is not None:
            from stepalign.config import load_config
            from stepalign.verbs.configs import config_for_file, prompts_said
            from stepalign.verbs.signal.from_dump import analyse_dump, show_dump

            if model:
                config, origin = config_for_file(model, recipe, settings)
                display(line(prompts_said(config, origin)))
                page = analyse_dump(
                    dump, out, config, contexts=names, critiques=critiques, num=num, prompts_from=origin,
                    listener=display,
                )  # fmt: skip
            else:
                config = load_config(recipe or None, settings or ())
                page = show_dump(dump, out, config, tokenizer=tokenizer, num=num, listener=display)
        elif path.is_dir():
            if recipe:
                raise ConfigError("a run brings its own recipe", where="--recipe", hint="change keys with --set")
            if checkpoints:
                from stepalign.verbs.signal.over_training import analyse_checkpoints

                page = analyse_checkpoints(
                    path, out, checkpoints, contexts=names, num=num, settings=settings or (), listener=display
                )
                say(f"page: {page}")
                return
            from stepalign.verbs.signal.from_run import analyse_run

            page = analyse_run(
                path,
                out,
                contexts=names,
                model=model,
                num=num,
                counterfactual=counterfactual,
                settings=settings or (),
                listener=display,
            )
        else:
            from stepalign.verbs.configs import config_for_file, prompts_said
            from stepalign.verbs.signal.from_jsonl import analyse_file

            if not model:
                hint = "--model FOLDER or a Hub name"
                raise ConfigError("a file needs a model that scores it", where="--model", hint=hint)
            config, origin = config_for_file(model, recipe, settings)
            display(line(prompts_said(config, origin)))
            page = analyse_file(path, out, config, contexts=names, num=num, prompts_from=origin, listener=display)
    say(f"page: {page}")


SignalFolder = Annotated[
    Path, typer.Argument(metavar="SIGNAL_DIR", help="What `stepalign signal`, `compare` or `demo` has written.")
]
Rollout = Annotated[str, typer.Option("--rollout", help="A rollout_id, or a position on the page from 0 on.")]
Contexts = Annotated[
    list[str] | None, typer.Option("--context", help="Show only this context; may be given several times.")
]


@app.command()
def show(folder: SignalFolder, rollout: Rollout = "0", contexts: Contexts = None) -> None:
    """One rollout in the terminal, token by token: the twin of the page."""
    from stepalign.report.terminal import print_rollout
    from stepalign.token_signal.files import load_signal
    from stepalign.verbs.progress import console

    print_rollout(load_signal(folder, rollout), rollout, contexts=contexts or (), console=console)


@app.command()
def figure(
    folder: SignalFolder,
    out: Annotated[Path, typer.Option("--out", help="The file: its suffix .pdf, .svg or .png is the format.")],
    rollout: Rollout = "0",
    contexts: Contexts = None,
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
    say(f"figure: {out}")


@app.command()
def lab(
    model: Annotated[str, typer.Argument(help="A model folder, a Hub name, or embedded:arithmetic.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Prompts, temperature and critic; else the defaults.")] = "",
    port: Annotated[
        int, typer.Option("--port", help="Port on 127.0.0.1; any free one by default.", min=0, max=65535)
    ] = 0,
    settings: Set = None,
) -> None:
    """A local page: edit feedback and see at once which tokens it reinforces or suppresses."""
    from stepalign.verbs.lab import open_lab
    from stepalign.verbs.progress import Display

    open_lab(model, recipe=recipe, port=port, settings=settings or (), listener=Display("lab"))


@app.command()
def critique(
    rollouts: Annotated[
        Path,
        typer.Argument(help="A run folder, its rollouts.jsonl, JSON lines of attempts, or a dump (docs/dumps.md)."),
    ],
    out: OutFolder,
    critic: Annotated[
        str,
        typer.Option("--critic", help="A recipe, URLs (http://host/v1, ...), or a program: programmatic, calculation."),
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="Name of the critic on its server; not needed where that has only one.")
    ] = "",
    columns: Annotated[
        str, typer.Option("--columns", help="Columns of a plain file: question=COLUMN,completion=COLUMN,...")
    ] = "",
    cache_only: Annotated[
        bool, typer.Option("--critic-cache-only", help="Replay from the cache; never call the critic.")
    ] = False,
    settings: Set = None,
    resume: Resume = False,
) -> None:
    """Ask a critic about stored attempts and say what is wrong with its critiques: a linter for feedback."""
    from stepalign.report.critiques import critique_lines
    from stepalign.verbs.attempts import read_attempts
    from stepalign.verbs.configs import config_with_critic, parse_pairs
    from stepalign.verbs.critique import critique_rollouts, refuse_without_critiques

    attempts = read_attempts(rollouts, parse_pairs(columns))
    say(*filter(None, [attempts.about]))
    config = config_with_critic(attempts.config, critic, model, settings, cache_only=cache_only)
    note_new_run(out, resume)
    with working(transient=True, kept="every critique that came is kept") as display:
        summary = critique_rollouts(config, attempts, out, resume=resume, listener=display)
    say(*critique_lines(summary))
    say(f"page: {out / 'index.html'}")
    refuse_without_critiques(summary)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or what `stepalign critique` wrote.")],
    to: Annotated[str, typer.Option("--to", help="trl, verl, swift, jsonl: their columns; or hub: weights and card.")],
    out: Annotated[Path, typer.Option("--out", help="A file; for hub a new folder.")],
) -> None:
    """Contexts and critiques as the data of another trainer, .jsonl or .parquet; or weights and card for the Hub."""
    from stepalign.verbs.export import export as write

    if to == "hub":
        from stepalign.verbs.hub_folder import write_hub_folder

        return say(*write_hub_folder(folder, out), f"hf upload OWNER/{out.name} {out}")
    return say(f"{write(folder, to, out)} rows: {out}")


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="A comparison folder, folders of train, or a file of completions from evaluate."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the page of several runs goes; else into the folder itself.")
    ] = None,
) -> None:
    """The page and the tables of a comparison, of a run, or of several runs side by side, finished or not; or of
    completions."""
    from stepalign.verbs.progress import Display
    from stepalign.verbs.report import write_reports

    with Display(transient=True) as display:
        page = write_reports(folders, out, display)
    say(f"page: {page}")


# ---------------------------------------------------------------------------------------------------------------------
# Commands of the embedded task and of a comparison


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A model as in model.path: a folder, a Hub name, embedded:arithmetic.")],
    only_print: Annotated[bool, typer.Option("--print", help="Print the server's command, and do not run it.")] = False,
    host: Annotated[
        str, typer.Option("--host", help="Another address than this machine's own only on a private network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    python: Annotated[str, typer.Option("--python", help="Interpreter of the environment that has vLLM.")] = "python3",
    length: Annotated[int, typer.Option("--max-model-len", help="Tokens of prompt and completion.", min=1)] = 4096,
    lora_rank: Annotated[int, typer.Option("--lora-rank", help="Of the largest adapter.", min=1)] = 64,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--cpu", help="Where the server runs; by default on a GPU if one is here.")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu-memory", help="Share of the card, where it is not alone there.", min=0, max=1)
    ] = None,
) -> None:
    """Run a vLLM server that sampling.engine = "vllm" draws rollouts from."""
    from stepalign.verbs.serve import run, server_command

    command = server_command(
        model,
        host=host,
        port=port,
        python=python,
        max_model_len=length,
        lora_rank=lora_rank,
        gpu=gpu,
        gpu_memory=gpu_memory,
        elsewhere=only_print,
    )
    if only_print:
        return print(shown(command))
    raise typer.Exit(run(command))


@app.command()
def warmstart(
    out: OutFolder,
    seed: Annotated[int, typer.Option("--seed", help="Another solver: other first weights, other weak facts.")] = 1,
    steps: Annotated[int, typer.Option("--steps", help="Only so many steps, to try it out.", min=0)] = 0,
) -> None:
    """Make the embedded solver and its problem sets again, from nothing; needs a checkout of the repository."""
    from stepalign.verbs.progress import Display

    script = Path(__file__).resolve().parents[3] / "dev" / "make_embedded.py"
    if not script.is_file():
        raise ConfigError(
            "the script that makes the embedded solver is in the repository, not in the installed package",
            where=str(script),
            hint="clone the repository, pip install --editable . in it, and give the command again",
        )
    sys.path.insert(0, str(script.parent))
    make_embedded = importlib.import_module("make_embedded").make_embedded
    with Display(transient=True) as display:
        found = make_embedded(
            out,
            seed=seed,
            max_steps=steps or None,
            on_step=lambda done, total, note: display(progress("warm start", done, total, note)),
        )
    say(*found)


@app.command("signal-of-base", hidden=True)
def signal_of_base(recipe: Recipe, out: OutFolder) -> None:
    """The analysis of a comparison's untrained solver; ``compare`` calls this."""
    from stepalign.config import load_config
    from stepalign.verbs.progress import Display
    from stepalign.verbs.signal.base import write_signal

    write_signal(load_config(recipe), out, Display("signal"))
