"""The command line's root: which commands there are. One file a command or group of commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from weightloom import __version__
from weightloom.cli import data, zoo
from weightloom.cli.audit import audit
from weightloom.cli.bench import bench
from weightloom.cli.evaluate import evaluate
from weightloom.cli.export import export
from weightloom.cli.failures import SafeGroup
from weightloom.cli.finetune import finetune
from weightloom.cli.generate import generate
from weightloom.cli.info import info
from weightloom.cli.map import map_zoo
from weightloom.cli.predict import predict
from weightloom.cli.select import select
from weightloom.cli.stream import stream
from weightloom.cli.teaching import command, parts_of
from weightloom.cli.train import train

ORDER = (
    "generate",
    "select",
    "stream",
    "predict",
    "evaluate",
    "finetune",
    "export",
    "zoo",
    "train",
    "audit",
    "bench",
    "map",
    "data",
    "info",
)
_HELP = """Generate the weights of neural networks instead of training them.

Every command has --json (one object on stdout; progress goes to stderr) and --help with examples.
Exit code 0: done; 1: the work failed; 2: bad input.

Examples:

    weightloom generate "Recognise handwritten digits" --task digits
    weightloom data list
    weightloom info
"""


class Root(SafeGroup):
    """The root, its commands in the order in which a reader meets them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in :data:`ORDER`."""
        return sorted(super().list_commands(ctx), key=ORDER.index)


_text, _examples = parts_of(_HELP)
app = typer.Typer(
    name="weightloom",
    cls=Root,
    help=_text,
    epilog=_examples,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"weightloom {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # Its help is that of the app.
    pass


for _name, _function in (
    ("generate", generate),
    ("stream", stream),
    ("select", select),
    ("predict", predict),
    ("evaluate", evaluate),
    ("finetune", finetune),
    ("export", export),
    ("train", train),
    ("audit", audit),
    ("bench", bench),
    ("map", map_zoo),
    ("info", info),
):
    command(app, _name)(_function)
app.add_typer(zoo.app, name="zoo")
app.add_typer(data.app, name="data")


def main() -> None:
    """Run the command line. :mod:`weightloom.cli.__main__` does so from the first import on."""
    from weightloom.cli.__main__ import main as begin

    begin()
