"""The verbs on the command line, generated from their signatures. Nothing is decided here."""

from __future__ import annotations

import importlib
import inspect
import json
import keyword
import os
import sys
from typing import Annotated, Any

from cyclopts import App, Parameter

from selfsight import __version__
from selfsight.errors import SelfsightError, in_words

VERBS = (
    *("import", "objectives", "plan", "pretrain", "compare", "embed", "evaluate", "report", "demo"),
    *("runs", "cache", "forget"),
)

app = App(
    name="selfsight",
    version=__version__,
    help="Self-supervised learning for machine vision: pretrain on images without labels, prove it worked, use it.",
    suppress_keyboard_interrupt=False,  # main() says what was saved
)


def _command(name: str) -> None:
    """Put a verb on the command line: `--out` is also `-o`, and every verb has `--json`.

    A verb module holds the verb, `show` that prints its result for people, and `summary` where the
    result is not already plain.
    """
    python = f"{name}_" if keyword.iskeyword(name) else name
    module = importlib.import_module(f"selfsight.verbs.{python}")
    verb = getattr(module, python)
    signature = inspect.signature(verb, eval_str=False)
    hints = inspect.get_annotations(verb, eval_str=False)

    def run(*args: Any, json_: bool = False, **kwargs: Any) -> None:
        result = verb(*args, **kwargs)
        if os.environ.get("RANK", "0") != "0":  # of several processes one speaks
            return
        plain = module.summary(result) if hasattr(module, "summary") else result
        if json_:
            print(json.dumps(plain))
        else:
            module.show(plain)

    parameters = []
    for parameter in signature.parameters.values():
        hint = (
            eval(hints[parameter.name], vars(module))
            if isinstance(hints[parameter.name], str)
            else hints[parameter.name]
        )
        names = ("--out", "-o") if parameter.name == "out" else None
        parameters.append(
            parameter.replace(annotation=Annotated[hint, Parameter(name=names, negative_none=(), negative_iterable=())])
        )
    parameters.append(
        inspect.Parameter(
            "json_",
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object on stdout.")],
        )
    )
    run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = verb.__doc__
    app.command(run, name=name)


for _name in VERBS:
    _command(_name)


def main() -> None:
    """Run the command line. A user's mistake is one sentence on stderr and exit code 2."""
    try:
        app(result_action="return_value")
    except SelfsightError as error:
        print(f"selfsight: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"selfsight: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"selfsight: {in_words(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
